"""Every night: an adapter for the current catalog, then enrichment of the bucket."""

import re
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from enrich.errors import UsageError
from enrich.pipeline.adapter_cache import read_metrics
from enrich.pipeline.run.request import RunRequest
from enrich.scores.worth import judge_worth
from enrich.storage import is_s3
from flows import nights, tasks
from flows.enrich_catalog import ending, enrich_all
from flows.parameters import ANSWERING, NIGHTLY, Catalog, NightlySettings, Output, Photos, Text, read_text
from flows.states import held


@flow(name="nightly", flow_run_name="nightly {photos}")
def nightly(catalog: Catalog, photos: Photos, output: Output, settings: Text = NIGHTLY) -> State[Any]:
    """Fine-tune if the catalog has changed enough, then enrich, publish and report.

    A new adapter serves once it is at least as good as the standing one; until then that one keeps serving, and the
    flow says so. Ends as Held, without enriching, if the serving adapter is no better than guessing without a photo.
    If the process of a nightly run was killed, the next one publishes its answers.
    """
    if later := nights.superseded():
        return Completed(name="Skipped", message=f"{later} was due later and is due too; it does this run's work")
    if earlier := nights.still_at_work():
        return Completed(name="Skipped", message=f"{earlier} is still running; the next nightly run does what is new")
    more = read_text(NightlySettings, settings, "run", ANSWERING)
    adapters = more.adapters or sibling(output, "adapters")
    found = tasks.find_adapter(catalog, adapters, more.finetune, more.adapter, more.retrain.limits())
    if not found.ready:
        tasks.train(catalog, found.uri, more.finetune)
    choice = tasks.choose_adapter(catalog, adapters, found.uri, more.run, fresh=not found.ready, in_use=more.adapter)
    tasks.ask_to_promote(adapters, found.uri, choice)
    worth = judge_worth(read_metrics(choice.uri))
    if worth.state == "weak" and more.run.gate.enabled and not more.run.gate.allow_weak_adapter:
        # Every night would answer the whole bucket for a table that is held back.
        return held(
            f"adapter {choice.uri}: {worth.text}; nothing was enriched: train a better one, or set "
            "gate.allow_weak_adapter if this is right"
        )
    seconds = tasks.seconds_left(more.until)
    request = RunRequest(
        photos, choice.uri, output, more.run, limit=more.limit, deadline=seconds, products=more.products
    )
    return ending(enrich_all(request), output)


def sibling(output: str, name: str) -> str:
    """The location `name` in the output's parent folder."""
    if re.fullmatch(r"s3://[^/]+/?", output):
        raise UsageError(f"Output {output} is a whole bucket; add a folder, or `{name}: s3://...` to the settings")
    return str(Path(output).parent / name) if not is_s3(output) else f"{output.rstrip('/').rpartition('/')[0]}/{name}"
