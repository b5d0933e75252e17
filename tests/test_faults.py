"""The short form of the fault tests: real runs on a real S3 protocol, disturbed and killed, on moto with If-Match.

The long form, on a server that persists, is `make test-faults`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import boto3.session
import pytest

from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.faults import job
from tests.testing.faults.harness import Place, make_place, nights, rivals, twins
from tests.testing.random_adapter import write_random_adapter
from tests.testing.s3_server import S3Server


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("adapter") / "adapter", TINY_MODEL_PATH, num_crops=1)


@pytest.fixture
def make(s3_server: S3Server, adapter: Path, tmp_path: Path) -> Callable[..., Place]:
    client = boto3.session.Session().client("s3", endpoint_url=s3_server.endpoint)
    return partial(make_place, client, s3_server.endpoint, adapter, tmp_path, lock_object=False)


def test_a_disturbed_and_killed_run_neither_loses_nor_corrupts_rows(make: Callable[..., Place]) -> None:
    place = make(seed=3)
    nights(place, "nights", photos=24, kills_a_night=3)
    assert place.found == [], place.log.read_text()[-3000:]
    assert sum(place.kills.values()) >= 3
    assert sum(place.proxy.happened.values()) > place.proxy.happened["requests"]


def test_two_runs_that_publish_at_once_are_both_there(make: Callable[..., Place]) -> None:
    place = make(seed=4)
    rivals(place, "rivals", 2)
    assert place.found == [], place.log.read_text()[-3000:]


def test_one_run_by_two_processes_at_once_is_one_run(make: Callable[..., Place]) -> None:
    place = make(seed=6)
    twins(place, "twins", photos=24)
    assert place.found == [], place.log.read_text()[-3000:]


FINDS = {
    "overwriting": ("changed:",),
    "in_two_steps": ("torn:", "changed:"),  # listed half and read whole, a shard is another one at the next look
    "under_new_names": ("doubled:",),
    "leaving_rows_out": ("lost:",),
    "publishing_blindly": ("is not in products.parquet",),
    "mixing_answers_up": ("wrong:",),
}


@pytest.mark.parametrize("broken", job.BROKEN)
def test_a_commit_that_is_broken_on_purpose_is_found(make: Callable[..., Place], broken: str) -> None:
    """The harness can fail: each of these breaks one promise."""
    place = make(seed=5, broken=broken, rates={})
    for number in range(5):  # a race must be met
        if broken == "publishing_blindly":
            rivals(place, f"rivals-{number}", 1)
        else:
            twins(place, f"twins-{number}", photos=24)
        if place.found:
            break
    assert any(sign in one for sign in FINDS[broken] for one in place.found), place.found
