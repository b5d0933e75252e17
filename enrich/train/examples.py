"""Labelled products to token ids. The only place that makes ids and the loss mask."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from os import cpu_count
from pathlib import Path

import torch

from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.prompt import END, Prompt, render_answer, render_prompt
from enrich.errors import RunFailed, UsageError
from enrich.models.phi3_vision import Phi3VProcessor
from enrich.photos.decode import ImageRefused, Photo, Preparation, inspect, prepare
from enrich.photos.decoders import Decoders, DecodingFailed, Room, cores
from enrich.settings.photos import PhotoLimits
from enrich.settings.training import TrainSettings
from enrich.train.record import Dropped
from enrich.vocabulary import Product

IGNORED = -100  # what cross entropy leaves out
_MOST_PROCESSES, _PHOTOS_A_PROCESS = 16, 32  # that look through the photos; fewer photos are not worth another one
MAX_DROPPED = 0.5  # a catalog of which more is unusable is the wrong catalog


class Unusable(ValueError):
    """A row that cannot be learned from; the message says why, `kind` without what differs from row to row."""

    def __init__(self, message: str, kind: str = "photo cannot be read") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Example:
    """A product as token ids. The prompt is what the model will see when it serves, to the token."""

    product: Product
    prompt_ids: tuple[int, ...]  # negative at image positions
    answer_ids: tuple[int, ...]  # with the closing <|end|>: all that is learned
    price_digits: int = 0  # how many of them, just before the closing one, are the price's digits

    @property
    def input_ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt_ids, *self.answer_ids]

    @property
    def labels(self) -> list[int]:
        """The answer and its end; the prompt, the image and the second `<s>` after it are given, not learned."""
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
    product: Product, width: int, height: int, processor: Phi3VProcessor, prompt: Prompt, settings: TrainSettings
) -> Example:
    """The example of a product whose photo is `width` x `height` pixels.

    The answer is tokenised on its own: `<|assistant|>` swallows the line break after it, and the tokenizer starts any
    text with its word mark, so prompt ids + answer ids are the ids of the whole text, and what generation reproduces.

    Raises:
        Unusable: the answer could not be read back, or would not fit into max_new_tokens.
        UsageError: the whole is longer than max_length; cutting would lose image tokens or the end.
    """
    text, answer_ids = _answer(product, processor, prompt, settings)
    image_tokens = processor.image_processor.num_image_tokens(width, height)
    prompt_ids = processor.token_ids(render_prompt(prompt), [image_tokens])
    length = len(prompt_ids) + len(answer_ids)
    if length > settings.max_length:
        raise UsageError(
            f"product {product.product_code}: photo, prompt and answer take {length} tokens, more than max_length "
            f"{settings.max_length}; raise max_length or lower num_crops"
        )
    digits = len(text) - len(text.rstrip("0123456789"))  # each is a token of its own
    return Example(product, tuple(prompt_ids), tuple(answer_ids), digits)


def check_answers(
    products: Sequence[Product], processor: Phi3VProcessor, prompt: Prompt, settings: TrainSettings
) -> list[Dropped]:
    """The products whose answers cannot be learned, with reasons; photos are not looked at."""
    dropped = []
    for product in products:
        try:
            _answer(product, processor, prompt, settings)
        except Unusable as reason:
            dropped.append(_dropped(product, reason))
    return dropped


def read_photo(path: str, limits: PhotoLimits, decoders: Decoders) -> Photo:
    """Read and decode a photo.

    Raises:
        Unusable: the file is missing, unreadable, not a photo or beyond a limit.
        RunFailed: it could not be read or decoded now, for a reason that is not the photo.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(limits.max_bytes + 1)  # one byte more is enough to be refused
        return decoders.decode(data)
    except ImageRefused as error:
        raise Unusable(f"photo {path}: {error}") from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise Unusable(f"photo {path}: {error.strerror or error}") from error
    except DecodingFailed as error:
        raise RunFailed(f"photo {path}: {error}; start again") from error
    except OSError as error:  # too many open files, a disk that fails
        raise RunFailed(f"photo {path}: {error.strerror or error}; look after that and start again") from error


