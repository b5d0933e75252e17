"""Stream products through an engine: identical photos once, and a second pass if the first answer did not parse.

With two looks the adapter first sees a product at few crops, and closely only if that answer is doubtful.
"""

import hashlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from enrich.answers.calibration import Calibration
from enrich.answers.completion import Completion
from enrich.answers.fold import fold
from enrich.answers.looks import after_both, needs_second
from enrich.answers.postprocess import Prediction, postprocess
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.base import Engine, Request
from enrich.photos.decode import Photo
from enrich.settings.review import ReviewSettings

SEEN = 100_000  # predictions cached for identical bytes later in the run; about 1 kB each
SECOND_PASS = 16  # prompts collected before the grammar pass runs; bounds their memory


@dataclass(frozen=True)
class Shown:
    """The prompts that show one product. A prompt's id is `digest_of` its photos."""

    key: str
    prompts: tuple[Request, ...]
    first: tuple[Request, ...] = ()  # the same for a first look; none where there is one look only


def show(key: str, photos: Sequence[tuple[Photo, str]], most: int) -> Shown:
    """A product with these photos and the hashes of their bytes, the main photo first, up to `most` in a prompt."""
    prompts = prompts_of([(photo.page, sha256) for photo, sha256 in photos], most)
    if all(photo.first is None for photo, _ in photos):
        return Shown(key, prompts)
    quick = prompts_of([(photo.page if photo.first is None else photo.first, sha256) for photo, sha256 in photos], most)
    return Shown(key, prompts, tuple(replace(prompt, id=f"{prompt.id} at first") for prompt in quick))


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
class _Look:
    """A look at a product, which waits for its prompts; `found` has their predictions by place.

    closer: the prompts of a second look, if this may be the first of two.
    before: what the first look found, if this is the second.
    """

    key: str
    prompts: tuple[Request, ...]
    calibration: Calibration
    closer: tuple[Request, ...] = ()
    before: Prediction | None = None
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
    seen: OrderedDict[str, Prediction] = field(default_factory=OrderedDict)  # by the prompt's id, the last SEEN

    def answer(self, products: Iterable[Shown]) -> Iterator[tuple[str, Prediction]]:
        """Yield (key, prediction) for every product, as they finish."""
        return _Answering(self, products).answer()

    def remember(self, prompt: str, prediction: Prediction) -> None:
        """Cache the prediction for a prompt, by its id."""
        self.seen[prompt] = prediction
        if len(self.seen) > SEEN:
            self.seen.popitem(last=False)


class _Answering:
    """A stream of products on its way through the engine."""

    def __init__(self, predictor: Predictor, products: Iterable[Shown]) -> None:
        self._of, self._rest = predictor, iter(products)
        self._in_flight: dict[str, tuple[Request, _Look]] = {}  # by the prompt's id, kept for a second pass
        self._waiting: dict[str, list[tuple[_Look, int]]] = defaultdict(list)  # by that id: whose which prompt it is
        self._again: deque[_Look] = deque()  # second looks that were not asked for yet
        self._second: list[Request] = []  # prompts for the grammar pass
        self._done: list[tuple[str, Prediction]] = []

    def answer(self) -> Iterator[tuple[str, Prediction]]:
        """Do all of it; see `Predictor.answer`."""
        for completion in self._of.engine.complete(self._requests()):
            prompt, look = self._in_flight[completion.id]
            prediction = self._postprocess(completion, look.calibration)
            if prediction.wants_grammar and self._of.second_pass and not look.closer:
                self._second.append(prompt)
                if len(self._second) >= SECOND_PASS:
                    yield from self._answer_second()
            else:
                self._settle(completion, prediction)
                yield from self._take_done()
        yield from self._answer_second()
        yield from self._take_done()

    def _answer_second(self) -> Iterator[tuple[str, Prediction]]:
        if self._second:
            for completion in self._of.engine.complete(self._second, grammar=True):
                self._settle(completion, self._postprocess(completion, self._of.calibration, constrained=True))
                yield from self._take_done()
            self._second.clear()

    def _requests(self) -> Iterator[Request | None]:
        """What the engine has to answer. None: one of those in flight may still need a second look."""
        while True:
            if self._again:
                yield from self._ask(self._again.popleft())
            elif (product := next(self._rest, None)) is not None:
                yield from self._ask(self._look_at(product))
            elif any(look.closer for _, look in self._in_flight.values()):
                yield None
            else:
                return

    def _look_at(self, product: Shown) -> _Look:
        """The first of two looks at a product, or the only one."""
        calibration = self._of.calibration
        if calibration.first and product.first:
            return _Look(product.key, product.first, calibration.first.calibration, closer=product.prompts)
        return _Look(product.key, product.prompts, calibration)

    def _ask(self, look: _Look) -> Iterator[Request]:
        for place, prompt in enumerate(look.prompts):
            if prompt.id in self._of.seen:
                self._find(look, place, self._of.seen[prompt.id])
                continue
            self._waiting[prompt.id].append((look, place))
            if prompt.id not in self._in_flight:
                self._in_flight[prompt.id] = prompt, look
                yield prompt

    def _settle(self, completion: Completion, prediction: Prediction) -> None:
        self._in_flight.pop(completion.id)
        self._of.remember(completion.id, prediction)
        for look, place in self._waiting.pop(completion.id):
            self._find(look, place, prediction)

    def _find(self, look: _Look, place: int, prediction: Prediction) -> None:
        """Take the prediction for a prompt of a look. Once it has them all, it is done or another one follows."""
        look.found[place] = prediction
        if len(look.found) < len(look.prompts):
            return
        first, folded = self._of.calibration.first, self._folded(look)
        if look.closer and first and needs_second(first, folded):
            self._again.append(_Look(look.key, look.closer, self._of.calibration, before=folded))
        else:
            self._done.append((look.key, after_both(look.before, folded) if look.before else folded))

    def _folded(self, look: _Look) -> Prediction:
        found = [look.found[place] for place in range(len(look.prompts))]
        return fold(found, self._of.tokens.sizes, look.calibration, self._of.review)

    def _take_done(self) -> list[tuple[str, Prediction]]:
        done, self._done = self._done, []
        return done

    def _postprocess(
        self, completion: Completion, calibration: Calibration, *, constrained: bool = False
    ) -> Prediction:
        return postprocess(completion, self._of.tokens, calibration, self._of.review, constrained=constrained)
