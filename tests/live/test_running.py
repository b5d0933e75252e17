"""A run is cancelled, its worker dies, or the server goes away: each time the run still ends correctly."""

import os
import signal
import time
from pathlib import Path

import polars as pl
import pytest

from deployments.automations import SILENCE_SECONDS
from tests.testing.live import Live, Shop, wait_for

pytestmark = pytest.mark.timeout(900)
DOWN_SECONDS = float(os.environ.get("ENRICH_LIVE_DOWN", "30"))  # 300 passed too: deployments/production.md


def started(live: Live, shop: Shop, runner: str = "inline") -> str:
    """Start a run of enrich-adhoc; return it once it has committed a shard and has more to do."""
    run = live.run("enrich-catalog/enrich-adhoc", **shop.parameters(run={"runner": runner}))
    wait_for("a first shard", lambda: list(shop.output.glob("history/*/*/shard-*.parquet")))
    assert live.state(run)["type"] == "RUNNING"
    return run


def is_whole(shop: Shop) -> None:
    """Check that the output has one run, each shard once, and a row for every photo."""
    [folder] = shop.output.glob("history/*/*")
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])
    products = pl.read_parquet(shop.output / "products.parquet")
    photos = sorted(path.stem for path in shop.images.iterdir())
    assert sorted(rows["product_id"]) == photos
    assert sorted(products["product_id"]) == photos


def process_of(run: str) -> list[int]:
    """Return the ids of the processes that were started for a flow run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"PREFECT__FLOW_RUN_ID={run}".encode() in environment:
            found.append(int(folder.name))
    return found


def test_a_run_completes_and_shows_what_it_did(live: Live, shop: Shop) -> None:
    run = live.run("enrich-catalog/enrich-adhoc", **shop.speaking.parameters())

    state = live.ended(run)

    assert state["name"] == "Completed", state
    is_whole(shop)
    assert set(live.artifacts(run)) == {"progress", "enrichment", "counts", "contact-sheet", "report"}
    [run_id] = [path.parent.name for path in shop.output.glob("runs/*/run.json")]
    logs = wait_for(
        "the lines of the last shard", lambda: (text := live.logs(run)) and "shard=10 products=1" in text and text
    )
    assert f"run={run_id} shard=0 products=2 failed=" in logs
    assert f'run={run_id} shard=10 product_id="page" error_kind=not_an_image attempt=1' in logs


@pytest.mark.parametrize("runner", ["inline", "ray"])
def test_a_cancelled_run_stops_within_seconds_and_continues_when_it_is_retried(
    live: Live, shop: Shop, runner: str
) -> None:
    run = started(live, shop, runner)
    assert process_of(run)
    asked = time.monotonic()

    live.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    wait_for("the end of its processes", lambda: not process_of(run))
    took = time.monotonic() - asked
    print(f"cancelled in {took:.1f} s")
    assert took < 30  # about 5 s on an idle machine; after 30 s Prefect kills them
    assert live.ended(run)["type"] == "CANCELLED"  # the worker looks for hooks first, and imports the flow to do so
    assert not (shop.output / "products.parquet").exists()

    retry(live, run)

    assert live.ended(run)["name"] == "Completed"
    is_whole(shop)


def retry(live: Live, run: str) -> None:
    """Do what the Retry button does."""
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    live.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})


def test_a_flow_that_was_killed_continues_by_itself(live: Live, shop: Shop) -> None:
    run = started(live, shop)

    for process in process_of(run):
        os.kill(process, signal.SIGKILL)

    wait_for("the second start", lambda: live.call("GET", f"/flow_runs/{run}")["run_count"] == 2)
    assert live.ended(run)["name"] == "Completed"
    is_whole(shop)
    wait_for("word of the crash", lambda: [line for line in live.told if ": Crashed. " in line])


def test_a_run_whose_worker_was_killed_is_noticed_and_continues(live: Live, shop: Shop) -> None:
    run = started(live, shop)

    live.kill_worker("gpu")
    killed = time.monotonic()
    assert live.state(run)["type"] == "RUNNING"
    live.start_worker("gpu")

    wait_for("the second start", lambda: live.call("GET", f"/flow_runs/{run}")["run_count"] == 2, 4 * SILENCE_SECONDS)
    print(f"noticed and started again after {time.monotonic() - killed:.0f} s")
    assert live.ended(run)["name"] == "Completed"
    is_whole(shop)


def test_a_server_that_goes_and_comes_back_stops_nothing(live: Live, shop: Shop) -> None:
    run = started(live, shop)

    live.stop_server()
    time.sleep(DOWN_SECONDS)
    live.start_server()

    assert live.ended(run)["name"] == "Completed"
    assert live.call("GET", f"/flow_runs/{run}")["run_count"] == 1
    is_whole(shop)


def test_applying_again_changes_nothing(live: Live) -> None:
    before = live.call("POST", "/automations/filter", {})

    live.command("deployments.apply")

    after = live.call("POST", "/automations/filter", {})
    assert sorted(found["id"] for found in after) == sorted(found["id"] for found in before)
    assert len(after) == 3
    assert live.call("GET", "/v2/concurrency_limits/enrich-publish")["limit"] == 1
