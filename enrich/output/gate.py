"""Decide whether a run may be published: check its adapter, and its statistics against limits and the last run."""

import math

import polars as pl

from enrich.output.run_record import Changes, Finding, RunStats
from enrich.scores.worth import Worth
from enrich.settings.run import GateSettings
from enrich.vocabulary import ErrorKind, ReviewReason

FEW = 10  # from this many rows on, "all of them" is not a coincidence, even in a run that is too small for shares


def run_stats(rows: pl.DataFrame | pl.LazyFrame) -> RunStats:
    """The statistics that the gate compares, from a run's rows (ROW_SCHEMA)."""
    scan, ok, failed = rows.lazy(), pl.col("status") == "ok", pl.col("status") == "failed"
    failed_unknown = pl.col("error_kind").eq_missing(pl.lit(ErrorKind.CATEGORY_UNKNOWN))
    flagged_unknown = pl.col("review_reasons").list.contains(ReviewReason.CATEGORY_UNKNOWN)
    kinds = scan.filter(failed).group_by("error_kind").len().sort("error_kind")
    mix = scan.filter(ok).drop_nulls("category").group_by("category").len().sort("category")
    counted = scan.select(
        rows=pl.len(),
        ok=ok.sum(),
        failed=failed.sum(),
        unknown=(failed_unknown | flagged_unknown).sum(),
        review=pl.col("needs_review").sum(),
        # Minimum and maximum instead of a distinct count: there are as many titles as rows.
        first_title=pl.col("title").filter(ok).min(),
        last_title=pl.col("title").filter(ok).max(),
        products=(pl.col("product_id").filter(ok).min() != pl.col("product_id").filter(ok).max()),
    )
    prices = scan.filter(ok).drop_nulls("price").group_by("price").len().sort("price")  # far fewer than rows
    counts, by_kind, by_category, by_price = pl.collect_all([counted, kinds, mix, prices], engine="streaming")
    [count] = counts.to_dicts()
    return RunStats(
        rows=count["rows"],
        ok=count["ok"],
        failed=count["failed"],
        failed_by_kind=dict(by_kind.iter_rows()),
        unknown_category=count["unknown"],
        review=count["review"],
        category_mix={category: number / count["ok"] for category, number in by_category.iter_rows()},
        price_median=_median(by_price),
        same_title=count["first_title"] if count["products"] and count["first_title"] == count["last_title"] else None,
    )


def _median(counted: pl.DataFrame) -> float | None:
    """The median of prices given with their counts: columns price, ascending, and len."""
    below, rows = counted["len"].cum_sum(), counted["len"].sum()
    if not rows:
        return None
    lower, upper = (counted["price"][below.search_sorted(place, "right")] for place in ((rows - 1) // 2, rows // 2))
    return float((lower + upper) / 2)


def judge_run(
    stats: RunStats, previous: RunStats | None, gate: GateSettings, worth: Worth | None = None
) -> tuple[Finding, ...]:
    """The limits of `gate` that a run exceeds; empty if it may be published.

    A weak adapter and a single title for all products are findings in a run of any size. Shares are checked from
    gate.min_rows products on; from FEW on, only total failure is a finding: all failed, or none has a category.

    `previous` is of the last published run of at least gate.min_rows products (LastRuns.stats); without it only the
    absolute limits apply, and without `worth` the adapter is not judged.
    """
    if not gate.enabled or not stats.rows:
        return ()
    checks = _of_any_size(stats, gate, worth)
    if stats.rows >= gate.min_rows:
        checks += _absolute(stats, gate)
        if previous is not None:
            checks += _since(previous, stats, gate)
    elif stats.rows >= FEW:
        checks += [finding for finding in _absolute(stats, gate) if finding.value == 1.0]
    return tuple(finding for finding in checks if finding.value > finding.allowed)


def judge_gone(changes: Changes, gate: GateSettings) -> tuple[Finding, ...]:
    """The limit of `gate` that products gone from the source exceed, if they do: the listing may be incomplete.

    Products without an answer do not count, because no answer is lost with them.
    """
    if not gate.enabled or not changes.answered:
        return ()
    small = changes.answered < gate.min_rows
    what = f"{changes.gone_answered:,} of {changes.answered:,} answered products are gone from the source"
    allowed = max(gate.max_gone, 0.5) if small else gate.max_gone
    finding = _finding("max_gone", changes.gone_answered / changes.answered, allowed, what)
    return (finding,) if finding.value > finding.allowed else ()


def _of_any_size(stats: RunStats, gate: GateSettings, worth: Worth | None) -> list[Finding]:
    findings = []
    if worth is not None and worth.state == "weak":
        message = f"{worth.text}; use a better adapter, or set gate.allow_weak_adapter if this is right"
        findings.append(Finding("allow_weak_adapter", 1.0, float(gate.allow_weak_adapter), message))
    if stats.same_title is not None and stats.ok >= FEW:
        message = (
            f"all {stats.ok:,} products with an answer got the title {stats.same_title!r}; "
            "fine-tune again, or set gate.allow_same_title if this is right"
        )
        findings.append(Finding("allow_same_title", 1.0, float(gate.allow_same_title), message))
    return findings


def _absolute(stats: RunStats, gate: GateSettings) -> list[Finding]:
    kind = max(stats.failed_by_kind, key=lambda name: stats.failed_by_kind[name], default="none")
    failed = f"{stats.failed:,} of {stats.rows:,} products failed, most often with {kind}"
    unknown = f"{stats.unknown_category:,} of {stats.rows:,} products got no category from the taxonomy"
    return [
        _finding("max_failed", stats.failed / stats.rows, gate.max_failed, failed),
        _finding("max_unknown_category", stats.unknown_category / stats.rows, gate.max_unknown_category, unknown),
    ]


def _since(previous: RunStats, stats: RunStats, gate: GateSettings) -> list[Finding]:
    # The share to review has no limit of its own: a weak model's answers are flagged row by row, and may be the best
    # available; only a sudden rise is a finding.
    now, before = stats.review / stats.rows, previous.review / previous.rows
    what = f"{stats.review:,} of {stats.rows:,} products need review, {now:.0%} after {before:.0%}"
    findings = [_finding("max_review_rise", now - before, gate.max_review_rise, what)]

    mix, old_mix = stats.category_mix, previous.category_mix
    if mix and old_mix:
        change = {name: mix.get(name, 0.0) - old_mix.get(name, 0.0) for name in sorted({*mix, *old_mix})}
        most = max(change, key=lambda name: abs(change[name]))
        what = f"the category mix changed, most in {most!r} ({old_mix.get(most, 0):.0%} to {mix.get(most, 0):.0%})"
        distance = sum(map(abs, change.values())) / 2  # total variation: 0 for the same mix, 1 for no common category
        findings.append(_finding("max_category_shift", distance, gate.max_category_shift, what))

    price, old_price = stats.price_median, previous.price_median
    if price and old_price and min(price, old_price) > 0:
        what = f"the median price went from {old_price:g} to {price:g}"
        shift = abs(math.log(price / old_price))  # 0.69 is a factor of two
        findings.append(_finding("max_price_shift", shift, gate.max_price_shift, what))
    return findings


def _finding(limit: str, value: float, allowed: float, what: str) -> Finding:
    value = round(value, 6)  # so that rounding errors do not push a mix over a limit that it only reaches
    message = f"{what}: {value:.2f} is above {allowed:g}; fix the cause, or raise gate.{limit} if this is right"
    return Finding(limit, value, allowed, message)
