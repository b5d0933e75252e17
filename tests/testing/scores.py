"""Scores of made-up adapters: metrics.json and scores.parquet."""

import math
from typing import Any

import numpy as np
import polars as pl

from enrich.output.parquet import from_records
from enrich.output.schema import SCORE_SCHEMA

SCORES = {"parse_rate": 1.0, "category_accuracy": 0.9, "category_macro_f1": 0.9, "title_exact": 0.5,
          "title_token_f1": 0.7, "title_edit_similarity": 0.8, "price": None}  # fmt: skip
METRICS = {"test": SCORES, "baselines": {"majority_class": SCORES}, "intervals": None}


def metrics(
    *,
    category: tuple[float, float, float] = (0.9, 0.85, 0.95),
    price: tuple[float, float, float] | None = (0.2, 0.15, 0.25),
    title: tuple[float, float, float] | None = (0.8, 0.7, 0.9),
    macro_f1: float = 0.9,
    rows: int = 500,
    guessed: float = 0.3,
    guessed_price: float | None = 0.5,
) -> dict[str, Any]:
    """metrics.json as far as it is read here; triples are value, low, high of the 95 % interval."""
    found = {"category_accuracy": category, "price_mdape": price, "title_chrf": title}
    return {
        "test": {"rows": rows, "category_accuracy": category[0], "category_macro_f1": macro_f1},
        "baselines": {
            "majority_class": {
                "rows": rows,
                "category_accuracy": guessed,
                "category_macro_f1": 0.05,
                "title_chrf": 0.1,
                "price": None if guessed_price is None else {"mdape": guessed_price},
            }
        },
        "estimates": {
            name: dict(zip(("value", "low", "high"), one, strict=True)) for name, one in found.items() if one
        },
    }


def scored(rows: int, *, error: float = 0.15, half_width: float = 0.247, seed: int = 0, **changes: Any) -> pl.DataFrame:
    """Products of known noise: log errors N(0, error), intervals of a half width in log units, one wrong in ten."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(rows):
        price = float(np.exp(rng.normal(5, 1)))
        said = price * float(np.exp(rng.normal(0, error)))
        confidence = float(rng.uniform(0.8, 1.0))
        right = rng.random() < confidence
        made.append({
            "product_code": f"{i}", "title": f"Hat {i}", "category": "Hats" if i % 2 else "Bags", "price": price,
            "best_price": said, "answered_title": f"Hat {i}" if right else "Cap",
            "answered_category": ("Hats" if i % 2 else "Bags") if right else "Coats", "answered_price": said,
            "category_confidence": confidence, "price_low": said / math.exp(half_width),
            "price_high": said * math.exp(half_width), "price_low_80": said / 1.1, "price_high_80": said * 1.1,
            "price_crps": error / math.sqrt(math.pi), "needs_review": confidence < 0.85,
            "review_reasons": ["low_confidence"] if confidence < 0.85 else [], "error_kind": None, **changes,
        })  # fmt: skip
    return from_records(made, SCORE_SCHEMA)
