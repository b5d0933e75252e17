"""Answers about the products of a catalog, made as in a run."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from enrich.answers.postprocess import Prediction
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.adapter import Adapter
from enrich.engines.base import Engine
from enrich.engines.predictor import Predictor, Shown, prompts_of
from enrich.errors import RunFailed
from enrich.models.base import Preparation
from enrich.models.checkpoint import load_processor
from enrich.photos.decode import ImageRefused, prepare
from enrich.photos.decoders import Decoders, DecodingFailed, cores
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
) -> list[Prediction]:
    """Predictions in the order of the products, made as in a run; empty ones for products without a readable photo.

    Args:
        photos: shown of a product; None: as many as one prompt shows.
    """
    processor = load_processor(adapter.path)
    tokens = AnswerTokens(processor.tokenizer, adapter.prompt, processor.stop_tokens[0])
    predictor = Predictor(engine, tokens, adapter.calibration, RunSettings().review, second_pass=second_pass)
    predictions = dict.fromkeys((product.product_code for product in products), Prediction())
    for done, (code, prediction) in enumerate(
        predictor.answer(photos_of(products, limits, adapter.preparation, photos)), start=1
    ):
        predictions[code] = prediction
        progress(what, done, len(products))
    return [predictions[product.product_code] for product in products]


def photos_of(
    products: Sequence[Product], limits: PhotoLimits, how: Preparation, most: int | None = None
) -> Iterator[Shown]:
    """Prompts of each product with its first photos that can be decoded. Products without any are left out.

    Args:
        most: photos of a product; None: as many as one prompt shows.

    Raises:
        RunFailed: decoding failed for a reason that is not in the photo's bytes.
    """
    with (
        Decoders(partial(prepare, how=how), limits, min(2, cores()), most_pixels=how.most_pixels) as decoders,
        ThreadPoolExecutor(min(2, cores())) as pool,
    ):

        def shown(product: Product) -> Shown | None:
            found: list[tuple[np.ndarray, str]] = []
            for path in product.image_paths:
                if len(found) == (most or how.photos_per_product):
                    break
                with open(path, "rb") as file:
                    data = file.read(limits.max_bytes + 1)  # one byte too many is enough to be refused
                try:
                    page = decoders.decode(data, further=how.is_further(len(found))).page
                except ImageRefused:
                    continue
                except DecodingFailed as error:
                    raise RunFailed(f"photo {path}: {error}; start again") from error
                found.append((page, hashlib.sha256(data).hexdigest()))
            prompts = prompts_of(found, how.photos_per_product)
            return Shown(product.product_code, prompts) if prompts else None

        for start in range(0, len(products), _AHEAD):
            yield from filter(None, pool.map(shown, products[start : start + _AHEAD]))
