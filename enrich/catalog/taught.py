"""The catalog as fine-tuning uses it, and the prompt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from enrich.answers.amount import LARGEST, WHOLE_UNITS
from enrich.answers.fields import Field
from enrich.answers.kinds import KINDS
from enrich.answers.kinds.number import decimals
from enrich.answers.path import levels_of
from enrich.answers.prompt import SHORTEST_BUDGET, Prompt, in_steps, make_prompt, of_steps
from enrich.answers.wording import WORDINGS
from enrich.catalog.read import Catalog, read_catalog
from enrich.catalog.taxonomy import adopt, read_taxonomy
from enrich.errors import UsageError
from enrich.settings.fields import FieldSettings
from enrich.settings.training import TrainSettings
from enrich.vocabulary import PriceUnit, Product, same_design

SAME_PRICE = 0.05  # relative difference of two prices that a shop would call the same
FEW_SMALL = 0.05  # share of a catalog's prices that may change more than that
MOST_IN_CENTS = 99_999  # units of the currency: seven digits in cents; with longer ones `auto` leaves prices whole


def read_taught(folder: Path, settings: TrainSettings, *, urls: bool = False) -> Catalog:
    """The catalog in `folder` under these settings, and messages for the user; `urls` as in `read_catalog`.

    Raises:
        UsageError: as `read_catalog`, `read_taxonomy` and `adopt`; or categories are to be paths and none has levels.
    """
    taxonomy = read_taxonomy(settings.taxonomy) if settings.taxonomy else None
    catalog = read_catalog(
        folder, settings.columns, settings.group_by, category_path=settings.category_path,
        fields=settings.fields, unknown=unknown_word(settings), urls=urls,
    )  # fmt: skip
    if taxonomy:
        catalog = adopt(catalog, taxonomy)
    if settings.category_path and all(len(levels_of(label)) < 2 for label in catalog.categories):
        raise UsageError(
            f"catalog {folder}: category_path is set, and no category has more than one level, such as "
            f"{catalog.categories[0]!r}; name the columns of the broader levels in columns.category, the most specific "
            "first, or write categories as `A > B`"
        )
    return replace(catalog, notes=(*catalog.notes, *_of_prices(settings, catalog)))


def taught_prompt(
    settings: TrainSettings, catalog: Catalog, products: Sequence[Product], max_new_tokens: int = SHORTEST_BUDGET
) -> Prompt:
    """The prompt under these settings, with the categories and choices of `products`, of `catalog`.

    Raises:
        UsageError: a word of the settings cannot stand in a prompt.
    """
    try:
        return make_prompt(
            sorted({product.category for product in products}),
            catalog.currency,
            language=settings.language,
            wording=settings.wording,
            others=[_field(name, field, catalog, products) for name, field in settings.fields.items()],
            max_new_tokens=max_new_tokens,
            category_path=settings.category_path,
            category_ids=catalog.category_ids,
            terse=settings.terse,
            price_unit=price_unit(settings, catalog),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where, why = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {why}; change it under fields or wording in the settings") from error


def spelled_as_taught(catalog: Catalog, prompt: Prompt) -> Catalog:
    """The catalog with categories and choices as `prompt` spells them, where it has them in another case or spacing."""
    known = {field.name: {same_design(value): value for value in field.values} for field in prompt.fields}

    def spelled(name: str, value: str) -> str:
        return known.get(name, {}).get(same_design(value), value)

    products = tuple(
        replace(
            product,
            category=spelled("category", product.category),
            attributes={name: value and spelled(name, value) for name, value in product.attributes.items()},
        )
        for product in catalog.products
    )
    labels = {label: spelled("category", label) for label in catalog.categories}
    return replace(
        catalog,
        products=products,
        categories=tuple(sorted(set(labels.values()))),
        paths={
            labels[label]: levels_of(labels[label]) if prompt.category_path else (*path[:-1], labels[label])
            for label, path in catalog.paths.items()
        },
    )


def price_unit(settings: TrainSettings, catalog: Catalog) -> PriceUnit:
    """The unit of a price in an answer: as the settings say, or as suits the catalog's prices.

    Raises:
        UsageError: the settings say cents, and the currency has none or a price has too many digits then.
    """
    prices = [one.price for one in catalog.products if one.price]
    if settings.price_unit == "cents":
        _refuse_cents(max(prices, default=0.0), catalog.currency)
    if settings.price_unit != "auto":
        return settings.price_unit
    small = sum(map(_loses_cents, prices)) > FEW_SMALL * len(prices)
    return "cents" if small and catalog.currency not in WHOLE_UNITS and max(prices) < MOST_IN_CENTS else "whole"


def _refuse_cents(highest: float, currency: str | None) -> None:
    if currency in WHOLE_UNITS:
        raise UsageError(f"price_unit is cents, and {currency} has none; set price_unit: whole")
    if highest > LARGEST / 100:
        raise UsageError(f"a price of {highest:,.15g} has too many digits in cents; set price_unit: whole")


def _loses_cents(price: float) -> bool:
    """Whether a whole number of units is another price to a shop."""
    return abs(of_steps(in_steps(price, 1.0), 1.0) - price) > SAME_PRICE * price


def _of_prices(settings: TrainSettings, catalog: Catalog) -> list[str]:
    """A line about prices that whole units would change."""
    prices = [(one.price, catalog.row_of[one.product_code]) for one in catalog.products if one.price]
    small = [(price, row) for price, row in prices if _loses_cents(price)]
    if not small:
        return []
    price, row = small[0]
    first = f"the first, {price:g} in row {row}, to {in_steps(price, 1.0)}"
    changed = f"{len(small):,} of {len(prices):,} by over {100 * SAME_PRICE:g} % ({first})"
    if price_unit(settings, catalog) == "cents":
        return [f"prices are taught in cents: whole units would change {changed}"]
    advice = "" if catalog.currency in WHOLE_UNITS else "; set price_unit: cents to keep them"
    return [f"prices are taught in whole units, which changes {changed}{advice}"]


def _field(name: str, settings: FieldSettings, catalog: Catalog, products: Sequence[Product]) -> Field:
    """The field, with the values of `products` if they are choices. Numbers have the decimals of the whole catalog, for
    what its answers look like is asked before it is known which of its products are taught."""
    return Field(
        name=name,
        kind=settings.kind,
        label=settings.label_of(name),
        column=settings.column_of(name),
        values=tuple(sorted(_values(name, products))) if KINDS[settings.kind].closed else (),
        decimals=decimals(_values(name, catalog.products)) if settings.kind == "number" else 0,
    )


def _values(name: str, products: Sequence[Product]) -> set[str]:
    return {value for product in products if (value := product.attributes.get(name))}


def unknown_word(settings: TrainSettings) -> str:
    """The answer for an unknown value."""
    return settings.wording.unknown or WORDINGS[settings.language].unknown
