"""A worker's shards are one stream through its engine, and each worker gets a shard when it can start it."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from enrich.engines.base import Request
from enrich.errors import RunFailed
from enrich.models.checkpoint import load_processor
from enrich.pipeline.run import session as sessions
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.session import open_session
from enrich.pipeline.run.start import start_run
from enrich.pipeline.run.state import Run
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RunSettings
from tests.testing.fake_engine import FakeEngine, write_completion
from tests.testing.random_adapter import write_random_adapter

pytest.importorskip("ray")
from ray.exceptions import ActorUnavailableError, RayError

from enrich.pipeline.run import ray_runner
from enrich.pipeline.run.ray_runner import Workers, _Hand
from enrich.pipeline.run.ray_worker import News, Worker, _Lines

SHARD, IN_FLIGHT, SHARDS = 12, 4, 3
SETTINGS = RunSettings(
    engine="transformers", device="cpu", shard_size=SHARD, in_flight=IN_FLIGHT, decode_processes=1,
    gate=GateSettings(enabled=False),
)  # fmt: skip


class Engine(FakeEngine):
    """Answers two photos at a time, and counts the streams that it was given."""

    def __init__(self) -> None:
        tokenizer = load_processor(TINY_MODEL_PATH).tokenizer
        text = "Product: Coat\nCategory: BAGS\nFull Price: 120"
        super().__init__(lambda request, _: write_completion(tokenizer, text, id=request.id), in_flight=2)
        self.streams = 0

    def complete(self, requests: Iterable[Request | None], *, grammar: bool = False) -> Iterator[Any]:
        self.streams += 1
        return super().complete(requests, grammar=grammar)


@contextmanager
def at_work(folder: Path, shard_size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Worker, Engine, Run]]:
    """A worker outside of Ray, whose engine is not a model."""
    (folder / "photos").mkdir()
    for number in range(SHARD * SHARDS):
        Image.new("RGB", (32, 32), (7 * number, 255 - 7 * number, number)).save(folder / f"photos/{number:03}.png")
    adapter = write_random_adapter(folder / "adapter", TINY_MODEL_PATH, num_crops=1, idle=True)
    engine = Engine()
    monkeypatch.setattr(sessions, "start_verified_engine", lambda *_: engine)
    settings = SETTINGS.model_copy(update={"shard_size": shard_size})
    request = RunRequest(str(folder / "photos"), str(adapter), str(folder / "out"), settings)
    with start_run(request) as run, open_session(run) as session:
        worker = Worker.__new__(Worker)
        worker._address, worker._lines, worker._stream, worker._session = "here", _Lines(), None, session
        yield worker, engine, run


def rows(folder: Path) -> list[str]:
    """The products of all rows ever written."""
    return sorted(pq.read_table(folder / "out/history", columns=["product_id"])["product_id"].to_pylist())


def test_a_worker_asks_for_the_next_shard_while_it_still_has_photos_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_work(tmp_path, SHARD, monkeypatch) as (worker, engine, run):
        told: list[News] = []
        for number, more in ((0, True), (1, True), (2, False)):
            told += worker.answer([number], more)
        assert [news.committed for news in told] == [(), (0,), (1, 2)]
        assert [0 < news.products < SHARD for news in told] == [True, True, False]
        assert engine.streams == 1
        assert run.missing_shards() == []
    assert rows(tmp_path) == [f"{number:03}" for number in range(SHARD * SHARDS)]


def test_without_more_to_come_a_shard_is_answered_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_work(tmp_path, SHARD, monkeypatch) as (worker, engine, _):
        assert [list(worker.answer([number], False))[-1].committed for number in (0, 1)] == [(0,), (1,)]
        assert engine.streams == 2  # drained between the two


def test_a_shard_that_comes_when_all_photos_were_fetched_starts_a_stream_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_work(tmp_path, 2, monkeypatch) as (worker, _, run):  # shards that are smaller than a batch
        told = [news for number in run.manifest.shards for news in worker.answer([number], True)]
        told += worker.answer([], False)
        assert [shard for news in told for shard in news.committed] == list(run.manifest.shards)
        assert run.missing_shards() == []
    assert rows(tmp_path) == [f"{number:03}" for number in range(SHARD * SHARDS)]


def away(*_: object) -> None:
    raise ConnectionError("S3 is away")


def test_after_an_error_a_worker_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_work(tmp_path, SHARD, monkeypatch) as (worker, _, run):
        list(worker.answer([0], True))
        with monkeypatch.context() as broken:
            broken.setattr(sessions, "commit_shard", away)
            with pytest.raises(RunFailed, match=r"^Ray node here: .*away"):
                list(worker.answer([1], False))
        assert [news.committed for news in worker.answer([0, 1], False)] == [(0, 1)]
        assert run.missing_shards() == [2]


@pytest.fixture
def leading() -> Workers:
    """The leading side, without Ray."""
    workers = Workers.__new__(Workers)
    workers._busy, workers._free, workers._deaths = {}, [], {}  # type: ignore[assignment]
    return workers


def hand(name: str, given: list[tuple[str, list[int], bool]], **shards: float) -> _Hand:
    """A worker that started and notes what it is given."""

    def answer(numbers: list[int], more: bool) -> object:
        given.append((name, numbers, more))
        return object()

    actor = SimpleNamespace(answer=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=answer)))
    return _Hand(actor, frozenset(), "node", shards={int(number[1:]): got for number, got in shards.items()})


def test_idle_workers_come_first_and_nobody_gets_two_shards(leading: Workers) -> None:
    given: list[tuple[str, list[int], bool]] = []
    leading._free = [hand("at its end", given, _7=0.0), hand("idle", given), hand("idle too", given)]
    leading._hand_out(deque([8, 9]), Deadline())
    assert given == [("idle", [8], True), ("idle too", [9], False), ("at its end", [], False)]
    assert leading._free == []


def test_a_worker_without_shards_waits_when_there_are_none(leading: Workers) -> None:
    given: list[tuple[str, list[int], bool]] = []
    leading._free = [hand("idle", given)]
    leading._hand_out(deque(), Deadline())
    assert (given, len(leading._free), leading._busy) == ([], 1, {})


def test_a_shard_over_which_a_worker_died_is_handed_out_alone(leading: Workers) -> None:
    given: list[tuple[str, list[int], bool]] = []
    leading._deaths = {8: []}  # type: ignore[assignment]
    leading._free = [hand("at its end", given, _7=0.0)]
    queue = deque([8, 9])
    leading._hand_out(queue, Deadline())
    leading._free = [hand("idle", given)]
    leading._hand_out(queue, Deadline())
    leading._free = [hand("idle later", given)]
    leading._hand_out(queue, Deadline())
    assert given == [("at its end", [], False), ("idle", [8], False), ("idle later", [9], False)]


def test_a_shard_in_hand_tells_how_long_the_next_one_takes(leading: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, list[int], bool]] = []
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    leading._free = [hand("slow", given, _7=40.0)]  # 60 s so far, and 50 s are left
    leading._hand_out(deque([8]), Deadline(until=150.0, last=10.0))
    assert given == [("slow", [], False)]
    leading._free = [hand("in time", given, _7=60.0)]
    leading._hand_out(deque([8]), Deadline(until=150.0, last=10.0))
    assert given[1:] == [("in time", [8], False)]


def test_a_shard_that_waits_for_a_node_to_be_judged_keeps_no_other_worker_waiting(
    leading: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers of shard 0 were lost, the second of them out of reach: its node is found to be gone after a while."""
    given: list[tuple[str, list[int], bool]] = []
    order: list[int | str] = []  # shards, as they are done
    seconds = iter(range(1000))
    rows_in = SimpleNamespace(rows_in=lambda shards: 10 * len(shards))
    leading._run = SimpleNamespace(  # type: ignore[assignment]
        info=SimpleNamespace(run_id="night"), is_committed=lambda shard: False, manifest=rows_in
    )
    leading._count, leading._unjudged, leading._deaths, leading._heard_at = 2, {}, defaultdict(list), 0.0
    monkeypatch.setattr(ray_runner.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(ray_runner.time, "sleep", lambda _: order.append("node found gone"))

    def get(shard: int) -> News:
        order.append(shard)
        return News((shard,), 0, [])

    def wait(refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return refs[:1], refs[1:]

    fake = SimpleNamespace(
        kill=lambda _: None, wait=wait, get=get,
        nodes=lambda: [{"NodeID": "lost", "Alive": "node found gone" not in order}],
    )  # fmt: skip
    monkeypatch.setattr(ray_runner, "ray", fake)
    well = hand("well", given)
    well.actor.answer = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda numbers, more: iter(numbers)))
    leading._free = [well, hand("also there", given)]
    leading._free[1].actor.answer = well.actor.answer
    before, lost = hand("before", given, _0=0.0), hand("lost", given, _0=0.0)
    lost.node = "lost"

    answering = leading.answer([1, 2, 3], Deadline())
    done = [next(answering)]
    leading._bury(before, RayError("it died"))
    leading._bury(lost, ActorUnavailableError("out of reach", None))
    done += answering

    assert sorted(order[:3], key=str) == [1, 2, 3]
    assert order[3:] == ["node found gone", 0]
    assert done[-1] == 40
    assert leading._unjudged == {}
