"""The catalog as fine-tuning teaches it: categories as leaves or paths, and as a standard writes them."""

from pathlib import Path

from enrich.answers.path import levels_of
from enrich.catalog.read import Catalog, read_catalog
from enrich.catalog.taxonomy import adopt, read_taxonomy
from enrich.errors import UsageError
from enrich.settings.training import TrainSettings


def read_taught(folder: Path, settings: TrainSettings) -> Catalog:
    """The catalog in `folder` under these settings.

    Raises:
        UsageError: as `read_catalog`, `read_taxonomy` and `adopt`; or categories are to be paths and none has levels.
    """
    taxonomy = read_taxonomy(settings.taxonomy) if settings.taxonomy else None
    catalog = read_catalog(folder, settings.columns, settings.group_by, category_path=settings.category_path)
    if taxonomy:
        catalog = adopt(catalog, taxonomy)
    if settings.category_path and all(len(levels_of(label)) < 2 for label in catalog.categories):
        raise UsageError(
            f"catalog {folder}: category_path is set, and no category has more than one level, such as "
            f"{catalog.categories[0]!r}; name the columns of the broader levels in columns.category, the most specific "
            "first, or write categories as `A > B`"
        )
    return catalog
