"""From catalog to products.parquet in one folder: `python -m flows.demo`. Needs no GPU, network or Prefect server.

`python -m flows.demo DIRECTORY`, or `make demo MODEL=DIRECTORY`, trains another base of about the tiny one's size.
"""

import atexit
import importlib
import logging
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from flows.home import own_server

if __name__ == "__main__":  # before the imports below, because Prefect and others read the environment on import
    from enrich.console import quiet_libraries
    from enrich.storage.scratch import Scratch

    quiet_libraries()
    _home = Scratch()
    atexit.register(_home.remove)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ |= own_server(_home.path)
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "300"  # a first start takes a minute
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"  # this module prints all that matters
    # Each decoding process imports this module again, without Prefect and torch.
    sys.modules["__main__"] = ModuleType("__main__")
    sys.exit(importlib.import_module("flows.demo").main(*sys.argv[1:2]))

from prefect import flow
from rich.text import Text

from enrich.console import console, print_record, print_scores, progress_bars, say_error
from enrich.engines.transformers_engine import find_base
from enrich.errors import EnrichError, UsageError
from enrich.models.base import crop_tokens
from enrich.models.checkpoint import load_processor
from enrich.output.run_record import RunRecord
from enrich.pipeline.finetuning import Finetuned
from enrich.pipeline.run.records import held_back
from enrich.pipeline.run.request import RunRequest
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.train.opening import model_errors
from enrich.train.recipe import tiny_recipe
from flows import tasks
from flows.enrich_catalog import enrich

PARTS = ("catalog", "bucket", "adapter", "output")
SHEET = "contact_sheet.jpg"
SAMPLE, RUN = SampleSettings(), RunSettings()


@flow(name="demo", flow_run_name="demo in {folder}")
def demo(folder: str, how: TrainSettings, progress: Any) -> tuple[Finetuned, dict[str, Any], RunRecord]:
    """Generate a catalog and a bucket in `folder`, fine-tune a base on the catalog, and enrich the bucket."""
    catalog, bucket, adapter, output = (f"{folder}/{part}" for part in PARTS)
    tasks.sample(catalog, bucket, SAMPLE, progress)
    done = tasks.train(catalog, adapter, how, progress)
    holdout = tasks.score_unlike(adapter, catalog, f"{folder}/{SHEET}", RUN, progress)
    return done, holdout, enrich(RunRequest(bucket, adapter, output, RUN), progress)


def main(model: str = TINY_MODEL, folder: str = "demo") -> int:
    """Run the demo and print its scores and where the results are. The exit codes are those of `enrich`."""
    # Hostile photos fail by design: the record counts them by kind at the end, and the report names them.
    logging.getLogger("enrich.pipeline.run.session").setLevel(logging.ERROR)
    try:
        how = recipe(model)
        make_room(Path(folder))
        console.print(f"catalog, bucket, adapter and output are written to {folder}/; this takes a few minutes")
        with progress_bars("starting Prefect") as progress:
            done, holdout, record = demo(folder, how, progress)
        console.print(_heading("Unseen products", f" ({done.metrics['test']['rows']}, the test split)"))
        print_scores(done.metrics)
        rows = holdout["test"]["rows"]
        console.print(_heading("Unseen combinations", f" of colour, fabric and kind ({rows} products)"))
        print_scores(holdout)
        console.print(f"\ncontact sheet: {folder}/{SHEET}")
        print_record(record, f"{folder}/output")
        if record.state == "held":
            raise held_back(record, f"{folder}/output")
    except EnrichError as error:
        say_error(error)
        return error.exit_code
    return 0


def recipe(model: str) -> TrainSettings:
    """The tiny base's recipe for `model`, of any family, with photos prepared as the model's own settings say.

    Raises UsageError: it is not usable.
    """
    tiny = TrainSettings(model=TINY_MODEL)
    if model == TINY_MODEL:
        return tiny
    base = find_base(model, None)
    with model_errors(TrainSettings(model=model)):
        own = load_processor(base)
        usual = load_processor(base, photo_tokens=crop_tokens(tiny.num_crops))
    found = tiny_recipe(tiny, base, SAMPLE.products)
    if usual.preparation.num_crops == own.preparation.num_crops:
        return found
    return TrainSettings.model_validate({**found.model_dump(), "photo_tokens": own.most_photo_tokens()})


def _heading(what: str, more: str) -> Text:
    return Text.assemble("\n", (what, "bold"), more)


def make_room(folder: Path) -> None:
    """Remove an earlier demo, complete or interrupted. UsageError if `folder` contains anything else."""
    ours = {*PARTS, SHEET, ".adapter.training"}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.is_dir() else []
    if foreign:
        raise UsageError(f"{folder}/{foreign[0]}: not part of the demo, which empties {folder}/; move it elsewhere")
    shutil.rmtree(folder, ignore_errors=True)
