"""A run over hosts with networks of their own, of which one is lost in the middle and one comes late; photos on S3."""

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RaySettings, RunSettings
from enrich.storage import open_store
from sample.make import make_sample
from tests.testing.networks import Host, hosts, why_not
from tests.testing.random_adapter import write_random_adapter
from tests.testing.s3_server import Environ, S3Server, WsgiApp, real

pytest.importorskip("ray")

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

INLINE = RunSettings(
    engine="transformers", device="cpu", shard_size=2, decode_processes=1, gate=GateSettings(enabled=False)
)
RAY = INLINE.model_copy(update={"runner": "ray", "ray": RaySettings(workers=2)})
CLOCKS = ("processed_at", "run_id", "last_run_id")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}  # Ray asks for none by itself on `ray start --head`
# A host is gone after some 12 seconds of silence; by default after a minute.
IMPATIENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.fixture(autouse=True)
def _able() -> None:
    if reason := why_not():
        pytest.skip(reason)


class Story:
    """What happens to hosts, told by the photos that they ask for.

    `lost` is lost with its third photo on the way. `stays` gets no more than its first three photos until a third
    host, which is started then, asks for one.
    """

    def __init__(self, photos: str, lost: Host, stays: Host) -> None:
        self.asked = Counter[str]()  # photos, by the address of the host
        self.lost, self.late = threading.Event(), threading.Event()
        self._photos, self._lost, self._stays = photos, lost, stays

    def __call__(self, app: WsgiApp, environ: Environ, start: Any) -> Iterable[bytes]:
        """A fault of the S3 server."""
        address = environ["REMOTE_ADDR"]
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].startswith(self._photos):
            self.asked[address] += 1
            if address == self._lost.address and self.asked[address] == 3:
                self._lost.lose()
                self.lost.set()
            elif address == self._stays.address and self.asked[address] > 3:
                self.late.wait(55)  # S3's clients give up after 60 s
            elif address not in (self._lost.address, self._stays.address):
                self.late.set()
        return real(app, environ, start)


def rows(output: str) -> pl.DataFrame:
    table, _ = open_store(output).get("products.parquet")
    return pl.read_parquet(table).drop(CLOCKS).sort("product_id")


def start_node(host: Host, log: Path, env: Mapping[str, str], *options: object) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    store = ["--node-ip-address", host.address, "--object-store-memory", 100 << 20]
    host.start([*command, *store, *options], env, log)


def test_one_host_is_lost_and_one_comes_late_and_the_rows_are_the_same(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    make_sample(str(tmp_path / "catalog"), SampleSettings(products=4, bucket=14, seed=1), bucket=f"{s3_bucket}/photos")
    adapter = write_random_adapter(tmp_path / "adapter", TINY_MODEL_PATH, num_crops=1, idle=True)
    run_enrichment(RunRequest(f"{s3_bucket}/photos", str(adapter), f"{s3_bucket}/alone", INLINE))
    (tmp_path / "settings.yaml").write_text(RAY.model_dump_json())
    places = "--images", f"{s3_bucket}/photos", "--adapter", adapter, "--output", f"{s3_bucket}/spread"
    run = [sys.executable, "-m", "enrich.cli", "run", *places, "--config", tmp_path / "settings.yaml"]
    log = tmp_path / "log"

    with hosts(4, tmp_path) as (head, lost, stays, late), s3_server.listening(head.listen()) as endpoint:
        story = s3_server.fault = Story(f"/{s3_bucket.removeprefix('s3://')}/photos/", lost, stays)
        env = TOKEN | {"AWS_ENDPOINT_URL": endpoint, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": f"{head.address}:6379"}
        join = "--address", env["RAY_ADDRESS"], "--num-cpus", 1
        start_node(
            head, log, env | IMPATIENT, "--head", "--port", 6379, "--num-cpus", 0, "--include-dashboard", "false"
        )
        for host in (lost, stays):
            start_node(host, log, env, *join)
        leading = head.start(run, env, log)
        while not story.lost.wait(0.5):
            assert leading.poll() is None, log.read_text()
        start_node(late, log, env, *join)
        assert leading.wait(300) == 0, log.read_text()

    assert min(story.asked[host.address] for host in (lost, stays, late)) >= 2
    assert f"lost its worker: node {lost.address} is gone" in log.read_text()
    assert_frame_equal(rows(f"{s3_bucket}/spread"), rows(f"{s3_bucket}/alone"), check_exact=False, rel_tol=1e-4)
