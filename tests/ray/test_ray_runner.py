"""The ray runner writes the same rows as the inline runner, whatever dies. Real workers and the tiny base."""

import errno
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from enrich.answers.calibration import CALIBRATION_FILE, Calibration, FirstLook
from enrich.errors import EnrichError, PermanentFailure, RunFailed, UsageError
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import join_run, start_run
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RaySettings, RunSettings
from enrich.storage import Problem, StorageError
from sample.make import make_sample
from tests.testing.random_adapter import write_random_adapter

ray = pytest.importorskip("ray")
from ray.exceptions import ActorUnavailableError, RayError  # noqa: E402

from enrich.pipeline.run import ray_runner  # noqa: E402
from enrich.pipeline.run.ray_cluster import find_room  # noqa: E402
from enrich.pipeline.run.ray_runner import open_workers  # noqa: E402
from enrich.pipeline.run.ray_worker import Worker, share_of_cores  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

INLINE = RunSettings(
    engine="transformers", device="cpu", shard_size=2, decode_processes=1, gate=GateSettings(enabled=False)
)
RAY = INLINE.model_copy(update={"runner": "ray"})
ONE, TWO = (RAY.model_copy(update={"ray": RaySettings(workers=count)}) for count in (1, 2))
CLOCKS = ("processed_at", "run_id", "last_run_id")  # only these may differ between two runs over the same photos


@dataclass(frozen=True)
class Shop:
    bucket: Path
    adapter: Path
    answered: pl.DataFrame  # products.parquet of the inline runner

    def request(self, output: Path, settings: RunSettings, **more: Any) -> RunRequest:
        return RunRequest(str(self.bucket), str(self.adapter), str(output), settings, **more)

    def run(self, output: Path, settings: RunSettings, **more: Any) -> pl.DataFrame:
        run_enrichment(self.request(output, settings, **more))
        return rows(output)


def rows(output: Path) -> pl.DataFrame:
    return pl.read_parquet(output / "products.parquet").drop(CLOCKS).sort("product_id")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    make_sample(str(root / "catalog"), SampleSettings(products=4, bucket=10, seed=1), bucket=str(root / "bucket"))
    adapter = write_random_adapter(root / "adapter", TINY_MODEL_PATH, num_crops=1, idle=True)
    run_enrichment(RunRequest(str(root / "bucket"), str(adapter), str(root / "inline"), INLINE))
    table = rows(root / "inline")
    assert (table["status"] == "ok").sum() >= 10
    assert (table["status"] == "failed").sum() >= 5
    return Shop(root / "bucket", adapter, table)


def are_the_same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Compare every text and number; probabilities up to the order in which cores summed them."""
    assert_frame_equal(found, expected, check_exact=False, rel_tol=1e-4)


def answering() -> list[psutil.Process]:
    """Return the workers that have a shard."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has exited meanwhile
            if "".join(child.cmdline()[:1]).startswith("ray::Worker.answer"):
                found.append(child)
    return found


