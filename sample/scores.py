"""An adapter on the sample that it was made from: its hold-out, compared with the base, and a contact sheet."""

from pathlib import Path
from typing import Any

import polars as pl

from enrich.catalog.read import read_catalog
from enrich.catalog.split import HOLDOUT
from enrich.engines.adapter import read_adapter
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import open_adapter
from enrich.errors import UsageError
from enrich.pipeline.predicting import predict
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.scoring import measure, products_to_score, read_truth, score_base
from enrich.scores.assess import SCORES_FILE
from enrich.scores.metrics import baselines
from enrich.settings.run import RunSettings
from sample.sheet import draw_sheet

HOLDOUT_ROWS = 100  # a share of 0.9 measured on so many has a standard error of 0.03
SHEET_ROWS = 12


def score_holdout(adapter: str, catalog: str, settings: RunSettings, progress: Progress = silent) -> dict[str, Any]:
    """Scores of a local adapter, of its base and of the baselines on the hold-out of its sample, as in metrics.json.

    Raises:
        UsageError: the catalog has no hold-out.
    """
    loaded, folder = open_adapter(Path(adapter), settings.base), Path(catalog) / HOLDOUT
    if not folder.is_dir():
        raise UsageError(f"catalog {catalog}: has no {HOLDOUT}/; generate the sample with a hold-out")
    products = read_catalog(folder).products[:HOLDOUT_ROWS]
    progress("loading the adapter", 0, 0)
    engine = start_engine(loaded, settings)
    predictions = predict(engine, loaded, products, settings.limits, "scoring the hold-out", progress)
    engine.close()
    _, splits = products_to_score(loaded, Path(catalog))
    _, metrics = measure(products, predictions, loaded.calibration, read_truth(folder))
    return {
        **metrics,
        "base": score_base(loaded, products, settings, "scoring the base on it", progress),
        "baselines": baselines(splits.train, products) if splits else {},
    }


def write_sheet(adapter: str, catalog: str, sheet: str) -> None:
    """Draw unseen products of the sample, each of another category, with what the adapter said of them when scored."""
    loaded = read_adapter(Path(adapter))
    products = read_catalog(catalog).products
    photos = {product.product_code: [Path(path) for path in product.image_paths] for product in products}
    table = pl.read_parquet(loaded.path / SCORES_FILE).unique("category", keep="first", maintain_order=True)
    shown = table.gather_every(max(1, table.height // SHEET_ROWS)).head(SHEET_ROWS).to_dicts()
    draw_sheet([(photos[row["product_code"]], row) for row in shown], loaded.prompt.currency).save(sheet)
