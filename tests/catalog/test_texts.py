"""Tables as text: encodings, separators, quotation marks, and what cells of shops hold."""

import gzip
from pathlib import Path

import pytest

from enrich.catalog.read import Catalog, read_catalog
from enrich.errors import UsageError
from tests.testing.sources import ENCODINGS, SEPARATORS
from tests.testing.tables import CODES, COLUMNS, csv_text, products, write_photos

TITLES = {
    "German": ("Türkises Hemd – weiß", "Mäntel für Übergänge", "Tasche aus Büffelleder", "Kleid mit Rüschen"),
    "French": ("Robe d’été à fleurs", "Chemise rayée", "Sac à main", "Écharpe bleu foncé"),
    "one word": ("Shirt", "Café bag", "Bag", "Dress"),
    "Japanese": ("半袖シャツ 婦人用", "ウールコート 紳士用", "本革バッグ", "ワンピース 花柄"),
    "half width": ("ｼｬﾂ 赤", "ｺｰﾄ 青", "ﾊﾞｯｸﾞ 緑", "ﾄﾞﾚｽ"),
    "Chinese": ("红衬衫", "女士羊毛大衣", "手包", "碎花连衣裙"),
    "traditional": ("紅色襯衫", "女士羊毛大衣", "手提包", "碎花連衣裙"),
    "Russian": ("Рубашка красная", "Пальто", "Сумка", "Платье"),
    "Polish": ("Koszula żółta", "Płaszcz", "Torebka skórzana", "Sukienka dżinsowa"),
    "Greek": ("Γυναικείο φόρεμα", "Παλτό", "Τσάντα δερμάτινη", "Πουκάμισο"),
    "Korean": ("빨간 셔츠", "파란 코트", "가죽 가방", "원피스"),
}


def read(directory: Path, text: str | bytes, **columns: object) -> Catalog:
    write_photos(directory)
    data = text if isinstance(text, bytes) else text.encode()
    (directory / "catalog.csv").write_bytes(data)
    return read_catalog(directory, COLUMNS.model_validate(COLUMNS.model_dump() | columns))


def codes(catalog: Catalog) -> list[str]:
    return [one.product_code for one in catalog.products]


@pytest.mark.parametrize(("language", "codec", "named"), ENCODINGS)
def test_an_encoding_is_found_and_named(tmp_path: Path, language: str, codec: str, named: str) -> None:
    titles = [f"{TITLES[language][n % 4]} {n}" for n in range(12)]
    catalog = read(tmp_path, csv_text(products(title=titles.__getitem__)).encode(codec))
    assert (catalog.encoding, [one.title for one in catalog.products]) == (named, titles)


def test_a_guess_is_told_also_where_nothing_else_fits(tmp_path: Path) -> None:
    text = csv_text(products(title=lambda n: f"Größe Café {n}"))
    told = "encoding: read as windows-1252, which fits best; if '"
    assert [note[: len(told)] for note in read(tmp_path, text.encode("cp1252")).notes] == [told]
    assert read(tmp_path, text.encode("mac-roman")).notes[0].startswith(told)  # wrongly
    for sure in (text.encode("utf-8-sig"), text.encode("utf-16")):
        assert read(tmp_path, sure).notes == ()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (gzip.compress(b"sku,title\n", mtime=0), "compressed with gzip; unpack it"),
        (b"PK\x03\x04 and so on", "a zip file or an Excel workbook; unpack it, or name it .xlsx"),
        (b"\xd0\xcf\x11\xe0\xa1", "an Excel workbook of before 2007; save it as .xlsx or CSV"),
        (b"PAR1 and so on", "Parquet; name it .parquet"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path: Path, data: bytes, kind: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, data)
    assert str(error.value) == f"table {tmp_path}/catalog.csv: is not a text but {kind}"


def test_where_two_encodings_fit_both_are_named_and_a_setting_decides(tmp_path: Path) -> None:
    text = "sku,title,category,price,currency,image\n1,赤いシャツ,A,5,EUR,images/1.jpg\n".encode("cp932")
    catalog = read(tmp_path, text)
    assert catalog.encoding == "shift_jis"
    assert catalog.notes[0].startswith("encoding: read as shift_jis, but euc-kr would fit too; if '1,赤いシャツ")
    assert read(tmp_path, text, encoding="cp949").encoding == "cp949"
    with pytest.raises(UsageError, match=r"line 2 is not in the encoding ascii \(columns\.encoding\)"):
        read(tmp_path, text, encoding="ascii")