@contextmanager
def watching(look: Callable[[], bool]) -> Iterator[None]:
    """Call `look` every 10 ms until it returns that it is done or the block ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01) and not look():
            pass

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def killing(times: int) -> Iterator[list[int]]:
    """Kill workers as soon as they have a shard, up to a given number; yield the ids of those killed."""
    killed: list[int] = []

    def look() -> bool:
        for worker in answering():
            if worker.pid not in killed:
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
                break
        return len(killed) == times

    with watching(look):
        yield killed


@contextmanager
def losing(raylet: int, remove: Callable[[], object]) -> Iterator[list[int]]:
    """Remove a node as soon as its worker has a shard; yield the ids of workers lost this way, one at most.

    The worker is stopped first, so that it can neither finish its shard nor take another while its node goes away.
    """
    lost: list[int] = []

    def look() -> bool:
        for worker in answering():
            with suppress(psutil.Error):
                if worker.ppid() != raylet:
                    continue
                worker.suspend()
                if worker.pid not in [still.pid for still in answering()]:  # it has finished its shard meanwhile
                    worker.resume()
                    continue
                lost.append(worker.pid)
                remove()
                worker.kill()
                return True
        return False

    with watching(look):
        yield lost


def test_two_workers_make_the_rows_that_one_process_makes(shop: Shop, tmp_path: Path) -> None:
    seen: list[int] = []
    told: list[str] = []

    def on_progress(what: str, done: int, total: int) -> None:
        if what == "products":
            seen.append(done)

    run_enrichment(shop.request(tmp_path, TWO), on_progress, told.append)

    found = rows(tmp_path)
    are_the_same(found, shop.answered)
    assert len(list(tmp_path.glob("runs/*/sessions/*.json"))) == 2  # workers that committed shards
    first = next(line for line in told if not line.startswith("warning: "))
    assert first == "2 workers on Ray, each with 1 core"
    assert seen[-1] == len(found)
    assert not [child for child in psutil.Process().children(recursive=True) if "ray" in child.name()]


def test_workers_look_twice_as_one_process_does(shop: Shop, tmp_path: Path) -> None:
    adapter = write_random_adapter(tmp_path / "adapter", TINY_MODEL_PATH, num_crops=4, idle=True)
    close = Calibration.uncalibrated()
    first = FirstLook(squares=1, calibration=close, least_doubt=0.5)
    (adapter / CALIBRATION_FILE).write_text(close.model_copy(update={"first": first}).model_dump_json())
    looking = replace(shop, adapter=adapter)
    expected = looking.run(tmp_path / "inline", INLINE)

    are_the_same(looking.run(tmp_path / "ray", TWO), expected)
    # The base answers with categories of its own, which leaves doubts about all products.
    assert set(expected.filter(pl.col("status") == "ok")["looks"]) == {2}


def test_a_worker_that_is_killed_costs_nothing(shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with killing(1) as killed:
        found = shop.run(tmp_path, TWO)

    assert len(killed) == 1
    are_the_same(found, shop.answered)
    assert re.search(r"run=\S+ shard=\d+ lost its worker: node \S+: Worker unexpectedly exits", caplog.text)


class Cancelled(BaseException):
    """As Prefect's handler of SIGTERM raises one to cancel a run."""


def test_what_the_handler_of_a_signal_raises_ends_the_run(shop: Shop, tmp_path: Path) -> None:
    def cancel(number: int, _: object) -> None:
        raise Cancelled

    def kill(_: str) -> None:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()  # while the workers start

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        request = shop.request(tmp_path, ONE)
        with pytest.raises(Cancelled), start_run(request) as run, open_workers(run, on_message=kill):
            pytest.fail("it went on")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_shard_that_kills_its_worker_twice_ends_the_run_and_the_run_continues(shop: Shop, tmp_path: Path) -> None:
    with (
        killing(2) as killed,
        pytest.raises(RunFailed, match=r"run night: 2 workers died over shard 0; node .* the same run id continues it"),
    ):
        shop.run(tmp_path, ONE, run_id="night")

    assert len(killed) == 2
    are_the_same(shop.run(tmp_path, INLINE, run_id="night"), shop.answered)


