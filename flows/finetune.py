"""Teach the base model a catalog."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import tasks
from flows.parameters import TRAINING, Adapter, BaseModelName, Catalog, TrainingForm


@flow(name="finetune-adapter", flow_run_name="fine-tune {adapter} on {catalog}")
def finetune_adapter(
    catalog: Catalog = "demo/catalog",
    adapter: Adapter = "demo/adapter",
    model: BaseModelName = "auto",
    training: TrainingForm = TRAINING,
) -> State[Any]:
    """Photo to title, category and full price, as a LoRA adapter that states its own errors.

    Ends as Held, not Completed, where the adapter is no better than guessing without a photo.

    Args:
        catalog: Labelled products with photos: a directory or s3://bucket/prefix.
        adapter: Where the adapter goes; an existing one is replaced once the new one is complete.
        model: Hub id or directory of a vision-language model, or auto: the full size on a GPU, the tiny one without.
        training: What to change of the recipe that suits the base model.
    """
    done = tasks.train(catalog, adapter, training.settings(model))
    if done.warning:
        return Completed(name="Held", message=done.warning)
    return Completed(message=f"adapter {done.adapter}: {done.uri}")
