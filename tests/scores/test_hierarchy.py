"""Scores of answers in a tree of categories, against values computed by hand."""

import math

import polars as pl
import pytest

from enrich.scores.assess import assess
from enrich.scores.hierarchy import by_level, hierarchy
from tests.testing.scores import scored

PUMPS, BOOTS, TIES = "WOMAN > SHOES > PUMPS", "WOMAN > SHOES > BOOTS", "MAN > TIES"
PATHS = {label: tuple(label.split(" > ")) for label in (PUMPS, BOOTS, TIES)}


def table(
    *rows: tuple[str, str | None], cut: list[list[str] | None] | None = None, sure: list[float] | None = None
) -> pl.DataFrame:
    made = scored(len(rows))
    columns = {
        "category": pl.Series([true for true, _ in rows], dtype=pl.String),
        "answered_category": pl.Series([said for _, said in rows], dtype=pl.String),
        "answered_path": pl.Series(cut or [None] * len(rows), dtype=pl.List(pl.String)),
        "level_confidences": pl.Series([sure] * len(rows), dtype=pl.List(pl.Float64)),
    }
    return made.with_columns(**columns)


def test_an_answer_is_right_down_to_where_it_leaves_the_true_path() -> None:
    rows = table((PUMPS, PUMPS), (PUMPS, BOOTS), (TIES, PUMPS), (TIES, None))

    found = assess(rows, paths=PATHS)

    # 3 + 2 levels shared, of 3 + 3 + 3 answered and 3 + 3 + 2 + 2 true
    assert found["estimates"]["category_hierarchical_precision"]["value"] == pytest.approx(5 / 9)
    assert found["estimates"]["category_hierarchical_recall"]["value"] == pytest.approx(5 / 10)
    assert found["estimates"]["category_hierarchical_f1"]["value"] == pytest.approx(10 / 19)
    assert {level: one["accuracy"] for level, one in found["category_by_level"].items()} == {
        "1": 0.5, "2": 0.5, "3": 0.25
    }  # fmt: skip


def test_the_last_level_is_the_whole_category_also_where_an_answer_is_longer() -> None:
    rows = table((TIES, f"{TIES} > BOW"), (TIES, TIES))

    assert [one["accuracy"] for one in by_level(rows, PATHS).values()] == [1.0, 1.0, 0.5]


def test_a_cut_path_is_right_if_the_truth_begins_so() -> None:
    cut: list[list[str] | None] = [["WOMAN", "SHOES"], ["WOMAN"], [], ["MAN", "TIES"], None]
    rows = table((PUMPS, BOOTS), (TIES, PUMPS), (PUMPS, PUMPS), (TIES, TIES), (TIES, None), cut=cut)

    found = assess(rows, paths=PATHS)["estimates"]

    assert found["category_path_cut"]["value"] == pytest.approx(3 / 4)
    assert found["category_path_right"]["value"] == pytest.approx(2 / 3)  # an empty path claims nothing


def test_each_level_has_a_calibration_error_of_its_own() -> None:
    rows = table((PUMPS, PUMPS), (PUMPS, BOOTS), (TIES, PUMPS), (TIES, PUMPS), sure=[0.55, 0.5, 0.05])

    found = by_level(rows, PATHS)

    assert [one["ece"] for one in found.values()] == pytest.approx([0.05, 0.0, 0.2])


def test_leaves_of_a_catalog_with_one_column_have_no_levels() -> None:
    rows = table(("HATS", "BAGS"), ("A > B", "A > C"))

    found = assess(rows, paths={"HATS": ("HATS",), "A > B": ("A > B",)})

    assert hierarchy(rows, {}) == {}
    assert found["category_by_level"] == {}
    assert not [name for name in found["estimates"] if "hierarchical" in name or "path" in name]
    assert not any(math.isnan(one["value"]) for one in found["estimates"].values())


def test_leaves_beneath_columns_of_broader_ones_have_theirs() -> None:
    rows = table(("PUMPS", "BOOTS"), ("TIES", "PUMPS"))
    paths = {"PUMPS": ("WOMAN", "PUMPS"), "BOOTS": ("WOMAN", "BOOTS"), "TIES": ("MAN", "TIES")}

    assert [one["accuracy"] for one in by_level(rows, paths).values()] == [0.5, 0.0]
