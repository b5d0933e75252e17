"""Metrics with error bars, and verdicts in words, for a table of held-out products and answers (SCORE_SCHEMA)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import polars as pl

from enrich.scores import hierarchy, metrics
from enrich.scores.fields import field_columns, field_metrics, field_names
from enrich.scores.metrics import Columns, compared, expected_calibration_error, mean_of, risk_coverage
from enrich.vocabulary import ErrorKind, same_design

SCORES_FILE = "scores.parquet"  # next to metrics.json: the test split, one row per answer
VERDICTS_KEY = "enrich.verdicts"  # key in its metadata: runs show verdicts without recomputing them
RESAMPLES = 400  # of the bootstrap: this gives the ends of a 95 % interval to about a tenth of its width
ENOUGH = 50  # rows of a category below which its coverage is noise: a standard error of 4 points at 90 %
TOLERANCE = 0.06  # how far a category's coverage may fall short of the level
INTERVAL_COLUMNS = {0.9: ("price_low", "price_high"), 0.8: ("price_low_80", "price_high_80")}
_NORMAL_90 = 1.645  # half width of the central 90 % of N(0, 1)


class Estimate(TypedDict):
    """A metric with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Verdict(TypedDict):
    """A one-line finding, and whether it meets the target."""

    ok: bool
    text: str


def assess(
    table: pl.DataFrame,
    *,
    sigma: float | None = None,
    ideal_width: float | None = None,
    calibrated_on: int = 0,
    paths: Mapping[str, tuple[str, ...]] = {},
) -> dict[str, Any]:
    """Every metric of a scored table, ready for metrics.json.

    Args:
        table: SCORE_SCHEMA, at least one row.
        sigma: spread of the log price given the visible attributes, if known (sample catalogs).
        ideal_width: log(high / low) of the narrowest valid 90 % interval, if known better than from sigma.
        calibrated_on: number of designs that the intervals were fitted on; 0 treats their coverage as exact.
        paths: the levels of each category, if it has any.

    The bootstrap samples designs, not rows, because photos of one design share its error. A metric without rows is
    omitted.
    """
    columns = _columns(table) | hierarchy.hierarchy(table, paths) | field_columns(table)
    designs = _designs(table)
    names = field_names(table)
    estimates = _estimates(columns, designs, METRICS | field_metrics(names))
    intervals = {f"{level:.0%}": _intervals(table, level) for level in INTERVAL_COLUMNS}
    found: dict[str, Any] = {
        "estimates": estimates,
        "fields": list(names),
        "coverage_by_category": intervals,
        "category_by_level": hierarchy.by_level(table, paths),
        "risk_coverage": _curve(columns),
        "review": _review(table),
        "ideal": _ideal(table, sigma, ideal_width),
    }
    chance = math.sqrt(1 + len(designs) / calibrated_on) if calibrated_on else 1.0
    return {**found, "verdicts": _verdicts(found, table, chance)}


def _columns(table: pl.DataFrame) -> dict[str, np.ndarray]:
    def floats(name: str) -> np.ndarray:
        return table[name].cast(pl.Float64).fill_null(math.nan).to_numpy()

    columns = {
        **compared(table),
        "truncated": table["error_kind"].fill_null("").eq(ErrorKind.ANSWER_TRUNCATED.value).to_numpy(),
        "confidence": floats("category_confidence"),
        "crps": floats("price_crps"),
        "review": table["needs_review"].to_numpy(),
    }
    price = columns["price"]
    for level, names in INTERVAL_COLUMNS.items():
        low, high = map(floats, names)
        unknown = np.isnan(low) | np.isnan(price)
        columns[f"inside_{level:.0%}"] = np.where(unknown, math.nan, (low <= price) & (price <= high))
        columns[f"width_{level:.0%}"] = np.log(high / low)
    return columns


def _designs(table: pl.DataFrame) -> list[np.ndarray]:
    keyed = table.select(design=pl.Series([same_design(title) for title in table["title"]])).with_row_index("row")
    rows = keyed.group_by("design", maintain_order=True).agg("row")["row"].to_list()
    return [np.array(group) for group in rows]


def _estimates(
    columns: Columns, groups: Sequence[np.ndarray], metrics: Mapping[str, Callable[[Columns], float]]
) -> dict[str, Estimate]:
    values = {name: value for name, metric in metrics.items() if not math.isnan(value := metric(columns))}
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(RESAMPLES):
        rows = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        resampled = {name: column[rows] for name, column in columns.items()}
        for name, found in drawn.items():
            found.append(metrics[name](resampled))
    ends = {name: np.nanquantile(found, [0.025, 0.975]) for name, found in drawn.items()}
    return {
        name: Estimate(value=value, low=float(ends[name][0]), high=float(ends[name][1]))
        for name, value in values.items()
    }


def _ece(columns: Columns) -> float:
    known = ~np.isnan(columns["confidence"])
    if not known.any():
        return math.nan
    return expected_calibration_error(columns["confidence"][known], columns["right"][known])


def _risk_area(columns: Columns) -> float:
    return float(risk_coverage(np.nan_to_num(columns["confidence"]), columns["right"])[1].mean())


def _caught(columns: Columns) -> float:
    wrong = columns["answered"] & ~columns["right"]
    return float(columns["review"][wrong].mean()) if wrong.any() else math.nan


