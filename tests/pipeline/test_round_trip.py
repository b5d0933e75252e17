"""A shop's export in, a feed out: checked, fetched, fine-tuned on, answered, exported, read back; the same products."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from pyiceberg.catalog import load_catalog

from enrich.catalog.read import read_catalog
from enrich.output.decisions import DecidedPhoto, Decision, DecisionFile
from enrich.settings.catalog import SampleSettings
from enrich.vocabulary import Product
from sample.make import make_sample
from tests.testing.badweb import Web, reply, serve
from tests.testing.cli import RunCli
from tests.testing.feed_rules import (
    MERCHANT,
    MERCHANT_REQUIRED,
    SHOPIFY,
    SHOPIFY_REQUIRED,
    WOOCOMMERCE,
    broken,
)

PRODUCTS = 20
RUN = {"group_by": "folder", "gate": {"enabled": False}, "sink": "iceberg"}
TRAINING = {"model": "phi3v-tiny", "epochs": 1, "evaluations": 1, "num_crops": 1}


@dataclass(frozen=True)
class Shop:
    """A shop: products, their photos by product in a bucket, and the same photos on the web."""

    products: list[Product]
    bucket: Path
    web: Web

    def links(self, product: Product) -> list[str]:
        folder = self.bucket / product.product_code
        return [f"{self.web.url}/{product.product_code}/{path.name}" for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    make_sample(str(root / "drawn"), SampleSettings(products=PRODUCTS, seed=3, photos=2, holdout=0))
    products = [*read_catalog(root / "drawn").products]
    with serve() as web:
        for product in products:
            for number, photo in enumerate(product.image_paths, start=1):
                path = root / "bucket" / product.product_code / f"{number}{Path(photo).suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(Path(photo).read_bytes())
                web.answers[f"/{product.product_code}/{path.name}"] = reply(200, path.read_bytes())
        yield Shop(products, root / "bucket", web)


def shopify_rows(shop: Shop) -> list[dict[str, str]]:
    """A row a photo; only the first one describes the product."""
    rows = []
    for one in shop.products:
        first = {
            "Title": one.title, "Body (HTML)": f"<p>{one.title}</p>", "Vendor": "Shop", "Type": one.category,
            "Tags": "new, linen", "Published": "TRUE", "Option1 Name": "Title", "Option1 Value": "Default Title",
            "Variant SKU": one.product_code, "Variant Price": f"{one.price:.2f}", "Gift Card": "FALSE",
            "Status": "active",
        }  # fmt: skip
        for position, link in enumerate(shop.links(one), start=1):
            rows.append({"Handle": one.product_code, **(first if position == 1 else {}), "Image Src": link,
                         "Image Position": str(position)})  # fmt: skip
    return rows


def woocommerce_rows(shop: Shop) -> list[dict[str, str]]:
    return [
        {
            "ID": str(number), "Type": "simple", "SKU": one.product_code, "Name": one.title.replace("&", "&amp;"),
            "Published": "1", "Is featured?": "0", "Visibility in catalog": "visible", "Tax status": "taxable",
            "In stock?": "1", "Regular price": f"{one.price:.2f}", "Categories": f"Clothing, Clothing > {one.category}",
            "Images": ", ".join(shop.links(one)), "Position": "0",
        }
        for number, one in enumerate(shop.products, start=1)
    ]  # fmt: skip


def merchant_rows(shop: Shop) -> list[dict[str, str]]:
    return [
        {
            "id": one.product_code, "title": one.title if number % 2 else "",
            "structured_title": "" if number % 2 else f'trained_algorithmic_media:"{one.title}"',
            "description": one.title, "link": f"https://shop.example/{one.product_code}", "image_link": links[0],
            "additional_image_link": ",".join(links[1:]), "availability": "in_stock", "condition": "new",
            "price": f"{one.price:.2f} EUR", "brand": "Shop", "product_type": f"Clothing > {one.category}",
        }
        for number, one in enumerate(shop.products)
        for links in [shop.links(one)]
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, str]], columns: list[str]) -> None:
    """A table with all of the published columns, most of them empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        delimiter = "," if path.suffix == ".csv" else "\t"
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))


@dataclass(frozen=True)
class Layout:
    """How one kind of shop writes its products, and in which format they leave."""

    rows: Callable[[Shop], list[dict[str, str]]]
    columns: list[str]
    source: str  # name of the file that comes in
    code: str  # column of the product's code
    photos: str | list[str]
    format: str
    feed: str  # name of the file that goes out
    currency: str | None


