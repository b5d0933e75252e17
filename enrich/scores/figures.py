"""Figures of a scored table (SCORE_SCHEMA) as SVG in data: URIs, so that a page needs no other file."""

import base64
import io
import warnings
from collections.abc import Callable
from itertools import accumulate
from typing import Any
from unicodedata import east_asian_width

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from enrich.answers.plain_text import excerpt
from enrich.scores.assess import ENOUGH
from enrich.scores.metrics import BINS, risk_coverage
from enrich.scores.shares import wilson

POINTS = 300  # in the price scatter: more make a grey cloud and a slow page
LABELS = 30  # categories drawn, largest first
MATRIX = 12  # categories of a matrix at most: the labels of more are too small to read
PAIRS = 15  # confusions named where there are more categories
WIDTH = 6.0  # inches
COLUMNS = 20  # of a category's name; Han, kana and Hangul are two columns wide
BLUE, RED, GREY = "#2458c5", "#c2410c", "#8a8a90"
_STYLE: Any = {  # rcParams
    "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#9a9aa0", "axes.labelcolor": "#1c1c1e", "svg.fonttype": "none", "svg.hashsalt": "enrich",
}  # fmt: skip


def price_scatter(table: pl.DataFrame) -> str | None:
    """True price against the estimate with its 90 % interval, red if it misses. None without prices."""
    known = table.filter(pl.col("price").is_not_null(), pl.col("price_low").is_not_null()).head(POINTS)
    if not known.height:
        return None
    true, said, low, high = (known[name].to_numpy() for name in ("price", "answered_price", "price_low", "price_high"))
    inside = (low <= true) & (true <= high)

    def draw(axes: Axes) -> None:
        for hit, colour, label in ((inside, BLUE, "inside"), (~inside, RED, "outside")):
            bars = np.abs(np.stack([said - low, high - said]))[:, hit]
            axes.errorbar(
                true[hit], said[hit], yerr=bars, fmt="o", ms=3, lw=0.7, alpha=0.55, color=colour,
                label=f"{label}: {hit.sum()}",
            )  # fmt: skip
        ends = [float(min(true.min(), low.min())), float(max(true.max(), high.max()))]
        axes.plot(ends, ends, color=GREY, lw=1, ls="--")
        axes.set(xscale="log", yscale="log", xlabel="true price", ylabel="estimate and 90 % interval")
        axes.legend(frameon=False, loc="upper left")

    return _svg(draw)


def reliability(table: pl.DataFrame) -> str | None:
    """How often categories are right by confidence, with 95 % intervals, above the number of rows."""
    known = table.drop_nulls("category_confidence")
    if not known.height:
        return None
    confidence = known["category_confidence"].to_numpy()
    right = known["category"].eq_missing(known["answered_category"]).to_numpy()
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    there = [b for b in range(BINS) if (index == b).any()]
    x, y = ([float(values[index == b].mean()) for b in there] for values in (confidence, right))
    ends = np.array([wilson(int(right[index == b].sum()), int((index == b).sum())) for b in there])

    def draw(axes: Axes) -> None:
        shares = np.bincount(index, minlength=BINS) / len(index)
        axes.bar((np.arange(BINS) + 0.5) / BINS, shares, width=0.9 / BINS, color="#dfe6f5", label="share of rows")
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
        bars = np.abs(ends.T - np.array(y))
        axes.errorbar(x, y, yerr=bars, fmt="o-", ms=4, lw=1, color=BLUE, label="share of correct answers")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="right")
        axes.legend(frameon=False, loc="upper left")

    return _svg(draw)


def coverage_by_category(table: pl.DataFrame) -> str | None:
    """Share of true prices in their 90 % intervals, by true category, with 95 % intervals; few rows are grey."""
    known = table.filter(pl.col("price").is_not_null(), pl.col("price_low").is_not_null())
    if not known.height:
        return None
    grouped = (
        known.group_by("category")
        .agg(rows=pl.len(), hits=pl.col("price").is_between(pl.col("price_low"), pl.col("price_high")).sum())
        .sort("rows", "category", descending=[True, False])
        .head(LABELS)
        .sort("category", descending=True)
    )

    def draw(axes: Axes) -> None:
        for y, (_, rows, hits) in enumerate(grouped.iter_rows()):
            low, high = wilson(hits, rows)
            colour = GREY if rows < ENOUGH else RED if high < 0.9 else BLUE
            axes.plot([low, high], [y, y], color=colour, lw=1.5)
            axes.plot([hits / rows], [y], "o", ms=5, color=colour)
        axes.axvline(0.9, color=GREY, lw=1, ls="--")
        names = [f"{_short(name)} ({rows})" for name, rows, _ in grouped.iter_rows()]
        axes.set(yticks=range(len(names)), yticklabels=names, xlim=(min(0.5, axes.get_xlim()[0]), 1.01),
                 xlabel="true prices inside the 90 % interval")  # fmt: skip

    return _svg(draw, height=max(2.5, 0.26 * grouped.height + 0.9), left=0.36)


