"""To which level of the category tree answers are right.

Hierarchical precision, recall and F1 compare the sets of levels of answers and truths (Kiritchenko et al. 2006): under
WOMAN > SHOES > BOOTS, the answer WOMAN > SHOES > PUMPS has two of three levels right.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import polars as pl

from enrich.answers.path import levels_of
from enrich.scores.metrics import Columns, expected_calibration_error, mean_of

Paths = Mapping[str, tuple[str, ...]]  # category -> its levels, the broadest first


def hierarchy(table: pl.DataFrame, paths: Paths) -> dict[str, np.ndarray]:
    """What METRICS are computed from, one value a row; nothing where no category has levels.

    Args:
        table: SCORE_SCHEMA.
        paths: of the true categories and of others; one that is not named is beneath none.
    """
    if _flat(paths):
        return {}
    true, said = _levels(table, paths)
    cut = table["answered_path"].to_list()
    kept = [math.nan if path is None else len(path) for path in cut]
    right = [
        math.nan if not path else float(tuple(path) == levels[: len(path)])
        for path, levels in zip(cut, true, strict=True)
    ]
    said_levels = np.array(list(map(len, said)), dtype=np.float64)
    return {
        "true_levels": np.array(list(map(len, true)), dtype=np.float64),
        "said_levels": said_levels,
        "shared_levels": np.array(list(map(_shared, true, said)), dtype=np.float64),
        "path_right": np.array(right),
        "path_cut": np.where(np.isnan(kept), math.nan, kept < said_levels),
    }


def by_level(table: pl.DataFrame, paths: Paths) -> dict[str, dict[str, float]]:
    """Level, counted from 1, the broadest -> its `accuracy`, and the `ece` of its confidence where answers have one.

    A row is right down to a level if its answer is the true category down to there. The last one is the accuracy of
    whole categories.
    """
    found: dict[str, dict[str, float]] = {}
    if _flat(paths):
        return found
    true, said = _levels(table, paths)
    for depth in range(1, max(map(len, true + said), default=0) + 1):
        right = np.array([a[:depth] == b[:depth] for a, b in zip(true, said, strict=True)])
        found[str(depth)] = {"accuracy": float(right.mean())}
        known = [
            (confidences[depth - 1], hit)
            for confidences, hit in zip(table["level_confidences"].to_list(), right.tolist(), strict=True)
            if confidences and len(confidences) >= depth
        ]
        if known:
            found[str(depth)]["ece"] = expected_calibration_error(*zip(*known, strict=True))
    return found


def _flat(paths: Paths) -> bool:
    return all(len(path) < 2 for path in paths.values())


def _levels(table: pl.DataFrame, paths: Paths) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The levels of each row's true category, and of the answered one."""

    def of(label: str | None) -> tuple[str, ...]:
        return () if label is None else paths.get(label) or levels_of(label)

    return list(map(of, table["category"])), list(map(of, table["answered_category"]))


def _shared(true: Sequence[str], said: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(true, said, strict=False)))


def _ratio(*names: str) -> Callable[[Columns], float]:
    """Shared levels as a share of all levels in the columns `names`, their mean if there are two."""

    def ratio(columns: Columns) -> float:
        if "shared_levels" not in columns:
            return math.nan
        levels: Any = sum(columns[name].sum() for name in names)
        return float(len(names) * columns["shared_levels"].sum() / levels) if levels else math.nan

    return ratio


def _mean(name: str) -> Callable[[Columns], float]:
    return lambda columns: mean_of(name)(columns) if name in columns else math.nan


METRICS: dict[str, Callable[[Columns], float]] = {
    "category_hierarchical_precision": _ratio("said_levels"),
    "category_hierarchical_recall": _ratio("true_levels"),
    "category_hierarchical_f1": _ratio("said_levels", "true_levels"),
    "category_path_cut": _mean("path_cut"),  # share of the rows whose path ends above the answered category
    "category_path_right": _mean("path_right"),  # of the rows whose path has any level
}
