"""Twelve products with photos, written as tables of any format."""

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image

from enrich.settings.catalog import Columns

COLUMNS = Columns(
    product_code="sku", title="title", category=("category",), price="price", currency="currency", image_path="image"
)
CODES = [f"{101 + n:05}" for n in range(12)]
_TITLES = ("Red Shirt", "Blue Coat", "Green Bag", "Dress")
_KINDS = ("Shirts", "Coats", "Bags", "Dresses")


def products(count: int = 12, **cells: Any) -> list[dict[str, Any]]:
    """Rows; a cell may be a function of the row's number."""
    rows = []
    for n in range(count):
        row: dict[str, Any] = {
            "sku": CODES[n], "title": f"{_TITLES[n % 4]} no. {n}", "category": _KINDS[n % 4],
            "price": f"{20 + 7 * n}.50", "currency": "EUR", "image": f"images/{n}.jpg",
        }  # fmt: skip
        rows.append(row | {name: cell(n) if callable(cell) else cell for name, cell in cells.items()})
    return rows


def write_photos(directory: Path, count: int = 12) -> list[bytes]:
    """images/0.jpg and so on, and their bytes."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    paths = [directory / f"images/{n}.jpg" for n in range(count)]
    for n, path in enumerate(paths):
        Image.new("RGB", (20 + n, 30), (20 * n, 0, 0)).save(path)
    return [path.read_bytes() for path in paths]


def csv_text(rows: Sequence[dict[str, Any]], separator: str = ",") -> str:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()


def workbook(rows: Sequence[dict[str, Any]]) -> bytes:
    """An Excel file with one sheet: texts, and numbers as numbers."""
    namespace = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    relation = (
        '<Relationships xmlns="{0}/relationships"><Relationship Id="rId1" Type="{1}/{2}" Target="{3}"/></Relationships>'
    )
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    lines = "".join(f"<row r='{n}'>{''.join(map(_cell, line))}</row>" for n, line in enumerate(cells, start=1))
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
        f'ContentType="{kind}.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" '
        f'ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": relation.format(package, office, "officeDocument", "xl/workbook.xml"),
        "xl/_rels/workbook.xml.rels": relation.format(package, office, "worksheet", "worksheets/sheet1.xml"),
        "xl/workbook.xml": f'<workbook xmlns="{namespace}" xmlns:r="{office}"><sheets><sheet name="Products" '
        'sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{namespace}"><sheetData>{lines}</sheetData></worksheet>',
    }
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, f'<?xml version="1.0"?>{text}')
    return sink.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
    return f"<c><v>{value}</v></c>"
