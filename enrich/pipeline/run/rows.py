"""One row for each product of a run: its answer, the answer it already had, or why there is none."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from enrich.answers.postprocess import Prediction
from enrich.output.schema import SCHEMA_VERSION, Attribute, Row, RowPhoto
from enrich.photos.fetch import Fetched
from enrich.pipeline.run.state import Run
from enrich.vocabulary import Alternative


def keeps_answer(fetched: Fetched, known: Mapping[str, Any]) -> bool:
    """Whether a product would be shown as the row `known` was: the same bytes in the same order."""
    was = [photo["sha256"] for photo in known["photos"] if photo["sha256"] and not photo["error_kind"]]
    return bool(was) and was == [photo.sha256 for photo in fetched.shown]


def known_row(run: Run, fetched: Fetched, known: Mapping[str, Any]) -> Row:
    """The row of a product whose etags changed and whose bytes did not: the answer is that of the row `known`."""
    path, attributes = known["category_path"], known["attributes"] or {}
    kept = {
        **known,
        "photos": _photos(run, fetched),
        "photos_answered": len(fetched.shown),
        "category_path": None if path is None else tuple(path),
        "category_alternatives": tuple(Alternative(**other) for other in known["category_alternatives"]),
        "attributes": {name: Attribute(**attribute) for name, attribute in attributes.items()},
        "review_reasons": tuple(known["review_reasons"]),
        "attempt": fetched.item.attempt,
        "run_id": run.info.run_id,
        "shard": fetched.item.shard,
        "prompt_tokens": None,  # the model was not asked
        "output_tokens": None,
        "processed_at": datetime.now(UTC),
        "schema_version": SCHEMA_VERSION,
    }
    return Row(**kept)


def _photos(run: Run, fetched: Fetched) -> tuple[RowPhoto, ...]:
    return tuple(
        RowPhoto(
            key=one.listed.key,
            uri=run.images.uri_of(one.listed.key),
            etag=one.etag,
            sha256=one.sha256,
            width=one.photo.width if one.photo else None,
            height=one.photo.height if one.photo else None,
            error_kind=one.error_kind,
            photo_issues=one.photo.issues if one.photo else None,
        )
        for one in fetched.photos
    )


def new_row(run: Run, engine: str, fetched: Fetched, prediction: Prediction | None = None) -> Row:
    """The row of a product that `engine` answered, or that failed before it got there (`prediction` None)."""
    item = fetched.item
    failure = prediction or fetched.failure
    prediction = prediction or Prediction()
    answer = prediction.answer
    price = None if answer is None or answer.price is None else float(answer.price)
    return Row(
        product_id=item.product_id,
        status="ok" if answer else "failed",
        title=answer.title if answer else None,
        category=answer.category if answer else None,
        category_path=prediction.path,
        category_id=run.adapter.prompt.category_ids.get(answer.category) if answer else None,
        category_confidence=prediction.confidence,
        category_alternatives=prediction.alternatives,
        attributes={name: Attribute(one.value, one.confidence) for name, one in prediction.attributes.items()},
        price=price,
        price_low=prediction.price_low,
        price_high=prediction.price_high,
        currency=None if price is None else run.adapter.prompt.currency,
        needs_review=bool(prediction.reasons),
        review_reasons=prediction.reasons,
        photos=_photos(run, fetched),
        photos_answered=len(fetched.shown),
        looks=prediction.looks if fetched.shown else None,
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
        prompt_tokens=prediction.prompt_tokens,
        output_tokens=prediction.output_tokens,
        processed_at=datetime.now(UTC),
    )
