"""Pages and tables for people: run reports, scores, model cards. Text from models is untrusted and escaped."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import TypeAdapter

from enrich.answers.amount import digits, money
from enrich.answers.plain_text import excerpt
from enrich.answers.prompt import Prompt
from enrich.errors import shell
from enrich.pages.attributes import attribute_scores, attribute_summary, attribute_text, spoken
from enrich.pages.han import han_language
from enrich.pages.looks import looks_table
from enrich.pages.pictures import THUMBNAIL, failed_products, photo_issues, sheet_products
from enrich.pages.units import amount, describe_bottleneck, duration, wrapped
from enrich.phases import Start, describe_start
from enrich.scores.metrics import Scores
from enrich.settings.photos import PhotoLimits
from enrich.storage import Store, real_place

# What fits side by side in a table of the UI at 1,300 pixels, which leave it 730.
SUMMARY_COLUMNS, SHEET_COLUMNS = 72, 38
SAMPLE = 1000  # titles that show the language of all
CATEGORIES_SHOWN = 30
MDAPE, WITHIN = "price MdAPE", "price within 20 %"  # columns of the score table


def render_report(
    record: Mapping[str, Any],
    rows: pl.DataFrame,
    images: Store,
    limits: PhotoLimits,
    *,
    output: str,
    scores: pl.DataFrame | None = None,
    verdicts: Sequence[Mapping[str, Any]] = (),
    parity: Mapping[str, Any] | None = None,
) -> str:
    """A self-contained HTML page about one run.

    Args:
        record: run.json as a mapping.
        rows: the run's rows, columns of ROW_SCHEMA.
        images: store of the photos on the contact sheet; missing ones are left out.
        limits: applied to those photos.
        output: the URI of the output, for the commands on the page.
        scores: the adapter's answers on its test split (SCORE_SCHEMA), if it has them.
        verdicts: findings about the adapter's scores (`scores.assess`).
        parity: `ok` and `summary` of the comparison with the trained model, if the run made one.
    """
    failed = rows.filter(pl.col("status") == "failed")
    categories, currency = _categories(rows), usual_currency(rows)
    scored = None
    if scores is not None and scores.height:
        scored = {"rows": scores.height, "verdicts": verdicts, "figures": _figures(scores)}
    return template("report.html.jinja", escape=True).render(
        record=record,
        output=real_place(output),
        currency=currency,
        stages=record["stages"],
        start=_start(record),
        failed=failed_products(failed, images, limits),
        failed_total=failed.height,
        categories=categories.head(CATEGORIES_SHOWN).to_dicts(),
        reasons=rows["review_reasons"].explode().drop_nulls().value_counts().sort("count", descending=True).rows(),
        attributes=attribute_summary(rows),
        issues=photo_issues(rows, images, limits),
        looked_twice=rows.filter(looks=2).height / max(rows.height, 1),
        compared=_beside(record["stats"], record["previous"], currency),
        shown=sheet_products(rows, images, limits),
        language=han_language(chain(rows["title"].head(SAMPLE), categories["category"])),
        scored=scored,
        observed=observed_lines(record),
        parity=parity,
    )


def render_scores(table: pl.DataFrame, metrics: Mapping[str, Any], what: str, adapter: str) -> str:
    """A self-contained HTML page of an adapter's scores: verdicts, metrics with error bars, plots.

    Args:
        table: SCORE_SCHEMA; `metrics` are those of it, as in metrics.json.
        what: which rows of which catalog.
    """
    return template("scores.html.jinja", escape=True).render(
        metrics=metrics,
        table=score_table(metrics),
        fields=attribute_scores(metrics),
        figures=_figures(table),
        what=what,
        adapter=adapter,
    )


def _categories(rows: pl.DataFrame) -> pl.DataFrame:
    """The categories of the answers, the most frequent first, with mean confidence, median price, share to review."""
    return (
        rows.filter(pl.col("status") == "ok")
        .group_by("category")
        .agg(
            pl.len(),
            confidence=pl.col("category_confidence").mean(),
            price=pl.col("price").median(),
            review=pl.col("needs_review").mean(),
        )
        .sort("len", "category", descending=[True, False])
    )


def _figures(scores: pl.DataFrame) -> list[tuple[str, str]]:
    from enrich.scores.figures import draw_all  # matplotlib takes a second to import, and only pages need it

    return draw_all(scores)


def observed_lines(record: Mapping[str, Any]) -> list[str]:
    """What people found about each field of a run's adapter (run.json), one line each without a full stop."""
    return [_observed_line(one) for one in (record.get("observed") or {"fields": ()})["fields"]]


