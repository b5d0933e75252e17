"""Schedules keep their hour across clock changes, and start a nightly run by themselves."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from enrich.pipeline.adapter_cache import find_adapter
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL, TINY_MODEL_PATH
from enrich.settings.training import TrainSettings
from sample.make import make_sample
from tests.testing.live import Live, Shop, wait_for
from tests.testing.random_adapter import write_random_adapter

pytestmark = pytest.mark.timeout(900)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("day", [datetime(2027, 3, 28, tzinfo=BERLIN), datetime(2027, 10, 31, tzinfo=BERLIN)])
def test_the_nightly_run_begins_at_the_same_hour_before_and_after_the_clocks_change(live: Live, day: datetime) -> None:
    nightly = live.call("GET", "/deployments/name/nightly/nightly")
    first, last = day - timedelta(days=2), day + timedelta(days=2)

    times = {"start_time": first.astimezone(UTC).isoformat(), "end_time": last.astimezone(UTC).isoformat()}
    live.call("POST", f"/deployments/{nightly['id']}/schedule", {**times, "min_runs": 5})

    chosen = {
        "deployments": {"id": {"any_": [nightly["id"]]}},
        "flow_runs": {"expected_start_time": {"after_": times["start_time"], "before_": times["end_time"]}},
    }
    found = live.call("POST", "/flow_runs/filter", chosen)
    starts = sorted(datetime.fromisoformat(run["expected_start_time"]).astimezone(BERLIN) for run in found)
    assert [start.strftime("%d %H:%M") for start in starts] == [
        (day + timedelta(days=after)).strftime("%d 04:00") for after in (-2, -1, 0, 1)
    ]


def test_a_nightly_run_that_its_schedule_started_completes(live: Live, shop: Shop) -> None:
    catalog, adapters = shop.output.parent / "catalog", shop.output.parent / "adapters"
    make_sample(str(catalog), SampleSettings(products=4, bucket=1))
    standing = find_adapter(str(catalog), str(adapters), TrainSettings(model=TINY_MODEL))
    write_random_adapter(adapters / standing.uri.rpartition("/")[2], TINY_MODEL_PATH, num_crops=1)
    more: dict[str, Any] = {"products at most": 3, "finetune": {"model": TINY_MODEL}}
    parameters = {"catalog": str(catalog), **shop.parameters(**more)}
    del parameters["adapter"]
    nightly = live.call("GET", "/deployments/name/nightly/nightly")
    soon = (datetime.now(UTC) + timedelta(seconds=75)).astimezone(BERLIN)
    cron = {"cron": f"{soon.minute} {soon.hour} {soon.day} {soon.month} *", "timezone": "Europe/Berlin"}

    body = [{"schedule": cron, "active": True, "parameters": parameters}]
    [schedule] = live.call("POST", f"/deployments/{nightly['id']}/schedules", body)

    def started() -> str | None:
        chosen = {
            "deployments": {"id": {"any_": [nightly["id"]]}},
            "flow_runs": {
                "state": {"type": {"not_any_": ["SCHEDULED"]}},
                "expected_start_time": {"after_": soon.replace(second=0, microsecond=0).isoformat()},
            },
        }
        return next((run["id"] for run in live.call("POST", "/flow_runs/filter", chosen)), None)

    run = str(wait_for("the night", started))
    live.call("DELETE", f"/deployments/{nightly['id']}/schedules/{schedule['id']}")
    state = live.ended(run)
    assert (state["name"], state["message"][:11]) == ("Completed", "3 products:"), json.dumps(state)
    found = live.call("GET", f"/flow_runs/{run}")
    assert found["auto_scheduled"]
    assert "scheduled" in found["tags"]
    assert (shop.output / "products.parquet").exists()