def test_an_encoding_that_nothing_fits_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none of utf-8, utf-16, windows-1252, shift_jis, .*; save it as UTF-8"):
        read(tmp_path, b"sku,title\n1,\x81\x98\xff\xff\n")


def test_one_line_in_another_encoding_than_the_rest_is_named(tmp_path: Path) -> None:
    text = csv_text(products(title=lambda n: f"Mäntel {n}")).encode()
    with pytest.raises(UsageError, match="line 5 is not UTF-8, while other lines are"):
        read(tmp_path, text.replace("Mäntel 3".encode(), "Mäntel 3".encode("cp1252")))


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_separator_is_found(tmp_path: Path, separator: str) -> None:
    catalog = read(tmp_path, csv_text(products(price=lambda n: f"{n + 1}.100,50"), separator))
    assert (catalog.separator, codes(catalog)) == (separator, CODES)
    assert [one.price for one in catalog.products][:2] == [1100.5, 2100.5]


def test_excels_line_about_the_separator_is_not_a_header(tmp_path: Path) -> None:
    assert read(tmp_path, "sep=;\n" + csv_text(products(), ";")).separator == ";"


@pytest.mark.parametrize(
    "text", [csv_text(products(), "^"), "sku,title,category,price,currency,image\n1,Hat,A,12,50,EUR,images/1.jpg\n"]
)
def test_a_wrong_separator_is_called_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="separator"):
        read(tmp_path, text)


def test_a_row_of_too_many_cells_is_left_out_and_reported(tmp_path: Path) -> None:
    catalog = read(tmp_path, csv_text(products()).replace("Green Bag no. 2", "Green, Bag no. 2"))
    (dropped,) = catalog.dropped
    assert (dropped.row, dropped.reason, dropped.detail) == (
        3,
        "row cannot be read",
        "line 4 has 7 cells, the header 6",
    )
    assert len(catalog.products) == 11


def test_quotation_marks_that_nothing_closes_swallow_no_rows(tmp_path: Path) -> None:
    text = csv_text(products(title=lambda n: f'A "b"\nc {n}'))
    assert read(tmp_path, text).products[3].title == 'A "b" c 3'
    broken = csv_text(products()).replace("Green Bag no. 10", '"Green Bag no. 10').replace("Coat no. 1,", 'Coat 14",')
    catalog = read(tmp_path, broken)
    assert codes(catalog) == CODES
    assert [catalog.products[n].title for n in (1, 10)] == ['Blue Coat 14"', '"Green Bag no. 10']
    assert catalog.notes[0] == "unclosed quotation marks are read as text: 1"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([f"{123 + n}.0" for n in range(12)], [f"{123 + n}" for n in range(12)]),
        (["1.0", "2.0", "3.5"], ["1.0", "2.0", "3.5"]),
        (['="00101"', "'00102", "００１０３"], ["00101", "00102", "00103"]),
    ],
)
def test_codes_are_what_they_were_before_a_program_changed_them(
    tmp_path: Path, cells: list[str], expected: list[str]
) -> None:
    assert codes(read(tmp_path, csv_text(products(len(cells), sku=cells.__getitem__)))) == expected


def test_html_is_gone_from_titles_but_for_control_tokens(tmp_path: Path) -> None:
    title = '<b>Shirt</b> &amp;amp; belt&nbsp;<br/>10&quot; <span class="x">women&rsquo;s</span> 3 < 5 <x>'
    assert read(tmp_path, csv_text(products(4, title=title))).products[0].title == 'Shirt & belt 10" women’s 3 < 5 <x>'
    catalog = read(tmp_path, csv_text(products(4, title=lambda n: "&lt;|end|&gt; Hat" if n else "Hat")))
    assert [one.reason for one in catalog.dropped] == ["a value spells a control token of the model"] * 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"categories": ","}, "Gear > Bags"),
        ({"categories": ",", "levels": "/"}, "Bags > Totes"),
        ({"category": "category"}, "Gear, Gear > Bags, Default Category/Bags/Totes"),
    ],
)
def test_a_cell_may_hold_several_categories(tmp_path: Path, settings: dict[str, object], expected: str) -> None:
    text = csv_text(products(category="Gear, Gear > Bags, Default Category/Bags/Totes"))
    assert read(tmp_path, text, **settings).categories == (expected,)
