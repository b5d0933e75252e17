"""Every night: an adapter for the current catalog, then the bucket."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from enrich.pipeline.adapter_cache import read_metrics
from enrich.pipeline.run.request import RunRequest
from enrich.scores.worth import judge_worth
from flows import nights, tasks
from flows.enrich_catalog import ending, enrich_all
from flows.parameters import (
    RETRAIN,
    RUN,
    TRAINING,
    AdapterInUse,
    Adapters,
    BaseModelName,
    Catalog,
    HoursAtMost,
    Limit,
    Output,
    Photos,
    ProductsTable,
    RetrainForm,
    RunForm,
    TrainingForm,
)


@flow(name="nightly", flow_run_name="nightly {images}")
def nightly(
    catalog: Catalog = "demo/catalog",
    images: Photos = "demo/bucket",
    output: Output = "demo/output",
    adapters: Adapters = "demo/adapters",
    adapter: AdapterInUse = "demo/adapter",
    model: BaseModelName = "auto",
    limit: Limit = None,
    products: ProductsTable = None,
    deadline: HoursAtMost = None,
    retrain: RetrainForm = RETRAIN,
    training: TrainingForm = TRAINING,
    settings: RunForm = RUN,
) -> State[Any]:
    """Fine-tune if the catalog has changed enough, then enrich, publish and report.

    A new adapter serves from the night on in which it is at least as good as the standing one; until then that one
    goes on, and the flow says so. Ends as Held, without enriching, where the adapter that serves is no better than
    guessing without a photo. What a night whose process was killed has answered is published by the next one.

    Args:
        catalog: Labelled products with photos: a directory or s3://bucket/prefix.
        images: Product photos: a directory or s3://bucket/prefix.
        output: Where the tables go: a directory or s3://bucket/prefix, apart from the photos.
        adapters: Where adapters are kept, one for each state of the catalog and each way to train.
        adapter: An adapter that was made elsewhere; it serves until a better one is made from a changed catalog.
        model: Hub id or directory of a vision-language model, or auto: the full size on a GPU, the tiny one without.
        limit: Stop the plan after so many products; the next night takes the others.
        products: A table (CSV or Parquet) of the products to do, with the keys of their photos; left out, all photos
            are grouped as the settings say.
        deadline: Stop the enrichment after so many hours and publish what is done; the next night does the rest.
        retrain: How much of the catalog has to change for another adapter.
        training: What to change of the recipe that suits the base model.
        settings: Engine, sizes and limits of the enrichment.
    """
    if later := nights.superseded():
        return Completed(name="Skipped", message=f"{later} was due later and is due too; it does what this one would")
    if earlier := nights.still_at_work():
        return Completed(name="Skipped", message=f"{earlier} is still at work; the next night does what is new since")
    train_settings = training.settings(model)
    found = tasks.find_adapter(catalog, adapters, train_settings, adapter, retrain.limits())
    if not found.ready:
        tasks.train(catalog, found.uri, train_settings)
    choice = tasks.choose_adapter(catalog, adapters, found.uri, settings, fresh=not found.ready, in_use=adapter)
    worth = judge_worth(read_metrics(choice.uri))
    if worth.state == "weak" and settings.gate.enabled and not settings.gate.allow_weak_adapter:
        # Every night would answer the whole bucket for a table that is held back.
        return Completed(
            name="Held",
            message=f"adapter {choice.uri}: {worth.text}; nothing was enriched: train it better, or set "
            "gate.allow_weak_adapter if this is right",
        )
    seconds = None if deadline is None else deadline * 3600
    request = RunRequest(images, choice.uri, output, settings, limit=limit, deadline=seconds, products=products)
    return ending(enrich_all(request), output)
