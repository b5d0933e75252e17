"""`enrich catalog check`: what it says of a catalog, its JSON, and columns that it proposes."""

import json
from pathlib import Path
from typing import Any

import pytest

from enrich.catalog.check import check
from enrich.catalog.read import read_catalog
from enrich.settings.training import TrainSettings
from tests.testing.cli import RunCli
from tests.testing.tables import COLUMNS, csv_text, products, write_photos

CDN = "https://cdn.shop.example"
SHOPIFY = [
    {"Handle": f"shirt-{n}", "Title": "" if size else f"Shirt &amp; {n}", "Body (HTML)": "<p>x</p>", "Vendor": "V",
     "Product Category": "" if size else "Apparel > Shirts", "Type": "Shirts" * (not size),
     "Option1 Value": "SML"[size], "Variant SKU": f"{n}-{size}", "Variant Price": f"{20 + n + size}.00",
     "Image Src": f"{CDN}/{n}-{size}.jpg?v=1"}
    for n in range(4) for size in range(3)
]  # fmt: skip
WOOCOMMERCE = [
    {"ID": str(n), "Type": "simple", "SKU": f"00{n}", "Name": f"Woo &#8211; {n}", "Sale price": "9",
     "Regular price": f"{20 + n}", "Categories": "Clothing, Clothing > Tees",
     "Images": f"{CDN}/{n}.jpg, {CDN}/{n}b.jpg"}
    for n in range(4)
]  # fmt: skip
MAGENTO = [
    {"sku": f"24-MB{n}", "store_view_code": "", "product_type": "simple", "name": f"Joust {n}",
     "price": f"{34 + n}.0000", "categories": "Default Category/Gear,Default Category/Gear/Bags",
     "base_image": f"images/{n}.jpg", "additional_images": f"images/{n}.jpg,images/{n + 1}.jpg"}
    for n in range(4)
]  # fmt: skip
MERCHANT = [
    {"id": f"00{n}", "title": f"Feed {n}", "link": "https://x.example", "image_link": f"{CDN}/{n}.jpg",
     "additional_image_link": f"{CDN}/{n}a.jpg,{CDN}/{n}b.jpg", "price": f"{15 + n}.00 USD", "sale_price": "10.00 USD",
     "google_product_category": "2271", "product_type": "Home > Dresses"}
    for n in range(4)
]  # fmt: skip


def checked(run_cli: RunCli, directory: Path, *options: str) -> tuple[dict[str, Any], str]:
    code, out, err = run_cli(
        "catalog", "check", "--catalog", str(directory), *options, "--json", f"{directory}/out.txt"
    )
    assert code == 0, err
    return json.loads((directory / "out.txt").read_text("utf-8")), out


@pytest.mark.parametrize(
    ("layout", "rows", "separator", "first", "photos"),
    [
        ("Shopify", SHOPIFY, ",", ("shirt-0", "Shirt & 0", "Apparel > Shirts", 20.0, None), 3),
        ("WooCommerce", WOOCOMMERCE, ",", ("000", "Woo – 0", "Clothing > Tees", 20.0, None), 2),
        ("Magento", MAGENTO, ",", ("24-MB0", "Joust 0", "Gear > Bags", 34.0, None), 2),
        ("Merchant Center", MERCHANT, "\t", ("000", "Feed 0", "Home > Dresses", 15.0, "USD"), 3),
    ],
)
def test_columns_of_known_layouts_are_proposed_and_the_settings_written(
    tmp_path: Path, run_cli: RunCli, layout: str, rows: list[dict[str, str]], separator: str, first: tuple[Any, ...],
    photos: int,
) -> None:  # fmt: skip
    write_photos(tmp_path)
    (tmp_path / "products.csv").write_text(csv_text(rows, separator))
    settings = tmp_path / "settings.yaml"
    found, out = checked(run_cli, tmp_path, "--columns", "auto", "--config", str(settings))
    assert len(found["rows"]) == 4
    row = found["rows"][0]
    assert tuple(row[name] for name in ("product_code", "title", "category", "price", "currency")) == first
    assert [len(one["photos"]) for one in found["rows"]] == [photos] * 4
    assert f"columns proposed from {layout}" in out
    assert checked(run_cli, tmp_path, "--config", str(settings))[0] == found


@pytest.mark.parametrize("option", ["--json", "--page"])
def test_the_catalogs_own_table_is_never_replaced(tmp_path: Path, run_cli: RunCli, option: str) -> None:
    write_photos(tmp_path)
    table = tmp_path / "catalog.csv"
    table.write_text(csv_text(products()))
    (tmp_path / "link.json").symlink_to(table)
    for catalog, file in (
        (tmp_path, table),
        (table, tmp_path / "images" / ".." / "catalog.csv"),
        (tmp_path, "link.json"),
    ):
        code, _, err = run_cli("catalog", "check", "--catalog", str(catalog), option, str(tmp_path / file))
        assert (code, err) == (2, f"error: {option} {tmp_path / file}: is the catalog's table; name another file\n")
    assert table.read_text() == csv_text(products())