def test_workers_end_with_the_process_that_leads_them(shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(RAY.model_dump_json())
    places = "--images", str(shop.bucket), "--adapter", str(shop.adapter), "--output", str(tmp_path / "output")
    command = [sys.executable, "-m", "enrich.cli", "run", *places, "--run-id", "night", "--config", str(config)]
    leading = psutil.Process(subprocess.Popen(command).pid)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("output/history/*/*/*.parquet")) and leading.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    led = leading.children(recursive=True)
    assert [child for child in led if "".join(child.cmdline()[:1]).startswith("ray::Worker")]

    leading.kill()

    leading.wait()
    _, alive = psutil.wait_procs(led, timeout=180)  # workers at once, Ray's own agents after a minute
    assert alive == []
    are_the_same(shop.run(tmp_path / "output", INLINE, run_id="night"), shop.answered)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A head without cores, and two nodes with one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.lost = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_the_shards_of_a_lost_node_are_done_elsewhere(
    shop: Shop, tmp_path: Path, two_nodes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    raylet = next(info.process.pid for info in two_nodes.lost.all_processes["raylet"])
    with losing(raylet, lambda: two_nodes.remove_node(two_nodes.lost, allow_graceful=False)) as lost:
        found = shop.run(tmp_path, RAY)

    assert len(lost) == 1
    are_the_same(found, shop.answered)
    assert "lost its worker: node" in caplog.text


def test_a_deadline_leaves_shards_to_the_next_run(shop: Shop, tmp_path: Path) -> None:
    told: list[str] = []
    run_enrichment(shop.request(tmp_path, ONE, run_id="night", deadline=1), on_message=told.append)

    assert f"stopped at its deadline: {len(shop.answered)} of {len(shop.answered)} products are left" in told
    are_the_same(shop.run(tmp_path, INLINE, run_id="night"), shop.answered)


def test_what_a_worker_cannot_do_is_reported_with_its_node(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "adapter").symlink_to(shop.adapter)

    def hide(line: str) -> None:
        (tmp_path / "adapter").unlink(missing_ok=True)  # this process has already read it

    request = replace(shop.request(tmp_path / "out", ONE), adapter=str(tmp_path / "adapter"))
    with pytest.raises(UsageError, match=r"^Ray node [\d.]+: .*/adapter: no such directory"):
        run_enrichment(request, on_message=hide)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UsageError("no such base"), UsageError, "Ray node 10.0.0.1: no such base"),
        (
            StorageError(Problem.FAILED, "/out/x: No space left on device; check the disk"),
            StorageError,
            "Ray node 10.0.0.1: /out/x: No space left on device; check the disk",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            RunFailed,
            "Ray node 10.0.0.1: /tmp/x: no space left on the disk; "
            "free some, or set TMPDIR to a larger one, and run again",
        ),
        (
            TypeError("odd"),
            PermanentFailure,
            "Ray node 10.0.0.1: TypeError: odd; set ENRICH_DEBUG=1 to see where, and report it",
        ),
    ],
)  # fmt: skip
def test_whatever_a_worker_runs_into_comes_back_as_one_line_of_the_same_kind(
    error: Exception, kind: type[EnrichError], message: str
) -> None:
    worker = Worker.__new__(Worker)
    worker._address = "10.0.0.1"
    with pytest.raises(EnrichError) as caught, worker._naming_the_node():
        raise error
    same = pickle.loads(pickle.dumps(caught.value))
    assert type(same) is kind
    assert str(same) == message


def test_a_disk_that_fills_up_on_a_worker_ends_the_run_in_one_line_and_shards_under_way_are_finished(
    shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "history").mkdir()

    def fill(line: str) -> None:
        """Replace the folder of shards with a file: from then on nothing can write a shard."""
        if (tmp_path / "history").is_dir():
            shutil.rmtree(tmp_path / "history")
            (tmp_path / "history").write_text("")

    with pytest.raises(StorageError, match=r"^Ray node [\d.]+: .*/history/.*: Not a directory; check the path$"):
        run_enrichment(shop.request(tmp_path, TWO, run_id="night"), on_message=fill)
    (tmp_path / "history").unlink()
    are_the_same(shop.run(tmp_path, INLINE, run_id="night"), shop.answered)


def test_a_run_is_joined_where_it_is_and_never_started(shop: Shop, tmp_path: Path) -> None:
    request = shop.request(tmp_path, INLINE, run_id="night")
    with pytest.raises(UsageError, match="run night does not exist; name a location that all machines share"):
        join_run(request).__enter__()
    with start_run(request) as started, join_run(request) as joined:
        assert joined.info == started.info
        assert joined.missing_shards() == started.missing_shards() != []


@pytest.mark.parametrize(("cpu", "gpu", "share"), [(64, 4, 16), (16, 8, 4), (8, 1, 8), (2, 0, 4)])
def test_a_worker_takes_its_gpus_share_of_the_cores(cpu: float, gpu: float, share: int) -> None:
    nodes = [{"NodeID": "other", **node(256, 1)}, {"NodeID": "own", **node(cpu, gpu)}]
    assert share_of_cores(4, "own", nodes) == share
    assert share_of_cores(4, "gone", nodes) == 4


