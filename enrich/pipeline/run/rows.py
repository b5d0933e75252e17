"""One row for each photo of a run: its answer, the answer it already had, or why there is none."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from enrich.answers.postprocess import Prediction
from enrich.output.product_ids import product_id
from enrich.output.schema import Row
from enrich.photos.fetch import Fetched
from enrich.pipeline.run.state import Run
from enrich.vocabulary import Alternative


def known_row(run: Run, fetched: Fetched, known: Mapping[str, Any]) -> Row:
    """The row of a photo whose etag changed and whose bytes did not: the answer is that of the row `known`."""
    kept = {
        **known,
        "product_id": product_id(run.settings.product_id_pattern, fetched.item.key),
        "image_uri": run.images.uri_of(fetched.item.key),
        "image_etag": fetched.etag,
        "category_alternatives": tuple(Alternative(**other) for other in known["category_alternatives"]),
        "review_reasons": tuple(known["review_reasons"]),
        "attempt": fetched.item.attempt,
        "run_id": run.info.run_id,
        "shard": fetched.item.shard,
        "prompt_tokens": None,  # the model was not asked
        "output_tokens": None,
        "processed_at": datetime.now(UTC),
    }
    return Row(**kept)


def new_row(run: Run, engine: str, fetched: Fetched, prediction: Prediction | None = None) -> Row:
    """The row of a photo that `engine` answered, or that failed before it got there (`prediction` None)."""
    item, photo = fetched.item, fetched.photo
    answer = prediction.answer if prediction else None
    failure = prediction or fetched
    price = None if answer is None or answer.price is None else float(answer.price)
    return Row(
        product_id=product_id(run.settings.product_id_pattern, item.key),
        image_key=item.key,
        image_uri=run.images.uri_of(item.key),
        image_etag=fetched.etag,
        image_sha256=fetched.sha256,
        image_width=photo.width if photo else None,
        image_height=photo.height if photo else None,
        status="ok" if answer else "failed",
        title=answer.title if answer else None,
        category=answer.category if answer else None,
        category_confidence=prediction.confidence if prediction else None,
        category_alternatives=prediction.alternatives if prediction else (),
        price=price,
        price_low=prediction.price_low if prediction else None,
        price_high=prediction.price_high if prediction else None,
        currency=None if price is None else run.adapter.prompt.currency,
        needs_review=bool(prediction and prediction.reasons),
        review_reasons=prediction.reasons if prediction else (),
        error_kind=None if answer else failure.error_kind,
        error_message=None if answer else failure.error_message,
        attempt=item.attempt,
        model=run.info.model,
        adapter=run.info.adapter,
        prompt_version=run.info.prompt_version,
        fingerprint=run.info.fingerprint,
        engine=engine,
        run_id=run.info.run_id,
        shard=item.shard,
        prompt_tokens=prediction.prompt_tokens if prediction else None,
        output_tokens=prediction.output_tokens if prediction else None,
        processed_at=datetime.now(UTC),
    )
