"""The catalog as fine-tuning teaches it, and the prompt that it is taught with."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from enrich.answers.fields import Field
from enrich.answers.kinds import KINDS
from enrich.answers.path import levels_of
from enrich.answers.prompt import SHORTEST_BUDGET, Prompt, make_prompt
from enrich.answers.wording import WORDINGS
from enrich.catalog.read import Catalog, read_catalog
from enrich.catalog.taxonomy import adopt, read_taxonomy
from enrich.errors import UsageError
from enrich.settings.fields import FieldSettings
from enrich.settings.training import TrainSettings
from enrich.vocabulary import Product


def read_taught(folder: Path, settings: TrainSettings, *, urls: bool = False) -> Catalog:
    """The catalog in `folder` under these settings; `urls` as in `read_catalog`.

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
    return catalog


def taught_prompt(
    settings: TrainSettings, catalog: Catalog, products: Sequence[Product], max_new_tokens: int = SHORTEST_BUDGET
) -> Prompt:
    """The prompt under these settings, with the categories and values of `products`, of `catalog`.

    Raises:
        UsageError: a word of the settings cannot stand in a prompt.
    """
    try:
        return make_prompt(
            sorted({product.category for product in products}),
            catalog.currency,
            language=settings.language,
            wording=settings.wording,
            others=[_field(name, field, products) for name, field in settings.fields.items()],
            max_new_tokens=max_new_tokens,
            category_path=settings.category_path,
            category_ids=catalog.category_ids,
            terse=settings.terse,
        )
    except ValidationError as error:
        first = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"fields: {first}; change it under fields or wording in the settings") from error


def _field(name: str, settings: FieldSettings, products: Sequence[Product]) -> Field:
    closed = KINDS[settings.kind].closed
    values = {value for product in products if (value := product.attributes.get(name))} if closed else ()
    return Field(
        name=name,
        kind=settings.kind,
        label=settings.label_of(name),
        column=settings.column_of(name),
        values=tuple(sorted(values)),
    )


def unknown_word(settings: TrainSettings) -> str:
    """What is answered where a value is not known."""
    return settings.wording.unknown or WORDINGS[settings.language].unknown