def node(cpu: float, gpu: float = 0.0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpu, **({"GPU": gpu} if gpu else {})}}


@pytest.mark.parametrize(
    ("nodes", "needs", "room"),
    [
        ([node(2)], {"num_cpus": 1}, 2),
        ([node(4), node(3), node(8, alive=False)], {"num_cpus": 1}, 7),
        ([node(0)], {"num_cpus": 1}, 0),
        ([node(4), node(128, 8)], {"num_cpus": 4, "num_gpus": 1}, 8),
        ([node(16, 8)], {"num_cpus": 2, "num_gpus": 1}, 8),
        ([node(16, 2), node(2, 1)], {"num_cpus": 2, "num_gpus": 1}, 3),
    ],
)
def test_there_is_a_worker_for_every_gpu_or_for_every_core(
    nodes: list[dict[str, Any]], needs: dict[str, int], room: int
) -> None:
    assert find_room(RunSettings(runner="ray"), nodes) == (needs, room)


@pytest.fixture
def bury(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Buries a worker of the only shard, or one that starts, when the nodes of a word, a letter each, are gone."""
    workers: Any = ray_runner.Workers.__new__(ray_runner.Workers)
    workers._run = SimpleNamespace(info=SimpleNamespace(run_id="night"), is_committed=lambda shard: False)
    workers._deaths, workers._unjudged, workers._fill_up = defaultdict(list), {}, lambda: None

    def bury(gone: str, *, node: str = "", before: str = "", then: str | None = None) -> None:
        """`then`: the nodes that are known to be gone at the third look, of a worker that is only out of reach."""
        looks = iter([gone] if then is None else [gone, gone])

        def nodes() -> list[dict[str, Any]]:
            return [{"NodeID": one, "Alive": False} for one in next(looks, gone if then is None else then)]

        monkeypatch.setattr(ray_runner, "ray", SimpleNamespace(kill=lambda _: None, nodes=nodes))
        shards = {0: 0.0} if node else {}
        error = RayError("it died") if then is None else ActorUnavailableError("out of reach", None)
        workers._bury(ray_runner._Hand(object(), frozenset(before), node, shards=shards), error)
        cleared = workers._judge()
        while workers._unjudged:
            assert not cleared
            cleared = workers._judge()
        assert cleared == [0] * bool(node)

    return bury


def test_nodes_that_go_blame_no_shard_even_where_that_is_known_late(bury: Callable[..., None]) -> None:
    bury("", node="a")  # nothing is known of its node yet
    bury("a", node="b")
    bury("ab", node="c")
    with pytest.raises(RunFailed, match="2 workers died over shard 0"):
        bury("ab", node="d")


def test_a_node_is_given_time_to_be_found_gone(bury: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker is out of reach at once. Its shard may have lost another worker before, for another reason."""
    bury("", node="a")
    bury("", node="b", then="b")
    monkeypatch.setattr(ray_runner, "NODE_SECONDS", 0.05)
    with pytest.raises(RunFailed, match="2 workers died over shard 0"):
        bury("b", node="c", then="b")


def test_nodes_that_go_while_workers_start_on_them_are_no_deaths_of_workers(bury: Callable[..., None]) -> None:
    bury("a")
    bury("ab", before="a")
    bury("ab", before="ab")
    with pytest.raises(RunFailed, match="2 workers died while it started"):
        bury("ab", before="ab")


def test_gpus_are_left_alone_on_the_cpu() -> None:
    assert find_room(RunSettings(device="cpu"), [node(4, 1)]) == ({"num_cpus": 1}, 4)


def test_an_address_of_rays_client_is_refused(shop: Shop, tmp_path: Path) -> None:
    away = RAY.model_copy(update={"ray": RaySettings(address="ray://head:10001")})
    with pytest.raises(UsageError, match="the driver must be on a node of the cluster"):
        shop.run(tmp_path, away)