METRICS: dict[str, Callable[[Columns], float]] = {
    **metrics.METRICS,
    **hierarchy.METRICS,
    "stop_rate": lambda columns: float(1 - columns["truncated"].mean()),
    "category_ece": _ece,
    "category_risk_area": _risk_area,  # under the risk-coverage curve; 0 is best
    "price_crps": mean_of("crps"),
    **{f"price_coverage_{level:.0%}": mean_of(f"inside_{level:.0%}") for level in INTERVAL_COLUMNS},
    **{f"price_width_{level:.0%}": mean_of(f"width_{level:.0%}") for level in INTERVAL_COLUMNS},  # log(high / low)
    "review_share": mean_of("review"),
    "review_catches_wrong_categories": _caught,
}


def _intervals(table: pl.DataFrame, level: float) -> dict[str, dict[str, float]]:
    """Category -> rows with an interval and a known price, and the share of these prices in the interval."""
    low, high = INTERVAL_COLUMNS[level]
    known = table.filter(pl.col(low).is_not_null(), pl.col("price").is_not_null())
    grouped = known.group_by("category").agg(
        rows=pl.len(), coverage=pl.col("price").is_between(pl.col(low), pl.col(high)).mean()
    )
    return {name: {"rows": rows, "coverage": share} for name, rows, share in grouped.sort("category").iter_rows()}


def _curve(columns: Columns) -> list[tuple[float, float]]:
    coverage, risk = risk_coverage(np.nan_to_num(columns["confidence"]), columns["right"])
    picked = np.unique(np.ceil(np.arange(1, 21) / 20 * len(risk)).astype(int)) - 1
    return [(float(coverage[i]), float(risk[i])) for i in picked]


def _review(table: pl.DataFrame) -> dict[str, Any]:
    reasons = table["review_reasons"].explode().drop_nulls().value_counts().sort("review_reasons")
    return {"rows": int(table["needs_review"].sum()), "by_reason": dict(reasons.iter_rows())}


def _ideal(table: pl.DataFrame, sigma: float | None, width: float | None) -> dict[str, float] | None:
    """The best possible on a sample catalog: errors of the noiseless price, and the interval for a known sigma."""
    known = table.filter(pl.col("best_price").is_not_null(), pl.col("price").is_not_null())
    if sigma is None or not known.height:
        return None
    true, best = known["price"].to_numpy(), known["best_price"].to_numpy()
    error = np.log(best / true)
    return {
        "price_mdape": float(np.median(np.abs(best / true - 1))),
        "price_rmsle": float(np.sqrt(np.mean(error**2))),
        "price_within_20_percent": float(np.mean(np.abs(best / true - 1) <= 0.2)),
        "price_coverage_90%": float(np.mean(np.abs(error) <= _NORMAL_90 * sigma)),
        "price_width_90%": width or 2 * _NORMAL_90 * sigma,
        "price_crps": sigma / math.sqrt(math.pi),  # of N(0, sigma), on average over itself
    }


def _verdicts(found: Mapping[str, Any], table: pl.DataFrame, chance: float) -> list[Verdict]:
    """The verdicts on all targets. Coverage may fall short of its level by `chance` times its bootstrap error: the
    designs that the quantiles were fitted on are a sample too, whose error is added."""
    estimates, verdicts = found["estimates"], list[Verdict]()
    for level in INTERVAL_COLUMNS:
        if coverage := estimates.get(f"price_coverage_{level:.0%}"):
            share = f"{coverage['value']:.1%} of the true prices are inside their {level:.0%} intervals"
            between = f"95 % interval {coverage['low']:.1%} and {coverage['high']:.1%}"
            if broke := coverage["value"] + chance * (coverage["value"] - coverage["low"]) < level:
                share = f"Coverage broke: {share}"
                between += "; these products differ from those it was calibrated on: do not rely on the intervals"
            verdicts.append(Verdict(ok=not broke, text=f"{share} ({between})"))
            by_category = found["coverage_by_category"][f"{level:.0%}"]
            short = [
                f"{name} {one['coverage']:.0%} of {one['rows']}"
                for name, one in by_category.items()
                if one["rows"] >= ENOUGH and one["coverage"] < level - TOLERANCE
            ]
            if short:
                text = f"Fewer than {level - TOLERANCE:.0%} of the prices inside their {level:.0%} intervals: "
                verdicts.append(Verdict(ok=False, text=text + ", ".join(short)))
    if ece := estimates.get("category_ece"):
        mean = table["category_confidence"].mean()
        share = f"{estimates['category_accuracy']['value']:.1%} of the categories are right"
        sure = f"the confidence says {mean:.1%} on average" if isinstance(mean, float) else ""
        off = ece["low"] > 0.05
        verdicts.append(Verdict(ok=not off, text=f"{'Confidence broke: ' if off else ''}{share}, {sure}; expected "
                                f"calibration error {ece['value']:.3f}"))  # fmt: skip
    if caught := estimates.get("review_catches_wrong_categories"):
        share = estimates["review_share"]["value"]
        text = f"Review catches {caught['value']:.0%} of the wrong categories in {share:.0%} of the rows"
        verdicts.append(Verdict(ok=True, text=text))
    return verdicts