LAYOUTS = {
    "Shopify": Layout(shopify_rows, [*SHOPIFY], "products_export.csv", "Handle", "Image Src", "shopify", "shop.csv",
                      None),
    "WooCommerce": Layout(woocommerce_rows, [*WOOCOMMERCE], "wc-product-export.csv", "SKU", "Images", "csv", "all.csv",
                          None),
    "Merchant Center": Layout(merchant_rows, [*MERCHANT], "feed.tsv", "id", ["image_link", "additional_image_link"],
                              "merchant", "out.tsv", "EUR"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_products_come_back_as_they_were(
    shop: Shop, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    layout = LAYOUTS[name]

    def enrich(*words: object) -> str:
        code, out, err = run_cli("", *words)
        assert code == (3 if words[0] == "finetune" else 0), (words, err)  # 3: two steps teach it too little
        return out

    def checked(table: Path, settings: Path) -> dict[str, dict[str, Any]]:
        out = enrich("catalog", "check", "--catalog", table, "--columns", "auto", "--config", settings,
                     "--json", tmp_path / "check.json")  # fmt: skip
        found = json.loads((tmp_path / "check.json").read_text())
        assert found["dropped"] == [], out
        return {row["product_code"]: row for row in found["rows"]}

    def settings(file: str, **values: object) -> Path:
        (tmp_path / file).write_text(yaml.safe_dump(values))
        return tmp_path / file

    source, catalog, training = tmp_path / layout.source, tmp_path / "catalog", tmp_path / "training.yaml"
    write(source, layout.rows(shop), layout.columns)
    came = checked(source, tmp_path / "source.yaml")
    for one in shop.products:
        row = came[one.product_code]
        assert (row["title"], row["price"], row["photos"]) == (one.title, one.price, shop.links(one))
        assert row["category"].split(" > ")[-1] == one.category

    fetch = settings("fetch.yaml", product_code=layout.code, image_url=layout.photos, allow_private=True)
    assert "0 failed" in enrich("catalog", "fetch", "--source", source, "--out", catalog, "--config", fetch)
    assert {code: len(row["photos"]) for code, row in checked(catalog, training).items()} == {
        code: len(row["photos"]) for code, row in came.items()
    }
    columns = yaml.safe_load(training.read_text())
    table = catalog / "catalog.csv" if name == "WooCommerce" else catalog  # a directory, or the table itself
    enrich("finetune", "--catalog", table, "--out", tmp_path / "adapter",
           "--config", settings("training.yaml", **columns, **TRAINING))  # fmt: skip
    enrich("run", "--images", shop.bucket, "--adapter", tmp_path / "adapter", "--output", tmp_path / "output",
           "--config", settings("run.yaml", **RUN))  # fmt: skip
    # What is tested is the way of a product, not how good two steps of training are: a person accepts every answer.
    (tmp_path / "decisions.json").write_text(accepted(tmp_path / "output").model_dump_json())
    enrich("review", "--output", tmp_path / "output", "--apply", tmp_path / "decisions.json")
    answered = pl.read_parquet(tmp_path / "output/products.parquet")
    assert (answered["status"] == "ok").all()
    assert answered["price"].is_not_null().all()

    feed = tmp_path / layout.feed
    out = enrich("export", "--output", tmp_path / "output", "--format", layout.format, "--to", feed,
                 "--link-prefix", shop.web.url)  # fmt: skip
    assert out.splitlines()[-1] == "left out: nothing"
    if layout.format == "shopify":
        assert broken(read(feed), SHOPIFY, SHOPIFY_REQUIRED) == []
    if layout.format == "merchant":  # a supplemental source: the links and the availability are in the primary one
        required = [names for names in MERCHANT_REQUIRED if names not in (("link",), ("availability",))]
        assert broken(read(feed), MERCHANT, required) == []
    back = checked(feed, tmp_path / "back.yaml")
    assert {code: row["photos"] for code, row in back.items()} == {code: row["photos"] for code, row in came.items()}
    for product, title, category, price in answered.select("product_id", "title", "category", "price").iter_rows():
        row = back[product]
        assert (row["title"], row["category"], row["price"]) == (title, category, price)
    assert {row["currency"] for row in back.values()} == {layout.currency}
    lake = load_catalog("default", type="sql", uri=f"sqlite:///{tmp_path}/output/iceberg/catalog.db")
    followed = lake.load_table("enrich.products")
    said = [snapshot.summary["enrich.action"] for snapshot in followed.snapshots() if snapshot.summary]
    assert said == ["publish", "review"]
    assert followed.scan().to_arrow()["title"].to_pylist() == answered["title"].to_list()


def accepted(output: Path) -> DecisionFile:
    """Every answer as it is, as the review page saves it."""
    rows = pl.read_parquet(output / "products.parquet").to_dicts()
    decisions = [
        Decision(
            product_id=row["product_id"], run_id=row["run_id"], decision="accepted", title=row["title"],
            category=row["category"], suggested_title=row["title"], suggested_category=row["category"],
            price=row["price"], suggested_price=row["price"], currency=row["currency"],
            photos=tuple(DecidedPhoto(key=one["key"], etag=one["etag"], sha256=one["sha256"]) for one in row["photos"]),
        )
        for row in rows
    ]  # fmt: skip
    return DecisionFile(format="enrich-review-2", output=str(output), reviewed_by="Ann", decisions=tuple(decisions))
