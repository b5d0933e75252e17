"""Catalogs of every format, made of the twelve products of `tables`: what tests read, and docs/catalogs.md lists."""

import base64
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from enrich.settings.catalog import Columns
from tests.testing.tables import COLUMNS, csv_text, products, workbook

ROWS = products()
WITHOUT_PHOTOS = [{name: cell for name, cell in row.items() if name != "image"} for row in ROWS]
PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BY_ITSELF = Columns()  # the format says which value is which

Photos = list[bytes]  # of the products, in order; they are also in images/0.jpg and so on


@dataclass(frozen=True)
class Source:
    """A format, and how to write the products in it.

    Attributes:
        files: the path of each file below the catalog, and its bytes, from the photos.
        photos: where the format has its photos.
        note: for the reader of the documentation.
    """

    name: str
    files: Callable[[Photos], dict[str, bytes]]
    photos: str = "paths"
    columns: Columns = COLUMNS
    note: str = ""


def json_lines(records: list[dict[str, Any]]) -> bytes:
    """A record a line."""
    return "\n".join(map(json.dumps, records)).encode()


def parquet(photos: list[Any], kind: pa.DataType | None = None) -> bytes:
    """A Parquet file whose column `image` holds `photos`."""
    columns = {name: pa.array([row[name] for row in ROWS]) for name in WITHOUT_PHOTOS[0]}
    sink = io.BytesIO()
    pq.write_table(pa.table({**columns, "image": pa.array(photos, kind)}), sink)
    return sink.getvalue()


def _archive(photos: Photos) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        for row, photo, rest in zip(ROWS, photos, WITHOUT_PHOTOS, strict=True):
            for name, data in ((f"{row['sku']}.jpg", photo), (f"{row['sku']}.json", json.dumps(rest).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _llava() -> list[dict[str, Any]]:
    return [
        {"id": row["sku"], "image": row["image"], "conversations": [
            {"from": "human", "value": "<image>\nWhat product is this?"},
            {"from": "gpt", "value": "Product: {title}\nCategory: {category}\nFull Price: {price}".format(**row)}]}
        for row in ROWS
    ]  # fmt: skip


def _sharegpt() -> list[dict[str, Any]]:
    return [
        {"id": row["sku"], "images": [row["image"]], "messages": [
            {"role": "user", "content": "<image>"},
            {"role": "assistant", "content": json.dumps({name: row[name] for name in ("title", "category", "price")})}]}
        for row in ROWS
    ]  # fmt: skip


def _data_uri(photo: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"


SOURCES = (
    Source(
        "CSV",
        lambda _: {"catalog.csv": csv_text(ROWS).encode()},
        note="quoted line breaks, bare inch marks",
    ),
    Source("CSV with tabs", lambda _: {"catalog.tsv": csv_text(ROWS, "\t").encode()}),
    Source(
        "CSV with photos in its cells",
        lambda photos: {"catalog.csv": csv_text(products(image=lambda n: _data_uri(photos[n]))).encode()},
        "`data:` URIs",
    ),
    Source(
        "Excel",
        lambda _: {"catalog.xlsx": workbook(products(price=lambda n: 20.5 + 7 * n))},
        note="the first sheet with rows; numbers as they are; pictures in cells are not read",
    ),
    Source(
        "JSON Lines",
        lambda _: {"catalog.jsonl": json_lines(ROWS)},
        note="also `.ndjson`; `price.amount` names what is nested",
    ),
    Source(
        "JSON",
        lambda _: {"catalog.json": json.dumps({"products": ROWS}).encode()},
        note="a list of records, alone or below one name",
    ),
    Source(
        "LLaVA conversations",
        lambda _: {"catalog.json": json.dumps(_llava()).encode()},
        columns=BY_ITSELF,
        note="the last answer, as labelled lines or JSON",
    ),
    Source(
        "ShareGPT conversations",
        lambda _: {"catalog.jsonl": json_lines(_sharegpt())},
        columns=BY_ITSELF,
        note="the last answer, as labelled lines or JSON",
    ),
    Source(
        "Parquet",
        lambda _: {"catalog.parquet": parquet([{"bytes": None, "path": row["image"]} for row in ROWS], PATHS)},
        "paths, as texts or in structs",
        note="numbers and lists",
    ),
    Source("Parquet with photos", lambda photos: {"catalog.parquet": parquet([*photos])}, "bytes"),
    Source(
        "Hugging Face data set",
        lambda photos: {"catalog.parquet": parquet([{"bytes": one, "path": None} for one in photos])},
        "structs of bytes and path",
        note="by its id: `enrich catalog fetch`, with `image_url: image`",
    ),
    Source(
        "WebDataset",
        lambda photos: {"shard-00.tar": _archive(photos)},
        "members of the archive",
        BY_ITSELF,
        "photos with the JSON, `.txt` and `.cls` of the same name",
    ),
)

# Language of the titles, Python's name of the encoding, and what `catalog check` calls it.
ENCODINGS = (
    ("German", "cp1252", "windows-1252"),
    ("French", "cp1252", "windows-1252"),
    ("one word", "cp1252", "windows-1252"),
    ("Japanese", "shift_jis", "shift_jis"),
    ("half width", "cp932", "shift_jis"),
    ("Japanese", "euc_jp", "euc-jp"),
    ("Chinese", "gb18030", "gb18030"),
    ("traditional", "big5", "big5"),
    ("Russian", "cp1251", "windows-1251"),
    ("Greek", "cp1253", "windows-1253"),
    ("Polish", "cp1250", "windows-1250"),
    ("Korean", "cp949", "euc-kr"),
    ("Japanese", "utf-8", "utf-8"),
    ("German", "utf-8-sig", "utf-8-sig"),
    ("Chinese", "utf-16", "utf-16"),
    ("German", "utf-16-le", "utf-16-le"),
    ("Japanese", "utf-16-be", "utf-16-be"),
)
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
