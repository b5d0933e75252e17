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
    _seen: OrderedDict[str, Prediction] = field(default_factory=OrderedDict)

    def answer(self, products: Iterable[Shown]) -> Iterator[tuple[str, Prediction]]:
        """Yield (key, prediction) for every product, as they finish."""
        rest = iter(products)
        in_flight: dict[str, tuple[Request, _Look]] = {}  # by the prompt's id, kept for a second pass
        waiting: dict[str, list[tuple[_Look, int]]] = defaultdict(list)  # by that id: whose which prompt it is
        again: deque[_Look] = deque()  # second looks that were not asked for yet
        done: list[tuple[str, Prediction]] = []
        second: list[Request] = []

        def requests() -> Iterator[Request | None]:
            while True:
                if again:
                    yield from ask(again.popleft())
                elif (product := next(rest, None)) is not None:
                    yield from ask(self._look_at(product))
                elif any(look.closer for _, look in in_flight.values()):
                    yield None  # one of them may need a second look
                else:
                    return

        def ask(look: _Look) -> Iterator[Request]:
            for place, prompt in enumerate(look.prompts):
                if prompt.id in self._seen:
                    find(look, place, self._seen[prompt.id])
                    continue
                waiting[prompt.id].append((look, place))
                if prompt.id not in in_flight:
                    in_flight[prompt.id] = prompt, look
                    yield prompt

        def find(look: _Look, place: int, prediction: Prediction) -> None:
            look.found[place] = prediction
            if len(look.found) == len(look.prompts):
                folded = self._folded(look)
                if look.closer and self.calibration.first and needs_second(self.calibration.first, folded):
                    again.append(_Look(look.key, look.closer, self.calibration, before=folded))
                else:
                    done.append((look.key, after_both(look.before, folded) if look.before else folded))

        def settle(completion: Completion, prediction: Prediction) -> Iterator[tuple[str, Prediction]]:
            in_flight.pop(completion.id)
            self._seen[completion.id] = prediction
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            for look, place in waiting.pop(completion.id):
                find(look, place, prediction)
            yield from done
            done.clear()

        def settle_second() -> Iterator[tuple[str, Prediction]]:
            if second:
                for completion in self.engine.complete(second, grammar=True):
                    yield from settle(completion, self._postprocess(completion, self.calibration, constrained=True))
                second.clear()

        for completion in self.engine.complete(requests()):
            prompt, look = in_flight[completion.id]
            prediction = self._postprocess(completion, look.calibration)
            if prediction.wants_grammar and self.second_pass and not look.closer:
                second.append(prompt)
                if len(second) >= SECOND_PASS:
                    yield from settle_second()
            else:
                yield from settle(completion, prediction)
        yield from settle_second()
        yield from done

    def _look_at(self, product: Shown) -> _Look:
        """The first of two looks at a product, or the only one."""
        if self.calibration.first and product.first:
            return _Look(product.key, product.first, self.calibration.first.calibration, closer=product.prompts)
        return _Look(product.key, product.prompts, self.calibration)

    def _folded(self, look: _Look) -> Prediction:
        found = [look.found[place] for place in range(len(look.prompts))]
        return fold(found, self.tokens.sizes, look.calibration, self.review)

    def _postprocess(
        self, completion: Completion, calibration: Calibration, *, constrained: bool = False
    ) -> Prediction:
        return postprocess(completion, self.tokens, calibration, self.review, constrained=constrained)
