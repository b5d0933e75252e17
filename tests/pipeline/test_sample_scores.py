"""An adapter on its sample's hold-out, compared with its base, and the contact sheet of unseen products."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from enrich.errors import UsageError
from enrich.pages.report import score_table
from enrich.settings.run import RunSettings
from sample import scores
from sample.scores import HOLDOUT_ROWS, SHEET_ROWS, score_holdout, write_sheet
from sample.sheet import ACROSS, CELL


def test_the_hold_out_is_scored_next_to_the_base_and_the_best_possible(
    story: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "HOLDOUT_ROWS", 6)
    told: list[tuple[str, int, int]] = []

    metrics = score_holdout(str(story.adapter), str(story.catalog), RunSettings(), lambda *seen: told.append(seen))

    assert HOLDOUT_ROWS > 6
    assert metrics["test"]["rows"] == metrics["base"]["rows"] == 6
    assert metrics["base"]["category_accuracy"] == 0  # another retailer's categories
    assert set(metrics["baselines"]) == {"majority_class", "category_median"}
    assert 0 < metrics["ideal"]["price_mdape"] < 0.5
    assert [name for name, _ in score_table(metrics)][-1] == "best possible"
    assert told[-1][1:] == (6, 6)


def test_a_catalog_without_a_hold_out_is_refused(story: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no holdout/; generate the sample with a hold-out"):
        score_holdout(str(story.adapter), str(tmp_path), RunSettings())


def test_the_sheet_shows_unseen_products_of_as_many_categories(
    story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    draw = scores.draw_sheet

    def drawn(rows: Any, currency: str | None) -> Image.Image:
        shown.extend(row["category"] for _, row in rows)
        assert currency == "EUR"
        return draw(rows, currency)

    monkeypatch.setattr(scores, "draw_sheet", drawn)
    write_sheet(str(story.adapter), str(story.catalog), str(tmp_path / "sheet.jpg"))

    unseen = pl.read_parquet(story.adapter / "scores.parquet")["category"]
    assert len(shown) == len(set(shown)) == min(SHEET_ROWS, unseen.n_unique())
    assert set(shown) <= set(unseen)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.width == ACROSS * CELL
