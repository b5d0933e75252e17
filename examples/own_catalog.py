"""Your own catalog to Parquet on one machine: `python examples/own_catalog.py CATALOG PHOTOS OUT [SETTINGS.yaml]`.

CATALOG is a folder with catalog.csv and the photos that it names, PHOTOS a folder of photos to answer. The adapter goes
to OUT/adapter and the table to OUT/enriched/products.parquet. The settings file names the columns of your table, and
may change anything else (docs/settings.md):

    finetune:
      columns: {product_code: sku, category: [department], price: list_price, image_path: photo}
    run:
      review: {min_confidence: 0.9}
"""

import sys

import enrich
from enrich.errors import EnrichError


def main(catalog: str, photos: str, out: str, settings: str | None = None) -> None:
    adapter = enrich.finetune(catalog, f"{out}/adapter", settings, on_message=print)
    test = adapter.metrics["test"]
    print(f"{test['rows']} unseen products: {test['category_accuracy']:.0%} of the categories are right")
    if adapter.warning:  # it learned too little; the run below is held back unless the settings allow it
        print(adapter.warning)

    record = enrich.run(photos, adapter.uri, f"{out}/enriched", settings, on_message=print)
    print(f"run {record.run.run_id}: {record.state}, {record.counts}")

    products = enrich.read_products(f"{out}/enriched").filter(status="ok").sort("category_confidence")
    print(products.select("product_id", "title", "category", "price", "needs_review").head(10).collect())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except EnrichError as error:
        sys.exit(f"error: {error}")