def _observed_line(one: Mapping[str, Any]) -> str:
    what = "outside its interval" if one["field"] == "price" else "wrong"
    claim = "" if one["claimed"] is None else f"; the confidences predict {one['claimed']:.1%}"
    return (
        f"{spoken(one['field'])} {what} in {one['wrong']:.1%} ({one['low']:.1%} to {one['high']:.1%}) of "
        f"{one['decisions']:,} products picked at random{claim}"
    )


def usual_currency(rows: pl.DataFrame) -> str | None:
    """The most frequent currency of a run's rows."""
    found = rows["currency"].drop_nulls().value_counts().sort("count", "currency", descending=[True, False])
    return str(found["currency"][0]) if found.height else None


def _beside(
    now: Mapping[str, Any] | None, before: Mapping[str, Any] | None, currency: str | None
) -> list[tuple[str, str, str]]:
    """(name, at the last comparable run, now) of the numbers that the publish gate checks."""
    if not now or not before or not now["rows"]:
        return []

    def shares(stats: Mapping[str, Any]) -> dict[str, str]:
        largest = max(stats["category_mix"].items(), key=lambda item: item[1], default=("none", 0.0))
        return {
            "products": f"{stats['rows']:,}",
            "failed": f"{stats['failed'] / stats['rows']:.1%}",
            "to review": f"{stats['review'] / stats['rows']:.1%}",
            "largest category": f"{largest[0]} {largest[1]:.1%}",
            "median price": "-" if stats["price_median"] is None else amount(stats["price_median"], currency),
        }

    then, current = shares(before), shares(now)
    return [(name, then[name], current[name]) for name in current]


def render_card(train: Mapping[str, Any], metrics: Mapping[str, Any], prompt: Prompt) -> str:
    """An adapter's model card in Markdown, from its train.json and metrics.json. Every text in it is escaped."""
    return template("card.md.jinja", escape=False).render(
        train=train, metrics=metrics, prompt=prompt, table=score_table(metrics), fields=attribute_scores(metrics),
        looks=looks_table(metrics),
    )  # fmt: skip


def render_summary(record: Mapping[str, Any], output: str, *, deciding: bool = False) -> str:
    """A run (run.json) in half a page of Markdown for Prefect's UI. Every value is escaped.

    Args:
        deciding: the form below it asks whether to release a held run, so no command is named.
    """
    output = real_place(output)
    report = f"{output}/runs/{record['run']['run_id']}/report.html"
    uses = record["stages"]["uses"] if record["stages"] else ()
    times = ", ".join(f"{use['stage']} {duration(use['seconds'])}" for use in uses)
    page = template("summary.md.jinja", escape=False, finalize=_escaped)
    bottleneck = describe_bottleneck(record["stages"]) if record["stages"] else ""
    return page.render(
        record=record, output=output, report=report, times=times, bottleneck=bottleneck,
        observed=observed_lines(record), start=_start(record), deciding=deciding,
    )  # fmt: skip


def _start(record: Mapping[str, Any]) -> str | None:
    found = TypeAdapter(Start | None).validate_python(record.get("start"))  # older records have none
    return describe_start(found) if found else None


def _markdown_text(value: object) -> str:
    """`value` as literal text on one line: without markup, table cells, HTML or links."""
    line = " ".join(str(value).split())
    return html.escape(re.sub(r"([!-%'-/:;=?@\[-`{-~])", r"\\\1", line), quote=False)


class _Written(str):
    """Markdown that is already escaped."""


def _escaped(value: object) -> str:
    return value if isinstance(value, _Written) else _markdown_text(value)


