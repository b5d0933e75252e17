"""The review queue as one page: rows that need review, costliest first, decided by keyboard and saved as a file."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import polars as pl
from markupsafe import Markup

from enrich.answers.amount import CURRENCIES, LARGEST, LONGEST, MULTIPLES, SIGNS, SMALLEST, TAX, WHOLE_UNITS
from enrich.answers.plain_text import JOINER_IN_WORD, MAX_TITLE
from enrich.output.asked import Asked
from enrich.output.decisions import FILE_FORMAT, FORMULA, INVISIBLE, SPECIAL_TOKEN
from enrich.output.picks import Pick
from enrich.pages.han import han_language
from enrich.pages.report import template
from enrich.photos.thumbnail import thumbnails
from enrich.settings.photos import PhotoLimits
from enrich.storage import Store

FORMAT_OF_MEMORY = 4  # of what the browser remembers; pages of another format ignore it
# Pixels of a photo's longer side, and its bytes as JPEG on the page. The largest is taken with which all photos stay
# below PHOTO_BYTES: 350 of them have 1,024 pixels, thousands 256.
SIDES = {1024: 180_000, 768: 100_000, 512: 46_000, 384: 26_000, 256: 11_000}
PHOTO_BYTES = 64_000_000
_SCRIPT = re.compile('<script(?: id="amount")?>(.*?)</script>', re.DOTALL)
_HASHES = "script-src 'none'"  # stands in the template for what `_with_hashes` puts there
_KEPT = (
    "product_id", "photos", "run_id", "title", "category", "category_confidence",
    "category_alternatives", "attributes", "price", "price_low", "price_high", "currency", "review_reasons",
    "value_at_risk", "picked", "why",
)  # fmt: skip


def review_queue(products: pl.DataFrame, limit: int) -> pl.DataFrame:
    """The ok rows of PRODUCTS_SCHEMA that need review and are in the source, the largest value_at_risk first."""
    return (
        _with_value(products)
        .filter("needs_review", "in_source", pl.col("status") == "ok")
        .with_columns(picked=pl.lit(None, pl.String), why=pl.lit([], pl.List(pl.String)))
        .sort("value_at_risk", "product_id", descending=[True, False])
        .head(limit)
    )


def picked_queue(products: pl.DataFrame, picks: Sequence[Pick]) -> pl.DataFrame:
    """The picked rows of PRODUCTS_SCHEMA, in that order, except those that were decided meanwhile or are gone."""
    kinds: dict[str, pl.DataType | type[pl.DataType]] = {
        "product_id": pl.String,
        "picked": pl.String,
        "why": pl.List(pl.String),
    }
    wanted = pl.DataFrame([one.model_dump() for one in picks], kinds).with_row_index("place")
    open_rows = pl.col("reviewed_at").is_null() & pl.col("in_source") & (pl.col("status") == "ok")
    return _with_value(products).filter(open_rows).join(wanted, on="product_id").sort("place").drop("place")


def _with_value(products: pl.DataFrame) -> pl.DataFrame:
    """`products` with a column value_at_risk.

    That is the price times the probability that the category is wrong, plus half the width of the price interval, in
    units of the currency. The median of all prices replaces a missing one.
    """
    price = pl.coalesce("price", pl.lit(products["price"].median() or 1.0))
    doubt = 1 - pl.col("category_confidence").fill_null(0.0)
    width = (pl.col("price_high") - pl.col("price_low")).fill_null(0.0)
    return products.with_columns(value_at_risk=price * doubt + width / 2)


# What the page needs to read prices as `enrich.answers.amount` does.
_AMOUNTS = {
    "signs": SIGNS, "codes": sorted(CURRENCIES), "whole_units": sorted(WHOLE_UNITS), "multiples": MULTIPLES, "tax": TAX,
    "smallest": SMALLEST, "largest": LARGEST, "longest": LONGEST,
}  # fmt: skip


def render_queue(
    queue: pl.DataFrame,
    categories: Sequence[str],
    images: Store,
    limits: PhotoLimits,
    *,
    output: str,
    waiting: int,
    runs: Mapping[str, str],
    asked: Mapping[str, Asked],
    currency: str | None,
) -> str:
    """A self-contained page about the rows of `review_queue` or `picked_queue`.

    Args:
        categories: the choices.
        images: store of the photos; what cannot be read is left out.
        output: URI, repeated in the file of decisions.
        waiting: all rows that need review, or were picked.
        runs: the mark of each run that answered one of them (`run_mark`), repeated in the file of decisions.
        asked: what each of these runs could have answered.
        currency: of rows without one.
    """
    rows: list[dict[str, Any]] = queue.select(_KEPT).to_dicts()
    forms, form_of = _forms(asked)
    keys = [photo["key"] for row in rows for photo in row["photos"]]
    pictures = thumbnails(images, keys, limits, side_of(len(keys)))
    for row in rows:
        row["pictures"] = list(islice(pictures, len(row["photos"])))  # null where it cannot be read
        row["faults"] = [
            f"photo {number}: {fault}"
            for number, photo in enumerate(row["photos"], start=1)
            for fault in (*filter(None, [photo["error_kind"]]), *(photo["photo_issues"] or ()))
        ]
        row["photos"] = [{name: photo[name] for name in ("key", "etag", "sha256")} for photo in row["photos"]]
        row["currency"] = row["currency"] or currency
        row["form"] = form_of.get(row["run_id"], 0)
    identity = [[row["product_id"], row["photos"], row["run_id"]] for row in rows]
    data = {
        "format": FILE_FORMAT,
        "output": output,
        "runs": dict(runs),
        # Key under which the browser remembers unfinished work.
        "queue": hashlib.sha256(json.dumps([FORMAT_OF_MEMORY, output, identity, dict(runs)]).encode()).hexdigest()[:12],
        "categories": list(categories),
        "forms": forms,
        "rows": rows,
        "texts": {
            "longest": MAX_TITLE,
            "invisible": INVISIBLE,
            "joiner": JOINER_IN_WORD,
            "formula": FORMULA,
            "token": SPECIAL_TOKEN,
        },
        "amounts": _AMOUNTS,
    }
    words = [word for form in forms for field in form["fields"] for word in (field["label"], *field["values"])]
    page = template("review.html.jinja", escape=True).render(
        data=_inert(data), count=len(rows), waiting=waiting, output=output, further=bool(words),
        order="as enrich label picked them" if any(row["picked"] for row in rows) else "most value at risk first",
        language=han_language([*categories, *words, *(row["title"] for row in rows)]),
    )  # fmt: skip
    return _with_hashes(str(page))


def side_of(photos: int) -> int:
    """Pixels of the longer side of each photo, for that many photos on one page."""
    return next((side for side, size in SIDES.items() if photos * size <= PHOTO_BYTES), min(SIDES))


def _with_hashes(page: str) -> str:
    """The page with a policy that permits its own scripts, by their hashes, and no others."""
    digests = (hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(page))
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return page.replace(_HASHES, f"script-src {hashes}", 1)


def _forms(asked: Mapping[str, Asked]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The different forms for the declared fields of rows, the first an empty one, and the form of each run."""
    forms, form_of = [_form(Asked())], {}
    for run_id, one in asked.items():
        form = _form(one)
        if form not in forms:
            forms.append(form)
        form_of[run_id] = forms.index(form)
    return forms, form_of


def _form(asked: Asked) -> dict[str, Any]:
    kept = {"name", "label", "values", "review_below"}
    fields = [
        {
            **field.model_dump(include=kept),
            "closed": field.how.closed,
            "form": field.form,
            "about": field.about,
        }
        for field in asked.fields
    ]
    return {"unknown": asked.unknown, "fields": fields}


def _inert(data: object) -> Markup:
    """JSON that cannot open or close an HTML tag."""
    text = json.dumps(data, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
