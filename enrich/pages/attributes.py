"""The declared fields beyond title, category and price, as pages show them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

_FREQUENT = 4  # values named of each field


def attribute_summary(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """For each field of a run's good rows: `name`, `told` (share with a value), `confidence` (its mean), and `values`,
    the most frequent ones with their numbers."""
    answers = [row for row in rows.filter(pl.col("status") == "ok")["attributes"] if row]
    found = []
    for name in dict.fromkeys(name for row in answers for name in row):
        given = [row[name] for row in answers if row.get(name)]
        values = Counter(one["value"] for one in given if one["value"] is not None)
        sure = [one["confidence"] for one in given if one["confidence"] is not None]
        found.append(
            {
                "name": spoken(name),
                "told": values.total() / len(given),
                "confidence": sum(sure) / len(sure) if sure else None,
                "values": values.most_common(_FREQUENT),
            }
        )
    return found


def attribute_text(attributes: Mapping[str, Mapping[str, Any]] | None) -> str:
    """A row's values on one line: `colour Navy (97 %), sleeve unknown (88 %)`."""
    parts = []
    for name, one in (attributes or {}).items():
        sure = "" if one["confidence"] is None else f" ({one['confidence']:.0%})"
        parts.append(f"{spoken(name)} {'unknown' if one['value'] is None else one['value']}{sure}")
    return ", ".join(parts)


def attribute_scores(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """One line of scores for each field, formatted; see `enrich.scores.fields.field_metrics`."""
    estimates = metrics.get("estimates", {})

    def told(name: str, form: str = ".1%") -> str:
        return format(estimates[name]["value"], form) if name in estimates else "-"

    return [
        {
            "field": spoken(name),
            "accuracy": told(f"{name}_accuracy"),
            "where known": told(f"{name}_accuracy_known"),
            "always answering": told(f"{name}_accuracy_always"),
            "unknown, precision": told(f"{name}_unknown_precision"),
            "unknown, recall": told(f"{name}_unknown_recall"),
            "calibration error": told(f"{name}_ece", ".3f"),
            "to review": told(f"{name}_review_share"),
        }
        for name in metrics.get("fields", ())
    ]


def spoken(name: str) -> str:
    """A field's name as words: `sleeve_length` is sleeve length."""
    return name.replace("_", " ")
