"""Labelled products to token ids and loss masks; the only module that makes them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.plain_text import MAX_TITLE
from enrich.answers.prompt import SHORTEST_BUDGET, Prompt, taught_answer
from enrich.answers.text_tokens import control_tokens
from enrich.errors import RunFailed, UsageError
from enrich.models.base import PhotoTokens
from enrich.models.protocols import Processor
from enrich.photos.decode import ImageRefused, Photo, inspect
from enrich.photos.decoders import Decoders, DecodingFailed, cores
from enrich.settings.photos import PhotoLimits
from enrich.settings.training import TrainSettings
from enrich.train.record import Dropped
from enrich.vocabulary import Product

LONGEST_BUDGET = 1024  # tokens of an answer; with num_crops 16, the question and this, a prompt takes less than 4,096
IGNORED = -100  # what cross entropy leaves out
_MOST_PROCESSES, _PHOTOS_A_PROCESS = 16, 32  # that look through the photos; fewer photos are not worth another one
UNREADABLE = "photo cannot be read"
MAX_DROPPED = 0.5  # a catalog of which more is unusable is the wrong catalog


class Unusable(ValueError):
    """A row that cannot be trained on; the message says why, `kind` without the details that differ between rows."""

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or message


@dataclass(frozen=True)
class Readable:
    """A photo that can be decoded."""

    path: str
    tokens: PhotoTokens  # that it takes in its place: as the main photo, or as a further one
    first: int | None = None  # squares of its page, where that is the one of a first look


@dataclass(frozen=True)
class Example:
    """A product as token ids. The prompt is what the model will see when it serves, to the token.

    `photos` are all that can be read, the main one first; those of the prompt are `shown`, by their place in `views`.
    """

    product: Product
    prompt_ids: tuple[int, ...]  # -k at the positions of the k-th image
    answer_ids: tuple[int, ...]  # with the one that ends the turn: all that is learned
    photos: tuple[Readable, ...]
    price_digits: int = 0  # how many of answer_ids, just before the closing one, write the price's digits
    shown: tuple[int, ...] = (0,)
    lost: tuple[Dropped, ...] = ()  # the product's photos that cannot be read
    first: Readable | None = None  # the main photo at a first look, where there are two

    @property
    def views(self) -> tuple[Readable, ...]:
        """All that a prompt may show: the photos, then the main one at a first look."""
        return (*self.photos, self.first) if self.first else self.photos

    @property
    def input_ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt_ids, *self.answer_ids]

    @property
    def labels(self) -> list[int]:
        """The answer and its end; the prompt and its images are given, not learned."""
        return [*[IGNORED] * len(self.prompt_ids), *self.answer_ids]

    @property
    def price_places(self) -> range:
        """Where in input_ids the price's digits stand."""
        end = len(self.prompt_ids) + len(self.answer_ids) - 1
        return range(end - self.price_digits, end)

    @cached_property
    def num_image_tokens(self) -> int:
        """Image positions in the prompt."""
        return sum(token < 0 for token in self.prompt_ids)


def make_example(
    product: Product,
    photos: tuple[Readable, ...],
    processor: Processor,
    prompt: Prompt,
    settings: TrainSettings,
) -> Example:
    """The example of a product that shows the first photos_per_product of its `photos`, as serving does.

    The answer is tokenised on its own. Prompt ids + answer ids are the ids of the whole text, which preflight checks,
    and what generation reproduces.

    Raises:
        Unusable: the answer could not be read back, or would not fit into max_new_tokens.
        UsageError: the whole could be longer than max_length; cutting would lose image tokens or the end.
    """
    answer_ids, digits = _answer(product, processor, prompt)
    example = Example(product, (), tuple(answer_ids), photos, digits)
    longest = show(example, largest(example, settings.photos_per_product), processor, prompt)
    length = len(longest.input_ids)
    if length > settings.max_length:
        several, (main, further) = len(longest.shown) > 1, settings.budget_names
        raise UsageError(
            f"product {product.product_code}: {'photos' if several else 'photo'}, prompt and answer take {length} "
            f"tokens, more than max_length {settings.max_length}; raise max_length or lower {main}"
            + (f", {further} or photos_per_product" if several else "")
        )
    return show(example, range(min(len(photos), settings.photos_per_product)), processor, prompt)


