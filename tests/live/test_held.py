"""A run that the gate held back waits for a person, with its numbers in front, and never forever."""

from typing import Any

import pytest

from tests.testing.live import Live, Shop, wait_for

pytestmark = pytest.mark.timeout(900)


def held(live: Live, shop: Shop) -> str:
    """A run that ended as held, and the flow run that asks about it."""
    run = live.run("enrich-catalog/enrich-adhoc", **shop.parameters(gate=True))
    state = live.ended(run)
    assert (state["type"], state["name"]) == ("CANCELLED", "Held"), state
    assert not (shop.output / "products.parquet").exists()

    def asking() -> Any:
        chosen = {"flows": {"name": {"any_": ["release-held"]}}, "sort": "EXPECTED_START_TIME_DESC"}
        runs = live.call("POST", "/flow_runs/filter", chosen)
        return next((found["id"] for found in runs if found["parameters"]["output"] == str(shop.output)), None)

    asked = str(wait_for("the question", asking))
    live.reached(asked, "Paused")
    return asked


def answer(live: Live, run: str, **values: str) -> Any:
    """What the form of the button Resume sends."""
    return live.call("POST", f"/flow_runs/{run}/resume", {"run_input": values})


def test_an_approved_run_is_published(live: Live, shop: Shop) -> None:
    run = held(live, shop)
    keyset = live.state(run)["state_details"]["run_input_keyset"]
    description = live.call("GET", f"/flow_runs/{run}/input/{keyset['description']}")
    assert "| Share of failed products | 0.2 | **" in description
    assert "| and 11 more products | |" in description  # 21 failed
    assert "answer\\_truncated" in description
    assert description.startswith("### [Report of the run](http://127.0.0.1:8420/runs/")

    refused = answer(live, run, decision="perhaps")
    assert refused["status"] == "REJECT"
    answer(live, run, decision="approve", comment="looked at all of them")

    state = live.ended(run)
    assert state["name"] == "Released", state
    assert (shop.output / "products.parquet").exists()
    wait_for("the decision", lambda: "decision=approve comment='looked at all of them'" in live.logs(run))
    wait_for("word of the held run", lambda: [line for line in live.told if ": Held. run " in line])
    wait_for("word of the question", lambda: [line for line in live.told if ": Paused. " in line])


def test_a_rejected_run_stays_held_and_can_be_released_later(live: Live, shop: Shop) -> None:
    run = held(live, shop)

    answer(live, run, decision="reject")

    assert live.ended(run)["name"] == "Rejected"
    assert not (shop.output / "products.parquet").exists()
    again = live.run("release-held/release-held", output=str(shop.output), hours=0.002)  # 7 s in which nobody answers
    state = live.ended(again)
    assert state["name"] == "Held"
    assert state["message"].startswith("nobody decided in 0.002 h; run ")
    assert "enrich.cli" not in state["message"]
    [run_id] = [path.parent.name for path in shop.output.glob("runs/*/run.json")]
    live.command("enrich.cli", "publish", "--output", str(shop.output), "--run-id", run_id)
    assert (shop.output / "products.parquet").exists()
