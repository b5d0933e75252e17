"""Fine-tune the base model on a catalog."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import tasks
from flows.parameters import FINETUNE, LOOKING, Catalog, FinetuneSettings, NewAdapter, Text, read_text
from flows.states import held


@flow(name="finetune-adapter", flow_run_name="fine-tune {adapter} on {catalog}")
def finetune_adapter(catalog: Catalog, adapter: NewAdapter, settings: Text = FINETUNE) -> State[Any]:
    """Train a LoRA adapter from photos to title, category and full price, with calibrated errors.

    Ends as Held, not Completed, if the adapter is no better than guessing without a photo.
    """
    more = read_text(FinetuneSettings, settings, "finetune", LOOKING)
    training = more.finetune
    if (seconds := tasks.seconds_left(more.until)) is not None:
        training = training.model_copy(update={"max_minutes": max(seconds, 1.0) / 60})
    done = tasks.train(catalog, adapter, training)
    if done.warning:
        return held(done.warning)
    return Completed(message=f"adapter {done.adapter}: {done.uri}")