def _cell(value: object, columns: int = SUMMARY_COLUMNS) -> _Written:
    """`value` in a table cell, escaped, in short lines: the UI does not wrap lines, it cuts them off."""
    return _Written("<br>".join(map(_markdown_text, wrapped(str(value), columns))))


def render_sheet(rows: pl.DataFrame, images: Store, limits: PhotoLimits, most: int) -> str:
    """At most `most` of a run's products with their photos and answers, as a Markdown table. Every value is escaped."""
    lines = ["| photos | product | to review |", "| --- | --- | --- |"]
    several = rows["photos"].list.len().max() or 0
    for row in sheet_products(rows, images, limits, THUMBNAIL if several == 1 else THUMBNAIL // 2)[:most]:
        sure = "" if row["category_confidence"] is None else f" ({row['category_confidence']:.0%})"
        review = [reason.replace("_", " ") for reason in row["review_reasons"] or ()]
        answer = (
            row["product_id"], excerpt(row["title"]), f"{row['category']}{sure}", _priced(row),
            attribute_text(row["attributes"]),
        )  # fmt: skip
        told = (("<br>".join(_cell(line, SHEET_COLUMNS) for line in texts if line)) for texts in (answer, review))
        pairs = (row["thumbnails"][start : start + 2] for start in range(0, len(row["thumbnails"]), 2))
        pictures = "<br>".join(" ".join(f"![photo]({picture})" for picture in pair) for pair in pairs)
        lines.append(f"| {pictures} | {' | '.join(told)} |")
    return "\n".join(lines)


def _priced(row: Mapping[str, Any]) -> str:
    """A row's price and its interval: `1,200 EUR (900 to 1,500)`; empty without a price."""
    if row["price"] is None:
        return ""
    text, currency = f"{amount(row['price'], row['currency'])} {row['currency'] or ''}".rstrip(), row["currency"]
    if row["price_low"] is None or row["price_high"] is None:
        return text
    low, high = (amount(row[end], currency, row["price"]) for end in ("price_low", "price_high"))
    return f"{text} ({low} to {high})"


def score_table(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """(who, {column: value}) for the adapter, its base and the baselines, as text ready to print.

    On a sample catalog also the best possible: the price errors of an estimator that knows everything visible.
    """
    names = {"adapter": metrics["test"], "base without adapter": metrics.get("base"), **metrics["baselines"]}
    rows = [(name.replace("_", " "), _columns(scores)) for name, scores in names.items() if scores]
    if ideal := metrics.get("ideal"):
        best = {MDAPE: f"{ideal['price_mdape']:.1%}", WITHIN: f"{ideal['price_within_20_percent']:.1%}"}
        rows.append(("best possible", {column: best.get(column, "-") for column in rows[0][1]}))
    return rows


def _columns(scores: Scores) -> dict[str, str]:
    price = scores["price"]
    return {
        "parsed": f"{scores['parse_rate']:.1%}",
        "category accuracy": f"{scores['category_accuracy']:.1%}",
        "macro F1": f"{scores['category_macro_f1']:.3f}",
        "title exact": f"{scores['title_exact']:.1%}",
        "title token F1": f"{scores['title_token_f1']:.3f}",
        "title edit score": f"{scores['title_edit_similarity']:.3f}",
        MDAPE: f"{price['mdape']:.1%}" if price else "-",
        WITHIN: f"{price['within_20_percent']:.1%}" if price else "-",
    }


def template(name: str, *, escape: bool, finalize: Callable[[object], object] | None = None) -> Any:
    """A template of this package; `finalize` changes each of its values."""
    environment = Environment(
        loader=PackageLoader("enrich.pages", "templates"), autoescape=escape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=finalize,
    )  # fmt: skip
    environment.filters |= {
        "amount": amount, "bottleneck": describe_bottleneck, "cell": _cell, "digits": digits, "duration": duration,
        "money": money, "plain": _markdown_text, "shell": shell, "spoken": spoken,
        "word": lambda value: _Written(shell(value)),
    }  # fmt: skip
    return environment.get_template(name)
