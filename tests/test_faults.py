"""The short form of the fault tests: real runs on a real S3 protocol, disturbed and killed, on moto with If-Match.

The long form, on a server that persists, is `make test-faults`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3.session
import pytest
from faults import job
from faults.atomic_moto import Moto
from faults.harness import Place, make_place, nights, rivals, twins
from random_adapter import write_random_adapter

from enrich.settings.models import TINY_MODEL_PATH


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with Moto() as server:
        yield server


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("adapter") / "adapter", TINY_MODEL_PATH, num_crops=1)


@pytest.fixture
def client(moto: Moto, s3_server: Any) -> Any:
    return boto3.session.Session().client("s3", endpoint_url=moto.endpoint)


def place_of(moto: Moto, client: Any, adapter: Path, folder: Path, **options: Any) -> Place:
    return make_place(client, moto.endpoint, adapter, folder, lock_object=False, **options)


def test_a_night_disturbed_and_killed_loses_doubles_and_tears_nothing(
    moto: Moto, client: Any, adapter: Path, tmp_path: Path
) -> None:
    place = place_of(moto, client, adapter, tmp_path, seed=3)
    nights(place, "nights", photos=24, kills_a_night=3)
    assert place.found == [], place.log.read_text()[-3000:]
    assert sum(place.kills.values()) >= 3
    assert sum(place.proxy.happened.values()) > place.proxy.happened["requests"]


def test_two_runs_that_publish_at_once_are_both_there(moto: Moto, client: Any, adapter: Path, tmp_path: Path) -> None:
    place = place_of(moto, client, adapter, tmp_path, seed=4)
    rivals(place, "rivals", 2)
    assert place.found == [], place.log.read_text()[-3000:]


def test_one_run_by_two_processes_at_once_is_one_run(moto: Moto, client: Any, adapter: Path, tmp_path: Path) -> None:
    place = place_of(moto, client, adapter, tmp_path, seed=6)
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
def test_a_commit_that_is_broken_on_purpose_is_found(
    moto: Moto, client: Any, adapter: Path, tmp_path: Path, broken: str
) -> None:
    """The harness can fail: each of these breaks one promise."""
    place = place_of(moto, client, adapter, tmp_path, seed=5, broken=broken, rates={})
    for number in range(5):  # a race must be met
        if broken == "publishing_blindly":
            rivals(place, f"rivals-{number}", 1)
        else:
            twins(place, f"twins-{number}", photos=24)
        if place.found:
            break
    assert any(sign in one for sign in FINDS[broken] for one in place.found), place.found
