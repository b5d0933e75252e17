"""Every night: an adapter for the catalog as it is now, then the bucket."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import tasks
from flows.enrich_catalog import ending, enrich
from flows.parameters import (
    RUN,
    TRAINING,
    Adapters,
    BaseModelName,
    Catalog,
    HoursAtMost,
    Limit,
    Output,
    Photos,
    RunForm,
    TrainingForm,
)


@flow(name="nightly", flow_run_name="nightly {images}")
def nightly(
    catalog: Catalog = "demo/catalog",
    images: Photos = "demo/bucket",
    output: Output = "demo/output",
    adapters: Adapters = "demo/adapters",
    model: BaseModelName = "auto",
    limit: Limit = None,
    deadline: HoursAtMost = None,
    training: TrainingForm = TRAINING,
    settings: RunForm = RUN,
) -> State[Any]:
    """Fine-tune if the catalog changed since the standing adapter was made, then enrich, publish and report.

    Args:
        catalog: Labelled products with photos: a directory or s3://bucket/prefix.
        images: Product photos: a directory or s3://bucket/prefix.
        output: Where the tables go: a directory or s3://bucket/prefix, apart from the photos.
        adapters: Where adapters are kept, one for each state of the catalog.
        model: Hub id or directory of a Phi-3-vision, or auto: the full size on a GPU, the tiny one without.
        limit: Stop the plan after so many photos; the next night takes the others.
        deadline: Stop the enrichment after so many hours and publish what is done; the next night does the rest.
        training: What to change of the recipe that suits the base model.
        settings: Engine, sizes and limits of the enrichment.
    """
    if later := tasks.superseded():
        return Completed(name="Skipped", message=f"{later} was due later and is due too; it does what this one would")
    train_settings = training.settings(model)
    standing = tasks.find_adapter(catalog, adapters, train_settings)
    if not standing.current:
        done = tasks.train(catalog, standing.uri, train_settings)
        tasks.made(standing.uri, [catalog], adapter=done.adapter)
    return ending(enrich(images, standing.uri, output, settings, limit=limit, deadline=deadline), output)
