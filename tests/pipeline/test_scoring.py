"""What a sample says of itself, for the catalog and for the hold-out below it."""

import json
from pathlib import Path
from typing import Any

import pytest

from enrich.pipeline.scoring import Truth, read_truth

TRUTH: dict[str, Any] = {
    "sigma": 0.15,
    "images": {"images/1.jpg": {"noiseless_price": 100.0}},
    "holdout": {"holdout/images/2.jpg": {"noiseless_price": 50.0}},
}


@pytest.mark.parametrize(
    ("part", "key", "price"), [("", "images/1.jpg", 100.0), ("holdout", "holdout/images/2.jpg", 50.0)]
)
def test_the_truth_is_next_to_the_catalog_or_above_the_hold_out(
    tmp_path: Path, part: str, key: str, price: float
) -> None:
    (tmp_path / "holdout").mkdir()
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))

    assert read_truth(tmp_path / part) == Truth(0.15, None, {str(tmp_path / key): price})


def test_a_ladder_makes_the_ideal_interval_wider(tmp_path: Path) -> None:
    ideal = {"ideal_intervals": {"0.9": {"log_width": 0.51, "ratio": 1.67}}}
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH | ideal))

    truth = read_truth(tmp_path)

    assert truth is not None
    assert truth.ideal_width == 0.51


@pytest.mark.parametrize("text", [None, "{}", '{"sigma": 0.1}'])
def test_other_catalogs_have_no_truth(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "truth.json").write_text(text)

    assert read_truth(tmp_path) is None
