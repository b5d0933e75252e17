"""The numbers of crops that fine-tuning compared (`scores.looks.sweep`), as text."""

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "category_accuracy": "category",
    "title_exact": "title exact",
    "price_mdape": "price MdAPE",
    "fields_accuracy": "further fields",
}


def looks_table(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each number of crops, empty for an adapter that looks once. All scores except those of the close look
    have the 95 % interval of their difference from it."""
    ways = metrics.get("looks", ())
    return [
        {
            "crops": " then ".join(map(str, way["looks"])),
            "second looks": f"{way['second_looks']:.1%}" if len(way["looks"]) > 1 else "-",
            "prompt tokens": f"{way['prompt_tokens']:,.0f}",
            **{_NAMES[name]: _score(one, beside=way is not ways[1]) for name, one in way["scores"].items()},
        }
        for way in ways
    ]


def _score(one: Mapping[str, float], *, beside: bool) -> str:
    return f"{one['value']:.1%}" + (f" ({one['low']:+.1%} to {one['high']:+.1%})" if beside else "")
