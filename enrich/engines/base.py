"""What an engine is: photos in, completions out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

TOP_K = 8  # alternatives kept a token: enough for the digits that matter and the next labels


@dataclass(frozen=True)
class Request:
    """One photo. `page` is uint8 RGB (height, width, 3), both whole crops, as `hd_transform` makes it."""

    id: str
    page: np.ndarray


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one request, n tokens without the stop token; log-probabilities are natural logs.

    `error` is set, and the rest empty, where the engine could not answer this request.
    """

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))  # (n,) float32
    # (n, k) int32, most probable first
    top_ids: np.ndarray = field(default_factory=lambda: np.empty((0, TOP_K), np.int32))
    top_logprobs: np.ndarray = field(default_factory=lambda: np.empty((0, TOP_K), np.float32))  # (n, k) float32
    finished: bool = False  # False: the token budget ran out
    prompt_tokens: int = 0
    # (prompt_tokens,) int32, the processor's image_token_id at each position of the image
    prompt_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    error: str | None = None


@dataclass
class EngineClock:
    """What an engine did with its time, seconds so far. Of none it does nothing, and nobody asked it to."""

    render: float = 0.0  # made its input of pages; beside its work, or not
    busy: float = 0.0  # had something to answer
    starved: float = 0.0  # had nothing, for the next photo of the stream was not there


class Engine(Protocol):
    """Takes photos, yields completions as they finish, in any order, one for each request."""

    name: str
    clock: EngineClock

    def complete(self, requests: Iterable[Request], *, grammar: bool = False) -> Iterator[Completion]:
        """Answer every request, pulling no more of them than fit in flight.

        With `grammar`, only the three-line answer with a category of the taxonomy can be written.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
