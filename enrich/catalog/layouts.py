"""Known layouts: propose what each column of a table contains, from the names in its header."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enrich.settings.catalog import Columns


@dataclass(frozen=True)
class Layout:
    """One layout. Names are in lower case, with one space between words."""

    name: str
    signs: tuple[str, ...]  # columns that only it has, all of them
    roles: Mapping[str, tuple[str, ...]]  # the names of each role, the first that is there is taken
    settings: Mapping[str, Any] = field(default_factory=dict)


_GENERAL: Mapping[str, tuple[str, ...]] = {
    "product_code": ("product code", "sku", "product id", "item id", "item number", "article number", "item code",
                     "artikelnummer", "artikelnr", "artnr", "référence", "reference", "ref", "codigo", "code", "id",
                     "key", "handle", "gtin", "ean", "商品コード", "商品番号", "商品编号", "编号", "品番"),
    "title": ("title", "product title", "name", "product name", "item name", "product", "bezeichnung",
              "artikelbezeichnung", "titel", "nom", "titre", "nombre", "título", "titulo", "商品名", "製品名",
              "タイトル", "名称", "商品名称", "标题"),
    "category": ("category", "categories", "product category", "category name", "category path", "product type", "type",
                 "department", "kind", "kategorie", "warengruppe", "catégorie", "categoría", "categoria", "カテゴリ",
                 "カテゴリー", "类别", "分类", "label", "class"),
    "price": ("full price", "list price", "regular price", "original price", "price", "retail price", "unit price",
              "msrp", "rrp", "uvp", "preis", "verkaufspreis", "prix", "precio", "prezzo", "定価", "価格", "原价",
              "价格", "cost"),
    "currency": ("currency", "currency code", "price currency", "währung", "devise", "moneda", "通貨", "货币"),
    "image_path": ("local image path", "image path", "photos", "images", "image", "photo", "pictures", "picture",
                   "image src", "image link", "image url", "imageurl", "image urls", "photo url", "img",
                   "file name", "filename", "file", "path", "bild", "bilder", "bildpfad", "foto", "fotos", "imagen",
                   "画像", "图片"),
}  # fmt: skip
_FETCHED = "local image path"
_MORE = re.compile(
    r"(?:additional|more|other|further|extra) (?:image|photo|picture)s?(?: (?:link|url|path|src)s?)?(?: \(?\d+\)?)?"
)
_NUMBERED = re.compile(r"(?:image|photo|picture|img|bild|foto|画像)(?: (?:link|url|path|src|file))? ?\(?[0-9]{1,2}\)?")

LAYOUTS = (
    Layout("Shopify", ("handle", "image src"), {
        "product_code": ("handle",), "title": ("title",), "category": ("product category", "type"),
        "price": ("variant price",), "image_path": ("image src",),
    }, {"decimal": "."}),
    Layout("Shopify", ("url handle", "product image url"), {
        "product_code": ("url handle",), "title": ("title",), "category": ("product category", "type"),
        "price": ("price",), "image_path": ("product image url",),
    }, {"decimal": "."}),
    Layout("WooCommerce", ("sku", "name", "regular price", "images"), {
        "product_code": ("sku",), "title": ("name",), "category": ("categories",), "price": ("regular price",),
        "image_path": ("images",),
    }, {"categories": ","}),
    Layout("Magento", ("sku", "base image"), {
        "product_code": ("sku",), "title": ("name",), "category": ("categories",), "price": ("price",),
        "image_path": ("base image",), "more_images": ("additional images",),
    }, {"levels": "/", "categories": ","}),
    Layout("Merchant Center", ("id", "image link"), {
        "product_code": ("id",), "title": ("title", "structured title"),
        "category": ("product type", "google product category"),
        "price": ("price",), "image_path": ("image link",), "more_images": ("additional image link",),
    }, {"decimal": "."}),
    Layout("the tutorial's", ("product code", "category3 code", "full price"), {
        "product_code": ("product code",), "title": ("title",), "price": ("full price",),
        "category": ("category3 code", "category2 code", "category1 code"), "currency": ("currency code",),
        "image_path": ("local image path", "imageurl"),
    }),
)  # fmt: skip


@dataclass(frozen=True)
class Proposal:
    """A proposal."""

    layout: str  # its name
    columns: Columns
    missing: tuple[str, ...]  # roles for which no column was found


def propose(header: Sequence[str], given: Mapping[str, Any], filled: Mapping[str, float] = {}) -> Proposal:
    """The columns of a table with this header. What `given` sets is kept.

    Args:
        filled: by column, the share of non-empty cells; a price column with few of them is passed over.
    """
    names = {_plain(name): name for name in reversed(header)}
    layout = next((one for one in LAYOUTS if all(sign in names for sign in one.signs)), None)
    roles = layout.roles if layout else _GENERAL
    if _FETCHED in names:  # `enrich catalog fetch` put the photos of all columns there
        roles = {**roles, "image_path": (_FETCHED,), "more_images": ()}
    found: dict[str, Any] = {}
    for role in _GENERAL:
        wanted = roles.get(role, _GENERAL[role] if role == "currency" else ())
        there = [names[name] for name in wanted if name in names and filled.get(names[name], 1) > 0]
        if role == "price" and there:
            there.sort(key=lambda name: filled.get(name, 1) < 0.5)
        if there:
            found[role] = (
                tuple(there) if role == "category" and layout else (there[0],) if role == "category" else there[0]
            )
    first = found.get("image_path")
    more = [names[name] for name in roles.get("more_images", ()) if name in names]
    more = more or ([] if _FETCHED in names else _further(names, header, first))
    if first is None and more:
        found["image_path"], *more = more
    if more:
        found["more_images"] = tuple(more)
    missing = tuple(role for role in ("product_code", "title", "category", "price", "image_path")
                    if role not in found and role not in given)  # fmt: skip
    settings = {**(layout.settings if layout else {}), **found, **given}
    return Proposal(layout.name if layout else "names of columns", Columns.model_validate(settings), missing)


def _further(names: Mapping[str, str], header: Sequence[str], first: str | None) -> list[str]:
    """Columns with further photos: `additional_image_link`, `image_2`."""
    numbered = [name for name in header if _NUMBERED.fullmatch(_plain(name)) and name != first]
    return [name for name in header if _MORE.fullmatch(_plain(name))] + numbered


def as_yaml(columns: Columns) -> str:
    """The proposal as a settings file."""
    import yaml

    said = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in columns
        if value not in (None, (), {}, False)
    }
    standard = Columns()
    needed = ("product_code", "title", "category", "price", "currency", "image_path")
    told = {
        name: value
        for name, value in said.items()
        if name in needed or getattr(columns, name) != getattr(standard, name)
    }
    return yaml.safe_dump({"columns": told}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[\s_\-./:\[\]]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).casefold().split())
