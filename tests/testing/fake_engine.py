"""Completions written by hand, and an engine that gives them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from enrich.answers.completion import TOP_K, Completion
from enrich.engines.base import EngineClock, Request


def write_completion(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    id: str = "x",
    probabilities: Mapping[int, float] = {},
    rivals: Mapping[int, Mapping[int, float]] = {},
    finished: bool = True,
) -> Completion:
    """`text` as the tokenizer writes it, every token certain but those at the positions in `probabilities`.

    `rivals` are other tokens at a position with their probabilities; the places left among the top ones are empty, as
    under a grammar.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    logprobs = np.array([math.log(probabilities.get(i, 1.0)) for i in range(len(ids))], np.float32)
    top_ids = np.zeros((len(ids), TOP_K), np.int32)
    top_logprobs = np.full((len(ids), TOP_K), -np.inf, np.float32)
    top_ids[:, 0], top_logprobs[:, 0] = ids, logprobs
    for position, others in rivals.items():
        for place, (token, probability) in enumerate(others.items(), start=1):
            top_ids[position, place], top_logprobs[position, place] = token, math.log(probability)
    return Completion(id, text, tuple(ids), logprobs, top_ids, top_logprobs, finished=finished, prompt_tokens=100)


class FakeEngine:
    """Answers `in_flight` requests at a time, the last one first, with what `write` makes of them."""

    name = "fake"

    def __init__(self, write: Callable[[Request, bool], Completion], in_flight: int = 1) -> None:
        self._write, self._in_flight = write, in_flight
        self.clock = EngineClock()
        self.asked: list[tuple[str, bool]] = []  # (id, grammar) in the order they came
        self.pages: list[np.ndarray] = []

    def complete(self, requests: Iterable[Request | None], *, grammar: bool = False) -> Iterator[Completion]:
        stream = iter(requests)
        while batch := list(islice(iter(partial(next, stream, None), None), self._in_flight)):
            self.asked += [(request.id, grammar) for request in batch]
            self.pages += [request.pages[0] for request in batch]
            for request in reversed(batch):
                yield self._write(request, grammar)

    def close(self) -> None:
        """Nothing is held."""
