"""Stream products through an engine: identical photos once, with a second pass if the first answer did not parse."""

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from enrich.answers.calibration import Calibration
from enrich.answers.completion import Completion
from enrich.answers.fold import fold
from enrich.answers.postprocess import Prediction, postprocess
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.base import Engine, Request
from enrich.settings.review import ReviewSettings

SEEN = 100_000  # predictions cached for identical bytes later in the run; about 1 kB each
SECOND_PASS = 16  # prompts collected before the grammar pass runs; bounds their memory


@dataclass(frozen=True)
class Shown:
    """What the model is shown of one product, in one or several prompts. A prompt's id is `digest_of` its photos."""

    key: str
    prompts: tuple[Request, ...]


def prompts_of(photos: Sequence[tuple[np.ndarray, str]], most: int) -> tuple[Request, ...]:
    """The prompts that show all photos of a product, up to `most` in each.

    Prompts of several photos all begin with the main one, as those that the adapter was trained on.

    Args:
        photos: the page of each, as in `Request`, and the hash of its bytes; the main photo first.
    """
    if most == 1:
        groups = [[photo] for photo in photos]
    else:
        main, further = photos[:1], photos[1:]
        groups = [[*main, *further[at : at + most - 1]] for at in range(0, max(len(further), 1), most - 1) if main]
    return tuple(
        Request(digest_of([sha256 for _, sha256 in group]), *zip(*group, strict=True))  # pages, sha256s
        for group in groups
    )


def digest_of(sha256s: Sequence[str]) -> str:
    """The identity of some photos in order, from the hashes of their bytes: that of one photo is its hash."""
    return sha256s[0] if len(sha256s) == 1 else hashlib.sha256(" ".join(sha256s).encode()).hexdigest()


@dataclass
class _Open:
    """A product that waits for prompts; `found` has their predictions by place."""

    key: str
    prompts: int
    found: dict[int, Prediction] = field(default_factory=dict)


@dataclass
class Predictor:
    """Answers products with one engine for the duration of a run.

    Predictions are cached by content, including failures of the engine, so that bytes that crash it do not crash it
    again for each copy. The next run retries failures. Without `second_pass`, first answers are final.
    """

    engine: Engine
    tokens: AnswerTokens
    calibration: Calibration
    review: ReviewSettings
    second_pass: bool = True
    _seen: OrderedDict[str, Prediction] = field(default_factory=OrderedDict)

    def answer(self, products: Iterable[Shown]) -> Iterator[tuple[str, Prediction]]:
        """Yield (key, prediction) for every product, as they finish."""
        in_flight: dict[str, Request] = {}  # by digest, kept for a second pass
        waiting: dict[str, list[tuple[_Open, int]]] = defaultdict(list)  # by digest: whose which prompt it is
        done: list[tuple[str, Prediction]] = []  # products whose prompts were all answered before
        second: list[Request] = []

        def requests() -> Iterator[Request]:
            for product in products:
                opened = _Open(product.key, len(product.prompts))
                for place, prompt in enumerate(product.prompts):
                    if prompt.id in self._seen:
                        done.extend(self._found(opened, place, self._seen[prompt.id]))
                        continue
                    waiting[prompt.id].append((opened, place))
                    if prompt.id not in in_flight:
                        in_flight[prompt.id] = prompt
                        yield prompt

        def settle(digest: str, prediction: Prediction) -> Iterator[tuple[str, Prediction]]:
            in_flight.pop(digest, None)
            self._seen[digest] = prediction
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            for opened, place in waiting.pop(digest):
                yield from self._found(opened, place, prediction)

        def settle_second() -> Iterator[tuple[str, Prediction]]:
            if second:
                for completion in self.engine.complete(second, grammar=True):
                    yield from settle(completion.id, self._postprocess(completion, constrained=True))
                second.clear()

        for completion in self.engine.complete(requests()):
            prediction = self._postprocess(completion)
            if prediction.wants_grammar and self.second_pass:
                second.append(in_flight[completion.id])
                if len(second) >= SECOND_PASS:
                    yield from settle_second()
            else:
                yield from settle(completion.id, prediction)
            yield from done
            done.clear()
        yield from settle_second()
        yield from done

    def _found(self, opened: _Open, place: int, prediction: Prediction) -> Iterator[tuple[str, Prediction]]:
        """The product and its prediction, if this was the last one of its prompts."""
        opened.found[place] = prediction
        if len(opened.found) == opened.prompts:
            found = [opened.found[at] for at in range(opened.prompts)]
            yield opened.key, fold(found, self.tokens.sizes, self.calibration, self.review)

    def _postprocess(self, completion: Completion, *, constrained: bool = False) -> Prediction:
        return postprocess(completion, self.tokens, self.calibration, self.review, constrained=constrained)