def show(example: Example, shown: Sequence[int], processor: Processor, prompt: Prompt) -> Example:
    """The example with these of its views in its prompt, in this order."""
    ids = processor.prompt_ids(prompt.instruction, [example.views[at].tokens for at in shown])
    return replace(example, prompt_ids=tuple(ids), shown=tuple(shown))


def largest(example: Example, count: int) -> list[int]:
    """The main photo and the further ones that take the most tokens, at most `count` in all."""
    further = sorted(range(1, len(example.photos)), key=lambda at: -example.photos[at].tokens.total)
    return [0, *further[: count - 1]]


def needed_budget(products: Sequence[Product], processor: Processor, prompt: Prompt) -> int:
    """Tokens that an answer may take: a quarter more than the longest of these products, and from SHORTEST_BUDGET to
    LONGEST_BUDGET."""
    texts = [taught_answer(prompt, one) for one in products if len(one.title) <= MAX_TITLE]
    found = processor.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    longest = max(map(len, found), default=0) + 1  # the one that ends the turn
    return min(max(SHORTEST_BUDGET, longest * 5 // 4), LONGEST_BUDGET)


def check_answers(products: Sequence[Product], processor: Processor, prompt: Prompt) -> list[Dropped]:
    """The products whose answers cannot be learned, with reasons; photos are not checked."""
    dropped = []
    for product in products:
        try:
            _answer(product, processor, prompt)
        except Unusable as reason:
            dropped.append(_dropped(product, reason))
    return dropped


def read_photo(path: str, limits: PhotoLimits, decoders: Decoders, *, further: bool = False) -> Photo:
    """Read and decode a photo; `further`: not the main one of its product.

    Raises:
        Unusable: the file is missing, unreadable, not a photo or beyond a limit.
        RunFailed: it could not be read or decoded now, for a reason that is not the photo.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(limits.max_bytes + 1)  # one byte more is enough to be refused
        return decoders.decode(data, further=further)
    except ImageRefused as error:
        raise Unusable(f"photo {path}: {error}", UNREADABLE) from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise Unusable(f"photo {path}: {error.strerror or error}", UNREADABLE) from error
    except DecodingFailed as error:
        raise RunFailed(f"photo {path}: {error}; run again") from error
    except OSError as error:  # too many open files, a disk that fails
        raise RunFailed(f"photo {path}: {error.strerror or error}; fix that and run again") from error


def read_again(path: str, limits: PhotoLimits, decoders: Decoders, *, further: bool = False) -> Photo:
    """Read and decode a photo that was readable when the run started. Raises RunFailed."""
    try:
        return read_photo(path, limits, decoders, further=further)
    except Unusable as error:
        raise RunFailed(
            f"training: {error}; it existed when training began; restore it and run again: "
            "training continues from its last checkpoint"
        ) from error


def build_examples(
    products: Sequence[Product],
    processor: Processor,
    prompt: Prompt,
    settings: TrainSettings,
    progress: Callable[[int], None] = lambda done: None,
    *,
    all_photos: bool = False,
    first: Processor | None = None,
) -> tuple[list[Example], list[Dropped]]:
    """Examples in the order of `products`, and the rows that cannot be used, with reasons.

    Photos are decoded once, for their size and to check them; pixels are not kept. A product without a photo that can
    be read is not used.

    Args:
        all_photos: look at all photos of a product, not only at as many as one prompt shows.
        first: the processor of a first look, which examples can then show too.

    Raises:
        UsageError: no row, or less than half of them, can be used; or a row exceeds max_length.
        RunFailed: see `read_photo`.
    """
    examples: list[Example] = []
    dropped: list[Dropped] = []
    processes = max(1, min(cores(), _MOST_PROCESSES, -(-len(products) // _PHOTOS_A_PROCESS)))
    with Decoders(inspect, settings.limits, processes, most_pixels=0) as decoders, ExitStack() as stack:
        pool = ThreadPoolExecutor(processes)
        stack.callback(pool.shutdown, cancel_futures=True)
        wanted = settings.photos_per_product
        most = None if all_photos and wanted > 1 else wanted
        look = partial(_look, most=most, processor=processor, first=first, limits=settings.limits, decoders=decoders)
        photos = [pool.submit(look, product) for product in products]
        for done, (product, reading) in enumerate(zip(products, photos, strict=True), start=1):
            try:
                found, quick, lost = reading.result()
                made = make_example(product, found, processor, prompt, settings)
                examples.append(replace(made, lost=lost, first=quick))
            except Unusable as reason:
                dropped.append(_dropped(product, reason))
            progress(done)
    _check_enough(examples, dropped)
    return examples, dropped


def _look(
    product: Product,
    most: int | None,
    processor: Processor,
    first: Processor | None,
    limits: PhotoLimits,
    decoders: Decoders,
) -> tuple[tuple[Readable, ...], Readable | None, tuple[Dropped, ...]]:
    """The first `most` photos of a product that can be read, the main one at a first look, and those that cannot.

    Raises:
        Unusable: none of them can.
    """
    found: list[Readable] = []
    quick: Readable | None = None
    lost: list[Unusable] = []
    for path in product.image_paths:
        if most is not None and len(found) == most:
            break
        try:
            photo = read_photo(path, limits, decoders)
        except Unusable as reason:
            lost.append(reason)
        else:
            if first is not None and not found:
                quick = Readable(path, first.photo_tokens(photo.width, photo.height), first.preparation.num_crops)
            found.append(Readable(path, processor.photo_tokens(photo.width, photo.height, len(found))))
    if not found:
        raise lost[0]
    return tuple(found), quick, tuple(_dropped(product, reason) for reason in lost)


def _answer(product: Product, processor: Processor, prompt: Prompt) -> tuple[list[int], int]:
    """The ids that are learned of a product, the closing one included, and how many of them write the price's
    digits, which may share tokens. Raises Unusable."""
    text = taught_answer(prompt, product)
    tokenizer = processor.tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, price = encoded.input_ids, len(text.rstrip("0123456789"))
    digits = sum(end > price for _, end in encoded.offset_mapping)
    if not control_tokens(tokenizer).isdisjoint(ids):  # this model's own, whatever their spelling
        raise Unusable("a value spells a control token of the model")
    taught = product.title, product.category, product.attributes
    for written, fault in (
        (text, "has line breaks, or spaces at its ends"),
        (tokenizer.decode(ids), "contains text that the model's tokenizer cannot write"),
    ):
        try:
            answer = parse_answer(written, prompt)
        except AnswerMalformed as error:
            raise Unusable(str(error), "a value cannot be read back") from error
        if (answer.title, answer.category, answer.attributes) != taught:
            raise Unusable(f"a value {fault}", "a value cannot be read back")
    ids = [*ids, tokenizer.convert_tokens_to_ids(processor.stop_tokens[0])]
    if len(ids) > prompt.max_new_tokens:
        raise Unusable(
            f"answer of {len(ids)} tokens, more than max_new_tokens {prompt.max_new_tokens}",
            f"answer longer than max_new_tokens {prompt.max_new_tokens}, raise it",
        )
    return ids, digits


def _dropped(product: Product, reason: Unusable) -> Dropped:
    return Dropped(product_code=product.product_code, reason=str(reason), kind=reason.kind)


def _check_enough(examples: list[Example], dropped: list[Dropped]) -> None:
    rows = len(examples) + len(dropped)
    if examples and len(dropped) <= MAX_DROPPED * rows:
        return
    first = f"; the first, product {dropped[0].product_code}: {dropped[0].reason}" if dropped else ""
    raise UsageError(f"catalog: {len(examples)} of {rows} rows of a split can be trained on{first}; fix the catalog")
