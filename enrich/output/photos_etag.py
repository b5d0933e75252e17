"""The version of a product's photos: one hash of their keys and etags in order, so that any change shows."""

import hashlib
from collections.abc import Iterable

import polars as pl

_DIGITS = 32
_BETWEEN = "\0"  # in no key and no etag


def photos_etag(photos: Iterable[tuple[str, str]]) -> str:
    """The version of these photos, given as (key, etag) in order."""
    return _digest(_BETWEEN.join(text for pair in photos for text in pair))


def photos_etags(photos: pl.Series) -> pl.Series:
    """The same for each product of a column: lists of structs with fields key and etag."""
    pair = pl.concat_str(
        pl.element().struct.field("key"), pl.element().struct.field("etag").fill_null(""), separator=_BETWEEN
    )
    texts = photos.to_frame("photos").select(pl.col("photos").list.eval(pair).list.join(_BETWEEN))["photos"]
    return pl.Series("photos_etag", [None if text is None else _digest(text) for text in texts], pl.String)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
