"""A person decides whether a new adapter serves, given its scores and those of the standing one."""

from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from enrich.errors import UsageError
from enrich.pipeline.adapter_cache import read_metrics
from enrich.pipeline.standing import identity, is_adapter, promote, read_challenge, read_standing
from enrich.storage import real_place
from flows import tasks
from flows.decisions import ask, render_promotion
from flows.parameters import Adapters, Candidate, Hours


class Promotion(RunInput):
    """Promote lets the new adapter serve from the next run on; keep changes nothing."""

    decision: Literal["promote", "keep"] = Field(title="Decision")
    person: str = Field(title="Your name", description="Stored with the adapters", min_length=1, max_length=100)
    why: str = Field(default="", title="Why", max_length=500)


@flow(name="promote-adapter", flow_run_name="decide on adapter {adapter}")
async def promote_adapter(adapters: Adapters, adapter: Candidate, hours: Hours = 12.0) -> State[Any]:
    """Pause, showing how a new adapter compares with the standing one, until somebody resumes with a decision.

    If nobody decides in time the standing adapter keeps serving; the new one can be promoted later, by this flow or by
    the command.

    Args:
        adapters: Where the nightly flow stores adapters.
        adapter: The new adapter.
        hours: How long to wait for a decision.
    """
    if not is_adapter(adapter):
        raise UsageError(f"Adapter {adapter}: not found; name one made by finetune-adapter or a nightly run")
    standing = read_standing(adapters)
    if standing is not None and standing.uri == real_place(adapter):
        return Completed(message=f"the adapter {adapter} already serves; there is nothing to decide")
    found = read_challenge(adapters, identity(adapter), standing.adapter if standing else None)
    if found:
        tasks.show_comparison(found, found.text)
    scores = {"new": read_metrics(adapter), "standing": read_metrics(standing.uri) if standing else None}
    answer = await ask(Promotion, render_promotion(adapter, standing, found, scores), hours, identity(adapter))
    stays = f"the adapter {standing.uri} keeps serving" if standing else "nothing changes"
    if answer is None:
        return Completed(name="Undecided", message=f"nobody decided in {hours:g} h; {stays}")
    get_run_logger().info(
        "adapter=%s decision=%s person=%r why=%r", adapter, answer.decision, answer.person, answer.why
    )
    if answer.decision == "keep":
        return Completed(name="Rejected", message=f"{answer.person} decided: {stays}")
    promote(adapters, adapter, answer.person, answer.why or "a person decided")
    return Completed(name="Promoted", message=f"{answer.person} decided: the adapter {adapter} serves")
