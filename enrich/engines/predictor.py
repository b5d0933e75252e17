"""Stream photos through an engine: identical bytes only once, with a second pass if the first answer did not parse."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from enrich.answers.calibration import Calibration
from enrich.answers.completion import Completion
from enrich.answers.postprocess import Prediction, postprocess
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.base import Engine, Request
from enrich.settings.review import ReviewSettings

SEEN = 100_000  # predictions cached for identical bytes later in the run; about 1 kB each
SECOND_PASS = 16  # photos collected before the grammar pass runs; bounds their memory


@dataclass(frozen=True)
class Image:
    """A photo with its identity: `sha256` of the bytes it came from; `page` as in `Request`."""

    key: str
    sha256: str
    page: np.ndarray


@dataclass
class Predictor:
    """Answers photos with one engine for the duration of a run.

    Predictions are cached by content, including failures of the engine, so that bytes that crash it do not crash it
    again for each copy. The next run retries failures. Without `second_pass`, first answers are final.
    """

    engine: Engine
    tokens: AnswerTokens
    calibration: Calibration
    review: ReviewSettings
    second_pass: bool = True
    _seen: OrderedDict[str, Prediction] = field(default_factory=OrderedDict)

    def answer(self, images: Iterable[Image]) -> Iterator[tuple[str, Prediction]]:
        """Yield (key, prediction) for every image, as they finish."""
        in_flight: dict[str, np.ndarray] = {}  # sha256 -> page, kept for a second pass
        waiting: dict[str, list[str]] = defaultdict(list)  # sha256 -> keys with these bytes
        done: list[tuple[str, Prediction]] = []  # keys whose bytes were already answered
        second: list[Request] = []

        def requests() -> Iterator[Request]:
            for image in images:
                if image.sha256 in self._seen:
                    done.append((image.key, self._seen[image.sha256]))
                    continue
                waiting[image.sha256].append(image.key)
                if image.sha256 not in in_flight:
                    in_flight[image.sha256] = image.page
                    yield Request(image.sha256, image.page)

        def settle(digest: str, prediction: Prediction) -> Iterator[tuple[str, Prediction]]:
            in_flight.pop(digest, None)
            self._remember(digest, prediction)
            for key in waiting.pop(digest):
                yield key, prediction

        for completion in self.engine.complete(requests()):
            prediction = self._postprocess(completion)
            if prediction.wants_grammar and self.second_pass:
                second.append(Request(completion.id, in_flight[completion.id]))
                if len(second) >= SECOND_PASS:
                    for digest, mended in self._mend(second):
                        yield from settle(digest, mended)
                    second.clear()
            else:
                yield from settle(completion.id, prediction)
            yield from done
            done.clear()
        for digest, mended in self._mend(second):
            yield from settle(digest, mended)
        yield from done

    def _mend(self, requests: list[Request]) -> Iterator[tuple[str, Prediction]]:
        if requests:
            for completion in self.engine.complete(requests, grammar=True):
                yield completion.id, self._postprocess(completion, constrained=True)

    def _postprocess(self, completion: Completion, *, constrained: bool = False) -> Prediction:
        return postprocess(completion, self.tokens, self.calibration, self.review, constrained=constrained)

    def _remember(self, digest: str, prediction: Prediction) -> None:
        self._seen[digest] = prediction
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
