"""What operators complain about, and what becomes of it: slots that leak, and nights that nobody started."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from enrich.pipeline.adapter_cache import find_adapter
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL, TINY_MODEL_PATH
from enrich.settings.training import TrainSettings
from flows.nights import PUBLISHERS
from sample.make import make_sample
from tests.testing.live import FINAL, PATIENCE, Live, Shop, wait_for
from tests.testing.random_adapter import write_random_adapter

pytestmark = pytest.mark.timeout(1200)


def slots(live: Live) -> int:
    return int(live.call("GET", f"/v2/concurrency_limits/{PUBLISHERS}")["active_slots"])


def test_a_leaked_slot_keeps_no_run_from_publishing_and_the_doctor_frees_it(live: Live, shop: Shop) -> None:
    leak = {"names": [PUBLISHERS], "slots": 1, "mode": "concurrency"}
    live.call("POST", "/v2/concurrency_limits/increment", leak)  # without a lease: nothing ever gives it back
    run = live.run("enrich-catalog/enrich-adhoc", **shop.parameters())

    assert live.ended(run)["name"] == "Completed"
    assert (shop.output / "products.parquet").exists()
    wait_for("the warning", lambda: f"the limit {PUBLISHERS} had no slot for 60 s" in live.logs(run))
    code, told = live.doctor()
    assert (code, slots(live)) == (1, 1)
    assert f"limit {PUBLISHERS}: 1 of 1 slots taken, 1 of them leaked; enrich doctor --prefect --release" in told

    code, told = live.doctor("--release")

    assert (code, slots(live)) == (0, 0), told
    assert live.doctor()[0] == 0


def test_the_doctor_names_what_keeps_nightly_runs_from_starting(live: Live, shop: Shop) -> None:
    live.kill_worker("cpu")
    live.call("PATCH", "/work_pools/gpu", {"is_paused": True})
    asks = live.call("GET", "/deployments/name/release-held/release-held")
    then = {"scheduled_time": (datetime.now(UTC) - timedelta(hours=3)).isoformat()}
    body = {"parameters": {"output": str(shop.output)}, "state": {"type": "SCHEDULED", "state_details": then}}
    late = live.call("POST", f"/deployments/{asks['id']}/create_flow_run", body)["id"]
    try:
        code, told = live.doctor()
    finally:
        live.call("PATCH", "/work_pools/gpu", {"is_paused": False})
        live.call("DELETE", f"/flow_runs/{late}")
        live.start_worker("cpu")

    assert code == 1
    assert "pool gpu: paused; prefect work-pool resume gpu" in told
    assert "runs of release-held: 1 due and not started, the first at " in told
    assert "Prefect server: http://127.0.0.1:" in told
    assert "schedule of nightly: next at " in told
    assert "automations: 3 on" in told


def test_after_a_missed_week_one_nightly_run_does_the_work(live: Live, shop: Shop) -> None:
    catalog, adapters = shop.output.parent / "catalog", shop.output.parent / "adapters"
    make_sample(str(catalog), SampleSettings(products=4, bucket=1))
    standing = find_adapter(str(catalog), str(adapters), TrainSettings(model=TINY_MODEL))
    write_random_adapter(adapters / standing.uri.rpartition("/")[2], TINY_MODEL_PATH, num_crops=1)
    more: dict[str, Any] = {"products at most": 3, "adapters": str(adapters), "finetune": {"model": TINY_MODEL}}
    parameters = shop.parameters(**more) | {"catalog": str(catalog)}
    del parameters["adapter"]
    nightly = live.call("GET", "/deployments/name/nightly/nightly")
    place, now = f"/deployments/{nightly['id']}", datetime.now(UTC)

    live.call("PATCH", place, {"parameters": {**nightly["parameters"], **parameters}})
    times = {"start_time": (now - timedelta(days=7)).isoformat(), "end_time": now.isoformat()}
    live.call("POST", f"{place}/schedule", {**times, "min_runs": 7, "max_runs": 7})

    def over() -> list[str] | None:
        chosen = {
            "deployments": {"id": {"any_": [nightly["id"]]}},
            "flow_runs": {"expected_start_time": {"after_": times["start_time"], "before_": times["end_time"]}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        found = live.call("POST", "/flow_runs/filter", chosen)
        states = [run["state"] for run in found if run["auto_scheduled"]]
        return [state["name"] for state in states] if {state["type"] for state in states} <= FINAL else None

    try:
        names = wait_for("the end of the week's runs", over, 2 * PATIENCE)  # in turn, 12 s each on two cores
    finally:
        live.call("PATCH", place, {"parameters": nightly["parameters"]})
    assert names == ["Skipped"] * 6 + ["Completed"]
    assert (shop.output / "products.parquet").exists()
