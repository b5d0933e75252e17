"""Prefect automations: mark silent flow runs as crashed, resume crashed ones, and report failures."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    CallWebhook,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
)
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.home import HEARTBEAT_SECONDS
from flows.nights import SILENT

SILENCE_SECONDS = SILENT * HEARTBEAT_SECONDS
TAGS = ("enrich", "finetune")  # one of them on every deployment whose runs can be resumed
SETTLED_SECONDS = 10  # after a crash, until process and worker have both reported it
RESUMED = 2  # times that a crashed run is resumed automatically
WEBHOOK = "enrich-webhook"  # a block


def zombies() -> AutomationCore:
    """Mark a run as crashed if both its process and its worker died, so that nothing reports on it any more."""
    return _automation(
        "crash runs that went silent",
        f"No heartbeat for {SILENCE_SECONDS} s: worker and flow died together.",
        ChangeFlowRunState(
            state=StateType.CRASHED, name=None, force=False, message=f"it has been silent for {SILENCE_SECONDS} s"
        ),
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        posture=Posture.Proactive,
        within=timedelta(seconds=SILENCE_SECONDS),
    )


def resumption() -> AutomationCore:
    """Schedule a crashed run again as the same flow run, so that it continues; at most RESUMED times."""
    runs = [str(count + 1) for count in range(RESUMED)]
    tags = [f"prefect.tag.{tag}" for tag in TAGS]
    return _automation(
        "go on with crashed runs",
        "The flow run keeps its id and with it the run id: what is committed is not done again.",
        # Not at once: the worker of a killed process reports Crashed again, after the process's runner has.
        ChangeFlowRunState(
            state=StateType.SCHEDULED, name="AwaitingRetry", force=False, message="continued after a crash"
        ),
        after={"prefect.flow-run.Crashed"},
        expect={"prefect.flow-run.AwaitingRetry"},  # a person, or this automation
        match={"prefect.run-count": runs},  # a run that was never Running has 0, and would only crash again
        match_related=ResourceSpecification({"prefect.resource.role": ["tag"], "prefect.resource.id": tags}),
        posture=Posture.Proactive,
        within=timedelta(seconds=SETTLED_SECONDS),
    )


def notification(webhook: UUID) -> AutomationCore:
    """Report runs that need a person to the webhook. A paused run asks about a held run or a new adapter."""
    line = (
        "flow_run.name ~ ': ' ~ flow_run.state.name ~ '. ' ~ (flow_run.state.message or '') ~ ' ' ~ (flow_run|ui_url)"
    )
    return _automation(
        "tell of failed and held runs",
        "Posts one line to the webhook block, in the format of Slack and others.",
        CallWebhook(block_document_id=webhook, payload='{"text": {{ (' + line + ")|tojson }}}"),
        expect={f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut", "Held", "Paused")},
        within=timedelta(0),
    )


def _automation(
    name: str, description: str, action: Any, *, match: dict[str, Any] | None = None, **trigger: Any
) -> AutomationCore:
    """An automation with one action, triggered by the events of each flow run."""
    return AutomationCore(
        name=f"enrich: {name}",
        description=description,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"], **(match or {})}),
            for_each={"prefect.resource.id"},
            threshold=1,
            **{"posture": Posture.Reactive, **trigger},
        ),
        actions=[action],
    )


def save_webhook(url: str) -> UUID:
    """The block with the URL, which is a secret: anyone who knows it can post."""
    block = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    saved = block.save(WEBHOOK, overwrite=True)
    assert isinstance(saved, UUID)
    return saved
