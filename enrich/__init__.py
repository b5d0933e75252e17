"""Titles, categories and prices of products from their photos, by a model fine-tuned on a retailer's catalog.

    import enrich

    adapter = enrich.finetune("s3://shop/catalog", "s3://shop/adapter", {"epochs": 3})
    record = enrich.run("s3://shop/photos", adapter.uri, "s3://shop/enriched")
    doubtful = enrich.read_products("s3://shop/enriched").filter(needs_review=True).collect()

Locations are local paths or `s3://bucket/prefix`. Settings are those of the command of the same name
(docs/settings.md): a mapping, a YAML file, or a settings object of `enrich.settings`. Errors that a user can act on are
raised as an `enrich.errors.EnrichError` with a one-line message.

`progress` is called with the current activity, the steps done, and the total (0: unknown); `on_message` with lines
about what was chosen, found or left out. Importing this package is cheap: each function imports what it needs, so
torch, vLLM and Polars are loaded only when used.
"""

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from datetime import timedelta

    import polars as pl

    from enrich.output.run_record import RunRecord
    from enrich.pipeline.finetuning import Finetuned
    from enrich.pipeline.progress import OnMessage, Progress
    from enrich.pipeline.scoring import Scored
    from enrich.settings.base import Settings
    from enrich.settings.run import RunSettings
    from enrich.settings.training import TrainSettings

    S = TypeVar("S", bound=Settings)

__all__ = ["finetune", "read_products", "run", "score"]
__version__ = "0.2.0"

Place = str | Path


def finetune(
    catalog: Place,
    out: Place,
    settings: "TrainSettings | Mapping[str, Any] | Place | None" = None,
    *,
    progress: "Progress | None" = None,
    on_message: "OnMessage | None" = None,
) -> "Finetuned":
    """Fine-tune a vision-language model on a labelled catalog, and write a LoRA adapter with measured errors to `out`.

    If a call was killed, the same call continues from its last checkpoint.

    Returns:
        Where the adapter is (`uri`), its id (`adapter`), its scores on products it never saw (`metrics`), and a
        `warning` if it is not better than guessing without a photo. Of several processes (RANK, WORLD_SIZE) only
        the first one returns; the others end with SystemExit(0).

    Raises:
        UsageError: catalog, model or settings are unusable; nothing was written. RunFailed: training stopped.
    """
    from enrich.pipeline.finetuning import finetune as run
    from enrich.settings.training import TrainSettings

    chosen = _settings(TrainSettings, settings, "finetune")
    return run(str(catalog), str(out), chosen, progress or _ignore, on_message or _ignore)


def run(
    images: Place,
    adapter: Place,
    output: Place,
    settings: "RunSettings | Mapping[str, Any] | Place | None" = None,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    deadline: "timedelta | None" = None,
    inventory: str | None = None,
    products: Place | None = None,
    progress: "Progress | None" = None,
    on_message: "OnMessage | None" = None,
) -> "RunRecord":
    """Answer the products that are new or whose photos changed, and publish `output`/products.parquet.

    Args:
        run_id: Names the run. That of an unfinished run continues it.
        limit: Maximum number of products; the next run does the rest.
        deadline: Time from now after which no shard is started; what is done is published.
        inventory: URI of the manifest.json of an S3 Inventory of `images`, read instead of listing the bucket.
        products: A table (CSV or Parquet) with columns product_id and photos, the keys of a product's photos in order:
            a list, or text separated by |. Only its products are processed, and `group_by` is ignored.

    Returns:
        The run's record (run.json). Its `state` is published, nothing_to_do, or held if the publish gate left
        products.parquet unchanged; `findings` say why.

    Raises:
        UsageError: nothing was started. RunFailed, StorageError: the run stopped; the same `run_id` continues it.
    """
    began = monotonic()
    from enrich.engines.vllm_core import begin_early
    from enrich.settings.run import RunSettings

    chosen = _settings(RunSettings, settings, "run")
    begin_early(chosen)  # while this process imports torch
    from enrich.pipeline.run.enrichment import run_enrichment
    from enrich.pipeline.run.request import RunRequest

    request = RunRequest(
        str(images), str(adapter), str(output), chosen, run_id, limit, inventory,
        None if deadline is None else deadline.total_seconds(), None if products is None else str(products),
        waited=monotonic() - began,
    )  # fmt: skip
    return run_enrichment(request, progress or _ignore, on_message or _ignore)


def score(
    adapter: Place,
    catalog: Place,
    settings: "RunSettings | Mapping[str, Any] | Place | None" = None,
    *,
    out: Place | None = None,
    progress: "Progress | None" = None,
    on_message: "OnMessage | None" = None,
) -> "tuple[Scored, ...]":
    """Score an adapter: on the test split of the catalog it was trained on, or on every row of another catalog.

    Args:
        out: Folder for metrics.json, scores.parquet and scores.html.

    Returns:
        One `Scored` for the catalog: which rows (`what`), a table with a row per product (`table`, a Polars DataFrame)
        and every metric with its error bar (`metrics`, as in metrics.json). A sample catalog has a second one, for its
        hold-out.

    Raises:
        UsageError: adapter, catalog or settings are unusable.
    """
    from enrich.pipeline.scoring import score_adapter
    from enrich.settings.run import RunSettings

    found = score_adapter(
        str(adapter), str(catalog), _settings(RunSettings, settings, "score"), out=None if out is None else str(out),
        progress=progress or _ignore, on_message=on_message or _ignore,
    )  # fmt: skip
    return tuple(found)


def read_products(output: Place) -> "pl.LazyFrame":
    """The table of an output: one row per product, its newest good answer (columns: DATA.md).

    Raises:
        UsageError: no run was published there yet.
    """
    import polars as pl

    from enrich.errors import UsageError
    from enrich.storage import open_store

    store = open_store(str(output), must_exist=True)
    if store.head("products.parquet") is None:
        raise UsageError(f"output {output}: no products.parquet yet; publish a run with `enrich run`")
    return pl.scan_parquet(store.uri_of("products.parquet"))


def _settings(cls: "type[S]", given: "S | Mapping[str, Any] | Place | None", command: str) -> "S":
    from enrich.settings.load import load_settings

    if isinstance(given, cls):
        return given
    if isinstance(given, Mapping):
        return load_settings(cls, **given)
    assert given is None or isinstance(given, str | Path)
    return load_settings(cls, given, command)


def _ignore(*_: object) -> None:
    """Ignore progress."""