def confusion(table: pl.DataFrame) -> str | None:
    """Share of each category's products (row) that was predicted as each category (column).

    Of more categories than a matrix has readable labels for, the most frequent confusions instead; None where there
    are none.
    """
    known = table.drop_nulls("answered_category")
    if not known.height:
        return None
    counts = known["category"].value_counts().sort("count", "category", descending=[True, False])
    if counts.height > MATRIX:
        return _most_confused(known, counts)
    names = sorted(counts["category"])
    place = {name: i for i, name in enumerate(names)}
    grid = np.zeros((len(names), len(names)))
    for true, said in known.select("category", "answered_category").iter_rows():
        if said in place:
            grid[place[true], place[said]] += 1
    shares = grid / np.array([max(int((known["category"] == name).sum()), 1) for name in names])[:, None]

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, j in zip(*np.nonzero(shares >= 0.02), strict=True):
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center",
                      color="white" if shares[i, j] > 0.6 else "#1c1c1e")  # fmt: skip
        short = [_short(name) for name in names]
        axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="answered", ylabel="true")
        axes.set_xticklabels(short, rotation=90)
        axes.set_yticklabels(short)

    side = max(4.2, 0.3 * len(names) + 2.5)
    return _svg(draw, height=side, left=2.4 / WIDTH, bottom=2.4 / side)


def _most_confused(known: pl.DataFrame, counts: pl.DataFrame) -> str | None:
    """The pairs of categories that are confused most often, and how many products are."""
    pairs = (
        known.filter(pl.col("category") != pl.col("answered_category"))
        .group_by("category", "answered_category")
        .agg(rows=pl.len())
        .join(counts, on="category")
        .sort("rows", "category", "answered_category", descending=[True, False, False])
        .head(PAIRS)
        .reverse()
    )
    if not pairs.height:
        return None

    def draw(axes: Axes) -> None:
        shares = [100 * row["rows"] / row["count"] for row in pairs.iter_rows(named=True)]
        axes.barh(range(pairs.height), pairs["rows"].to_list(), color="#b9c8ea")
        for y, (row, share) in enumerate(zip(pairs.iter_rows(named=True), shares, strict=True)):
            said = f" {row['rows']} of {row['count']} ({share:.0f} %)"
            axes.text(0, y, said, va="center")
        names = [f"{_short(row['category'])}\n\u2192 {_short(row['answered_category'])}" for row in pairs.to_dicts()]
        axes.set(yticks=range(pairs.height), yticklabels=names, xlabel="products; true \u2192 answered",
                 xlim=(0, max(pairs["rows"]) * 1.05))  # fmt: skip

    return _svg(draw, height=max(2.0, 0.45 * pairs.height + 0.9), left=0.37)


def risk_curve(table: pl.DataFrame) -> str | None:
    """Share of wrong categories among the most confident rows, by how many of them are answered."""
    known = table.drop_nulls("category_confidence")
    if not known.height:
        return None
    right = known["category"].eq_missing(known["answered_category"]).to_list()
    coverage, risk = risk_coverage(known["category_confidence"].to_list(), right)

    def draw(axes: Axes) -> None:
        axes.plot(coverage, risk, color=BLUE, lw=1.5)
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="rows answered, most confident first", ylabel="wrong categories")

    return _svg(draw)


FIGURES: dict[str, tuple[str, Callable[[pl.DataFrame], str | None]]] = {
    "price": ("Prices, true and estimated", price_scatter),
    "coverage": ("Coverage of the price intervals by category", coverage_by_category),
    "reliability": ("Is the confidence right?", reliability),
    "risk": ("Risk and coverage", risk_curve),
    "confusion": ("Which categories are confused", confusion),
}


def draw_all(table: pl.DataFrame) -> list[tuple[str, str]]:
    """(caption, data: URI) of each figure for which the table has rows."""
    return [(caption, drawn) for caption, figure in FIGURES.values() if (drawn := figure(table))]


def _short(name: str) -> str:
    columns = accumulate(1 + (east_asian_width(letter) in "WF") for letter in name)
    fitting = sum(1 for column in columns if column <= COLUMNS)
    return (name if fitting == len(name) else excerpt(name, fitting)).replace("$", r"\$")


def _svg(
    draw: Callable[[Axes], None],
    height: float = 4.0,
    left: float = 0.12,
    bottom: float | None = None,
) -> str:
    # pyplot would keep figures and choose a backend for the whole process.
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        # Fixed margins: to compute them, matplotlib would draw everything twice.
        below = bottom or 0.55 / height
        draw(figure.add_axes((left, below, 0.97 - left, 0.97 - below)))
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # Text stays text in the SVG: a browser draws it, and finds a font for each character.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
