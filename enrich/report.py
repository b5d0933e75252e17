"""What people read: the report of a run, and an adapter's model card. Model text is untrusted and escaped."""

import base64
import html
import io
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from enrich.images import ImageRefused, decode
from enrich.metrics import Scores
from enrich.prompt import Prompt
from enrich.settings import PhotoLimits
from enrich.stages import duration
from enrich.storage import StorageError, Store, is_s3

THUMBNAIL = 160  # pixels on the longer side; about 5 kB each as JPEG
SHEET = 24  # photos on the contact sheet


@dataclass(frozen=True)
class Shown:
    """One photo of the contact sheet with what was said of it."""

    row: Mapping[str, Any]
    thumbnail: str  # a data: URI


def render_report(record: Mapping[str, Any], rows: pl.DataFrame, images: Store, limits: PhotoLimits) -> str:
    """A self-contained HTML page about one run.

    Args:
        record: run.json as a mapping.
        rows: the run's rows, columns of ROW_SCHEMA.
        images: where the photos of the contact sheet are read from; those that are gone are left out.
        limits: applied to those photos.
    """
    failed = rows.filter(pl.col("status") == "failed").sort("error_kind", "image_key")
    categories = rows.filter(pl.col("status") == "ok").group_by("category").len().sort("len", descending=True)
    return _template("report.html.jinja", escape=True).render(
        record=record,
        stages=record["stages"],
        failed=failed.head(200).to_dicts(),
        failed_total=failed.height,
        categories=categories.head(30).to_dicts(),
        shown=_contact_sheet(rows, images, limits),
    )


def render_card(train: Mapping[str, Any], metrics: Mapping[str, Any], prompt: Prompt) -> str:
    """An adapter's model card in Markdown, from its train.json and metrics.json."""
    return _template("card.md.jinja", escape=False).render(
        train=train, metrics=metrics, prompt=prompt, table=score_table(metrics)
    )


def render_summary(record: Mapping[str, Any], output: str) -> str:
    """A run on half a page of Markdown, for where a run is looked at first. Every value in it is escaped.

    Args:
        record: run.json as a mapping.
        output: the run's output; the full report lies in it.
    """
    output = output.rstrip("/") if is_s3(output) else str(Path(output).absolute())
    report = f"{output}/runs/{record['run']['run_id']}/report.html"
    template = _template("summary.md.jinja", escape=False, finalize=_markdown_text)
    uses = record["stages"]["uses"] if record["stages"] else ()
    times = ", ".join(f"{use['stage']} {duration(use['seconds'])}" for use in uses)
    return template.render(record=record, output=output, report=report, times=times)


def _markdown_text(value: object) -> str:
    """`value` as it is read, on one line: no markup, no table cell, no HTML, no link of its own."""
    line = " ".join(str(value).split())
    return html.escape(re.sub(r"([!-%'-/:;=?@\[-`{-~])", r"\\\1", line), quote=False)


def render_sheet(rows: pl.DataFrame, images: Store, limits: PhotoLimits, most: int) -> str:
    """At most `most` of a run's photos with what was said of them, as a Markdown table. Every value is escaped."""
    # The title last and cut: the UI breaks no lines in a table.
    lines = ["| photo | category | price | to review | title |", "| --- | --- | ---: | --- | --- |"]
    for item in _contact_sheet(rows, images, limits)[:most]:
        row = item.row
        sure = "" if row["category_confidence"] is None else f" ({row['category_confidence']:.0%})"
        price = "" if row["price"] is None else f"{row['price']:,.0f} {row['currency'] or ''}"
        between = "" if row["price_low"] is None else f" ({row['price_low']:,.0f} to {row['price_high']:,.0f})"
        review = ", ".join(row["review_reasons"] or ())
        cells = (
            f"{row['category']}{sure}",
            price + between,
            review,
            textwrap.shorten(row["title"], 80, placeholder="…"),
        )
        lines.append(f"| ![photo]({item.thumbnail}) | {' | '.join(map(_markdown_text, cells))} |")
    return "\n".join(lines)


def score_table(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """(who, {column: value}) for the adapter, its base and the baselines, as text ready to print."""
    names = {"adapter": metrics["test"], "base without adapter": metrics.get("base"), **metrics["baselines"]}
    return [(name.replace("_", " "), _columns(scores)) for name, scores in names.items() if scores]


def _columns(scores: Scores) -> dict[str, str]:
    price = scores["price"]
    return {
        "parsed": f"{scores['parse_rate']:.1%}",
        "category accuracy": f"{scores['category_accuracy']:.1%}",
        "macro F1": f"{scores['category_macro_f1']:.3f}",
        "title exact": f"{scores['title_exact']:.1%}",
        "title token F1": f"{scores['title_token_f1']:.3f}",
        "price MdAPE": f"{price['mdape']:.1%}" if price else "-",
        "price within 20 %": f"{price['within_20_percent']:.1%}" if price else "-",
    }


def _contact_sheet(rows: pl.DataFrame, images: Store, limits: PhotoLimits) -> list[Shown]:
    # By the hash of the content: an arbitrary sample, the same at every rendering.
    chosen = rows.filter(pl.col("status") == "ok").sort("image_sha256", "image_key").head(SHEET)
    shown = []
    for row in chosen.to_dicts():
        try:
            photo = decode(images.get(row["image_key"], limits.max_bytes)[0], limits)
        except (StorageError, ImageRefused):
            continue
        shown.append(Shown(row, _data_uri(photo)))
    return shown


def _data_uri(photo: Image.Image) -> str:
    photo.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _template(name: str, *, escape: bool, finalize: Callable[[object], str] | None = None) -> Any:
    environment = Environment(
        loader=PackageLoader("enrich", "templates"), autoescape=escape, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=finalize,
    )  # fmt: skip
    environment.filters["duration"] = duration
    return environment.get_template(name)
