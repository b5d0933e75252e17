"""Declared fields of a catalog: columns found, spellings joined, empty cells; and the prompt that is made of them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from enrich.answers.prompt import taught_answer
from enrich.catalog.read import Catalog, read_catalog
from enrich.catalog.taught import read_taught, spelled_as_taught, taught_prompt
from enrich.errors import UsageError
from enrich.settings.training import TrainSettings

HEADER = "product_code,title,category3_code,full_price,currency_code,local_image_path,fabric,Heel,colour"


def _read(directory: Path, *cells: str, **settings: object) -> tuple[Catalog, TrainSettings]:
    asked = TrainSettings.model_validate({"fields": {"colour": {"kind": "choice"}}, **settings})
    (directory / "images").mkdir()
    (directory / "images/a.jpg").write_bytes(b"a photo")
    rows = [f"{n},Shoe {n},SHOES,10,EUR,images/a.jpg,{cell}" for n, cell in enumerate(cells)]
    (directory / "catalog.csv").write_text("\n".join([HEADER, *rows]) + "\n", "utf-8")
    return read_taught(directory, asked), asked


def test_two_lines_of_settings_teach_one_more_field(tmp_path: Path) -> None:
    catalog, settings = _read(tmp_path, ",,Red", ",,red", ",,Red", ",,N/A", ",,", ",,Unknown")

    assert [product.attributes for product in catalog.products] == [{"colour": "Red"}] * 3 + [{"colour": None}] * 3
    assert any("values of colour that differ only in case are merged: red as Red" in note for note in catalog.notes)
    prompt = taught_prompt(settings, catalog, catalog.products)
    assert prompt.instruction == "What product is this? Give its title, category, colour and full price in EUR."
    assert [(field.name, field.label, field.values) for field in prompt.fields[2:3]] == [("colour", "Colour", ("Red",))]
    first, *_, last = (taught_answer(prompt, product) for product in catalog.products)
    assert first == "Product: Shoe 0\nCategory: SHOES\nColour: Red\nFull Price: 10"
    assert last == "Product: Shoe 5\nCategory: SHOES\nColour: unknown\nFull Price: 10"


def test_a_field_has_its_own_column_label_and_kind(tmp_path: Path) -> None:
    fields = {
        "material": {"kind": "choice", "column": "fabric", "label": "Made of"},
        "heel_height": {"kind": "number", "column": "Heel"},
        "note": {"kind": "text", "column": "colour"},
    }
    catalog, settings = _read(tmp_path, "Leather,6.5,As new", "suede,７,", ",high,Worn", "suede,0,", fields=fields)

    assert [tuple(product.attributes.values()) for product in catalog.products] == [
        ("Leather", "6.5", "As new"), ("suede", "7", None), (None, None, "Worn"), ("suede", "0", None),
    ]  # fmt: skip
    told = "heel_height: 1 values, such as 'high', are not a number from 0 to 999,999,999 and taught as unknown"
    assert told in catalog.notes
    prompt = taught_prompt(settings, catalog, catalog.products)
    assert [field.label for field in prompt.fields[2:-1]] == ["Made of", "Heel height", "Note"]
    assert prompt.fields[3].decimals == 1
    assert "Made of: Leather\nHeel height: 6.5\nNote: As new\n" in taught_answer(prompt, catalog.products[0])


def test_a_language_and_own_words(tmp_path: Path) -> None:
    words = {"unknown": "無し", "category": "分類"}
    catalog, settings = _read(tmp_path, ",,赤", ",,無し", language="ja", wording=words)

    prompt = taught_prompt(settings, catalog, catalog.products)
    assert taught_answer(prompt, catalog.products[1]) == "製品: Shoe 1\n分類: SHOES\nColour: 無し\n定価: 10"


def test_a_choice_with_a_value_of_its_own_for_each_product_is_reported(tmp_path: Path) -> None:
    catalog, _ = _read(tmp_path, *(f",,shade {n}" for n in range(30)))
    assert any("`colour: {kind: text}` may be meant" in note for note in catalog.notes)


@pytest.mark.parametrize("kind", ["choice", "text", "number"])
def test_a_value_that_cannot_be_taught_costs_its_own_row_only(tmp_path: Path, kind: str) -> None:
    catalog, settings = _read(
        tmp_path, ",,1", ",,Red<|end|>", ",,</s>", ",,Red\ue000", ",,\u202bRed\u202c", fields={"colour": {"kind": kind}}
    )

    assert [(one.product_code, one.reason) for one in catalog.dropped] == [
        ("1", "a value spells a control token of the model"), ("2", "a value spells a control token of the model"),
        ("3", "a value contains control characters"),
    ]  # fmt: skip
    assert [one.attributes["colour"] for one in catalog.products] == ["1", None if kind == "number" else "Red"]
    assert taught_prompt(settings, catalog, catalog.products).further[0].values == (
        ("1", "Red") if kind == "choice" else ()
    )


def test_a_value_that_is_too_long_is_cut_and_told(tmp_path: Path) -> None:
    catalog, _ = _read(tmp_path, f",,{'x' * 300}", ",,y")
    assert "values of colour cut to 200 characters: 1" in catalog.notes
    assert catalog.products[0].attributes["colour"] == "x" * 200


def test_a_catalog_is_scored_in_the_spelling_that_the_adapter_was_taught(tmp_path: Path) -> None:
    catalog, settings = _read(tmp_path, ",,Red", ",,Blue")
    prompt = taught_prompt(settings, catalog, catalog.products)
    later = (
        (tmp_path / "catalog.csv").read_text().replace("Red", "RED").replace("SHOES", "Shoes").replace("Blue", "Pink")
    )
    (tmp_path / "catalog.csv").write_text(later)

    spelled = spelled_as_taught(read_taught(tmp_path, settings), prompt)

    assert [(one.category, one.attributes["colour"]) for one in spelled.products] == [
        ("SHOES", "Red"),
        ("SHOES", "Pink"),
    ]
    assert (spelled.categories, spelled.paths) == (("SHOES",), {"SHOES": ("SHOES",)})


def test_a_field_without_any_value_is_reported(tmp_path: Path) -> None:
    catalog, _ = _read(tmp_path, ",,", ",,")
    assert "colour has no values (column 'colour'): it is taught as 'unknown'" in catalog.notes


def test_the_fingerprint_knows_the_fields(tmp_path: Path) -> None:
    with_colour, settings = _read(tmp_path, ",,Red", ",,Blue")
    without = read_catalog(tmp_path, settings.columns)
    assert with_colour.fingerprint != without.fingerprint
    (tmp_path / "catalog.csv").write_text((tmp_path / "catalog.csv").read_text().replace("Blue", "Green"))
    assert read_taught(tmp_path, settings).fingerprint != with_colour.fingerprint
    assert read_catalog(tmp_path, settings.columns).fingerprint == without.fingerprint


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'shade' \(tone\).*name the right one .*fields\.tone\.column"):
        _read(tmp_path, ",,Red", fields={"tone": {"kind": "choice", "column": "shade"}})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"fields": {"colour": {"kind": "choice", "label": "Category"}}}, "two fields have the label 'Category'"),
        ({"fields": {"colour": {"kind": "choice", "label": "Colour<|end|>"}}}, "spells a control token"),
        ({"wording": {"unknown": "<|image_1|>"}}, "spells a control token"),
        ({"wording": {"instruction": "What is it?\nSay."}}, r"^instruction: 'What is it\?\\nSay\.' is not one line"),
        ({"fields": {"colour": {"kind": "choice", "label": " Shade"}}}, "^label: ' Shade' begins or ends with a blank"),
        ({"wording": {"unknown": "?\u200f"}}, "^unknown: .* contains control characters"),
    ],
)
def test_words_that_cannot_stand_in_a_prompt_are_refused(
    tmp_path: Path, settings: dict[str, object], reason: str
) -> None:
    catalog, asked = _read(tmp_path, ",,Red", **settings)
    with pytest.raises(UsageError, match=reason) as raised:
        taught_prompt(asked, catalog, catalog.products)
    assert "under fields or wording in the settings" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["title", "category", "price", "Colour", "a b", ""])
def test_names_of_fields(name: str) -> None:
    with pytest.raises(ValidationError):
        TrainSettings.model_validate({"fields": {name: {"kind": "choice"}}})
