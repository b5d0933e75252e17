"""Scores of the declared fields beyond title, category and price."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from enrich.scores.metrics import Columns, expected_calibration_error


def field_names(table: pl.DataFrame) -> tuple[str, ...]:
    """The fields of a scored table (SCORE_SCHEMA), in their order."""
    return tuple(dict.fromkeys(name for row in table["attributes"] if row for name in row))


def field_columns(table: pl.DataFrame) -> dict[str, np.ndarray]:
    """What the metrics of the fields are computed from, one value a row; NaN where a row has no answer.

    `NAME.known`: the catalog has a value. `NAME.told`: the answer is a value, not unknown. `NAME.right`: answer and
    catalog agree, on no value too; a row without an answer is wrong. `NAME.always`: so does the answer that is given
    if it must be a value. `NAME.confidence` and `NAME.review`: of the answer.
    """
    columns: dict[str, np.ndarray] = {}
    for name in field_names(table):
        rows = [
            _outcome((true or {}).get(name), (said or {}).get(name))
            for true, said in zip(table["attributes"], table["answered_attributes"], strict=True)
        ]
        for at, column in enumerate(("known", "told", "right", "always", "confidence", "review")):
            columns[f"{name}.{column}"] = np.array([row[at] for row in rows], dtype=np.float64)
    return columns


def _outcome(true: str | None, said: dict[str, Any] | None) -> tuple[float, float, float, float, float, float]:
    known = float(true is not None)
    if said is None:
        return known, math.nan, 0.0, 0.0, math.nan, math.nan
    forced = said["value"] if said["value"] is not None else said["otherwise"]
    right, always = said["value"] == true, forced == true
    return known, float(said["value"] is not None), float(right), float(always), said["confidence"], said["review"]


def field_metrics(names: Sequence[str]) -> dict[str, Callable[[Columns], float]]:
    """The metrics of the fields, as `enrich.scores.assess` bootstraps them; NaN where no row counts.

    `NAME_accuracy` counts a right unknown as right. `NAME_accuracy_known` is over the products whose catalog has a
    value, `NAME_accuracy_always` over the same if unknown may not be answered. `NAME_unknown_precision` and
    `NAME_unknown_recall` tell how well the model knows that it cannot tell.
    """
    made: dict[str, Callable[[Columns], float]] = {}
    for name in names:
        made |= {
            f"{name}_accuracy": _share(name, "right"),
            f"{name}_accuracy_known": _share(name, "right", lambda one: one("known") == 1),
            f"{name}_accuracy_always": _share(name, "always", lambda one: one("known") == 1),
            f"{name}_unknown_precision": _share(name, "right", lambda one: one("told") == 0),
            f"{name}_unknown_recall": _share(name, "right", lambda one: one("known") == 0),
            f"{name}_ece": _ece(name),
            f"{name}_review_share": _share(name, "review"),
        }
    return made


def _share(
    name: str, column: str, where: Callable[[Callable[[str], np.ndarray]], np.ndarray] | None = None
) -> Callable[[Columns], float]:
    """The mean of a field's column over the rows selected by `where`."""

    def share(columns: Columns) -> float:
        def of(one: str) -> np.ndarray:
            return columns[f"{name}.{one}"]

        counted = ~np.isnan(of(column)) & (where(of) if where else True)
        return float(of(column)[counted].mean()) if counted.any() else math.nan

    return share


def _ece(name: str) -> Callable[[Columns], float]:
    def ece(columns: Columns) -> float:
        confidence, right = columns[f"{name}.confidence"], columns[f"{name}.right"]
        known = ~np.isnan(confidence)
        return expected_calibration_error(confidence[known], right[known]) if known.any() else math.nan

    return ece