def test_the_json_is_as_promised(tmp_path: Path, run_cli: RunCli) -> None:
    write_photos(tmp_path)
    rows = products(image=lambda n: "images/none.jpg" if n == 1 else f"images/{n}.jpg")
    (tmp_path / "catalog.csv").write_bytes(csv_text(rows, ";").encode("utf-8-sig"))
    (tmp_path / "s.yaml").write_text(json.dumps({"finetune": {"columns": COLUMNS.model_dump(mode="json")}}))
    found, out = checked(run_cli, tmp_path, "--config", str(tmp_path / "s.yaml"))
    assert list(found) == ["rows", "dropped", "columns", "encoding", "separator"]
    assert found["rows"][0] == {
        "product_code": "00101", "title": "Red Shirt no. 0", "category": "Shirts", "price": 20.5, "currency": "EUR",
        "photos": ["images/0.jpg"],
    }  # fmt: skip
    dropped = {"row": 2, "product_code": "00102", "reason": "photo not found: images/none.jpg"}
    assert (len(found["rows"]), found["dropped"]) == (11, [dropped])
    assert (found["encoding"], found["separator"], found["columns"]["title"]) == ("utf-8-sig", ";", "title")
    assert out.startswith("encoding: utf-8-sig; separator: semicolon\ncolumns: product_code 'sku', title 'title'")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (products(image=lambda n: f"images/{n % 11}.jpg"), "the same photo under titles that differ: 1: 'Red"),
        (products(category=lambda n: "A" if n else "B"), "categories with only one product, which cannot be tested: 1"),
        (products(category="A", price=lambda n: "45000" if n == 5 else str(40 + n)), "far outside the other prices"),
        (products(category=lambda n: "AB"[n % 2], price=lambda n: "41000" if n in (2, 3, 5, 7, 9, 11) else str(45 + n)),
         "41,000.00 compared with 52.00 (row 3)"),
        (products(sku=lambda n: f"4.0063{n:02}E+12"), "product codes that a spreadsheet rounded"),
        (products(title=lambda n: f"MÃ¤ntel {n}"), "titles with garbled characters"),
        (products(image=lambda n: f"images/{n}.jpg" if n else "broken.jpg"), ": 1: broken.jpg (row 1, product 00101: "),
    ],
)  # fmt: skip
def test_what_looks_wrong_is_reported(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    write_photos(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    (tmp_path / "catalog.csv").write_text(csv_text(rows))
    found = check(read_catalog(tmp_path, COLUMNS), TrainSettings(columns=COLUMNS), lambda done, all: None)
    assert [line for line in found.lines() if told in line]


def test_a_clean_catalog_looks_right(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "catalog.csv").write_text(csv_text(products()))
    found = check(read_catalog(tmp_path, COLUMNS), TrainSettings(columns=COLUMNS), lambda done, all: None)
    assert [*found.lines()][-5:] == [
        "categories: 4: Shirts 3, Coats 3, Bags 3, Dresses 3",
        "photos: 12 files of 0.0 MB; 20 x 30 to 31 x 30 pixels, median 26 x 30 (12 decoded); 0 products share a "
        "photo's bytes with another",
        "photo issues: 12 tiny, 12 blank (no photo is left out for these)",
        "splits: train 9, validation 1, calibration 1, test 1",
        "nothing looks wrong",
    ]


@pytest.mark.parametrize(
    ("header", "options", "told"),
    [
        ("a,b,c", ("--columns", "auto"), "no column looks like product_code or title or category or image_path"),
        ("a,b,c", ("--columns", "all"), "--columns all: only auto is allowed"),
        ("a,b,c", (), "no column 'product_code'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, run_cli: RunCli, header: str, options: tuple[str, ...], told: str
) -> None:
    (tmp_path / "catalog.csv").write_text(f"{header}\n1,2,3\n")
    code, _, err = run_cli("catalog", "check", "--catalog", str(tmp_path), *options)
    assert (code, told in err, err.strip().count("\n")) == (2, True, 0)


def test_words_that_fine_tuning_would_refuse_are_refused_here(tmp_path: Path, run_cli: RunCli) -> None:
    write_photos(tmp_path)
    (tmp_path / "catalog.csv").write_text(csv_text(products()))
    columns = COLUMNS.model_dump_json(exclude_defaults=True)
    (tmp_path / "words.yaml").write_text(f'columns: {columns}\nwording: {{category: "Type<|end|>"}}\n')
    code, _, err = run_cli("catalog", "check", "--catalog", str(tmp_path), "--config", str(tmp_path / "words.yaml"))
    assert (code, err.strip().count("\n")) == (2, 0)
    assert "label: 'Type<|end|>' spells a control token of the model; change it under fields or wording" in err