def page_decoders(processor: Phi3VProcessor, limits: PhotoLimits, processes: int, room: Room | None = None) -> Decoders:
    """Decoders that make of a photo its page of crops, as serving sees it."""
    crops = processor.image_processor
    how = Preparation(crops.num_crops, crops.image_size, crops.fast_decode)
    most_pixels = how.num_crops * how.image_size**2
    return Decoders(partial(prepare, how=how), limits, processes, most_pixels=most_pixels, room=room)


def build_examples(
    products: Sequence[Product],
    processor: Phi3VProcessor,
    prompt: Prompt,
    settings: TrainSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Example], list[Dropped]]:
    """Examples in the order of `products`, and the rows that cannot be used, with reasons.

    Every photo is decoded once, for its size and its health; pixels are not kept.

    Raises:
        UsageError: no row, or less than half of them, can be used; or a row exceeds max_length.
        RunFailed: see `read_photo`.
    """
    examples: list[Example] = []
    dropped: list[Dropped] = []
    processes = min(cores(), _MOST_PROCESSES, -(-len(products) // _PHOTOS_A_PROCESS))
    with (
        Decoders(inspect, settings.limits, max(1, processes), most_pixels=0) as decoders,
        ThreadPoolExecutor(max(1, processes)) as pool,
    ):
        sizes = pool.map(lambda product: _size(product, settings.limits, decoders), products)
        for done, (product, found) in enumerate(zip(products, sizes, strict=True), start=1):
            try:
                if isinstance(found, str):
                    raise Unusable(found)
                width, height = found
                examples.append(make_example(product, width, height, processor, prompt, settings))
            except Unusable as reason:
                dropped.append(_dropped(product, reason))
            progress(done)
    _check_enough(examples, dropped)
    return examples, dropped


def loading_workers(photos: int) -> int:
    """Processes that decode photos for a GPU; a CPU that trains has no core to spare for them."""
    return min(8, (cpu_count() or 1) - 1) if photos >= 256 and torch.cuda.is_available() else 0


def _size(product: Product, limits: PhotoLimits, decoders: Decoders) -> tuple[int, int] | str:
    """Width and height of a product's photo, or why there is none."""
    try:
        photo = read_photo(product.image_path, limits, decoders)
    except Unusable as reason:
        return str(reason)
    return photo.width, photo.height


def _answer(
    product: Product, processor: Phi3VProcessor, prompt: Prompt, settings: TrainSettings
) -> tuple[str, list[int]]:
    """What is learned of a product, and its ids with the closing <|end|>. Raises Unusable."""
    text = render_answer(prompt, product.title, product.category, product.price)
    tokenizer = processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not tokenizer.added_tokens_decoder.keys().isdisjoint(ids):  # those of this model, whatever they look like
        raise Unusable(
            "title or category spells one of the model's control tokens",
            "title or category spells a control token of the model",
        )
    _check_readable(text, product)
    ids = [*ids, tokenizer.convert_tokens_to_ids(END)]
    if len(ids) > settings.max_new_tokens:
        raise Unusable(
            f"answer of {len(ids)} tokens, more than max_new_tokens {settings.max_new_tokens}",
            f"answer longer than max_new_tokens {settings.max_new_tokens}, raise it",
        )
    return text, ids


def _dropped(product: Product, reason: Unusable) -> Dropped:
    return Dropped(product_code=product.product_code, reason=str(reason), kind=reason.kind)


def _check_readable(text: str, product: Product) -> None:
    try:
        answer = parse_answer(text)
    except AnswerMalformed as error:
        raise Unusable(str(error), "title or category cannot be read back") from error
    if (answer.title, answer.category) != (product.title, product.category):
        raise Unusable("title or category holds line breaks or outer spaces", "title or category cannot be read back")


def _check_enough(examples: list[Example], dropped: list[Dropped]) -> None:
    rows = len(examples) + len(dropped)
    if examples and len(dropped) <= MAX_DROPPED * rows:
        return
    first = f"; the first, product {dropped[0].product_code}: {dropped[0].reason}" if dropped else ""
    raise UsageError(f"catalog: {len(examples)} of {rows} rows of a split can be learned from{first}; fix the catalog")
