"""Answer the products of a catalog, as in a run."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from enrich.answers.postprocess import Prediction
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.adapter import Adapter
from enrich.engines.base import Engine
from enrich.engines.predictor import Predictor, Shown, show
from enrich.errors import RunFailed
from enrich.models.base import Preparation
from enrich.models.checkpoint import load_processor
from enrich.photos.decode import ImageRefused, Photo, prepare
from enrich.photos.decoders import Decoders, DecodingFailed, cores
from enrich.photos.first_look import with_first_look
from enrich.pipeline.progress import Progress
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.vocabulary import Product

_AHEAD = 16  # products whose photos are decoded before the engine asks for them, 1.4 MB each


def predict(
    engine: Engine,
    adapter: Adapter,
    products: Sequence[Product],
    limits: PhotoLimits,
    what: str,
    progress: Progress,
    *,
    photos: int | None = None,
    second_pass: bool = True,
    first: int | None = None,
) -> list[Prediction]:
    """Predictions in the order of the products, made as in a run; empty ones for products without a readable photo.

    Args:
        photos: shown of a product; None: as many as one prompt shows.
        first: squares of a first look, to answer at that look alone; None: at those that the adapter takes.
    """
    processor = load_processor(adapter.path)
    tokens = AnswerTokens(processor.tokenizer, adapter.prompt, processor.stop_tokens[0])
    predictor = Predictor(engine, tokens, adapter.calibration, RunSettings().review, second_pass=second_pass)
    predictions = dict.fromkeys((product.product_code for product in products), Prediction())
    shown = photos_of(products, limits, adapter.preparation, photos, first or adapter.calibration.first_squares)
    if first:
        shown = (Shown(one.key, one.first) for one in shown)
    for done, (code, prediction) in enumerate(predictor.answer(shown), start=1):
        predictions[code] = prediction
        progress(what, done, len(products))
    return [predictions[product.product_code] for product in products]


def photos_of(
    products: Sequence[Product],
    limits: PhotoLimits,
    how: Preparation,
    most: int | None = None,
    first: int | None = None,
) -> Iterator[Shown]:
    """Prompts of each product with its first photos that can be decoded. Products without any are left out.

    Args:
        most: photos of a product; None: as many as one prompt shows.
        first: squares of the page of a first look, if there is one.

    Raises:
        RunFailed: decoding failed for a reason that is not in the photo's bytes.
    """
    with (
        Decoders(partial(prepare, how=how), limits, min(2, cores()), most_pixels=how.most_pixels) as decoders,
        ThreadPoolExecutor(min(2, cores())) as pool,
    ):

        def shown(product: Product) -> Shown | None:
            found: list[tuple[Photo, str]] = []
            for path in product.image_paths:
                if len(found) == (most or how.photos_per_product):
                    break
                with open(path, "rb") as file:
                    data = file.read(limits.max_bytes + 1)  # one byte too many is enough to be refused
                further = how.is_further(len(found))
                try:
                    photo = decoders.decode(data, further=further)
                except ImageRefused:
                    continue
                except DecodingFailed as error:
                    raise RunFailed(f"photo {path}: {error}; run again") from error
                photo = with_first_look(photo, how, None if further else first)
                found.append((photo, hashlib.sha256(data).hexdigest()))
            return show(product.product_code, found, how.photos_per_product) if found else None

        for start in range(0, len(products), _AHEAD):
            yield from filter(None, pool.map(shown, products[start : start + _AHEAD]))
