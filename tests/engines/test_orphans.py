"""An engine that outlived its killed parent is ended before the next one starts, and nothing else is."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from enrich.engines import orphans
from enrich.engines.orphans import EngineRecord, Known, end_orphans, engines_folder

# Stands in for vLLM's parent: its "EngineCore" holds 200 MB and has a worker, and ends with neither pipe nor parent.
PARENT = """
import multiprocessing, subprocess, sys, time
from enrich.engines.orphans import EngineRecord

def engine(up):
    held = bytearray(b"x") * (200 << 20)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    up.send(True)
    time.sleep(600)

if __name__ == "__main__":
    record = EngineRecord()
    with record.starting():
        there, here = multiprocessing.Pipe(False)
        process = multiprocessing.get_context("spawn").Process(target=engine, name="EngineCore", args=(here,))
        process.start()
        there.recv()
        print("up", flush=True)
        time.sleep({loads})
    record.write([process.pid])
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[psutil.Process]]:
    """Whatever tests start; gone afterwards."""
    everyone: list[psutil.Process] = []
    yield everyone
    for process in everyone:
        for one in [process, *(process.children(recursive=True) if process.is_running() else [])]:
            if one.is_running():
                one.kill()
    psutil.wait_procs(everyone, timeout=10)


def start_parent(tmp_path: Path, started: list[psutil.Process], loads: float) -> psutil.Process:
    """A parent whose engine is up, and whose file names the engine and its worker."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(loads=loads))
    # A session of its own, as flow runs have: what it leaves is not ended with it.
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 20
    while not (names := noted()) or len(names) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started += [parent, *(psutil.Process(pid) for pid in names)]
    return parent


def noted() -> list[int]:
    return [one["pid"] for file in engines_folder().glob("*.json") for one in json.loads(file.read_text())["engine"]]


def bystander(started: list[psutil.Process]) -> Known:
    """A process of somebody else."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    started.append(psutil.Process(process.pid))
    known = Known.of(process.pid)
    assert known is not None
    return known


@pytest.mark.parametrize("loads", [0, 600], ids=["serving", "still loading"])
def test_what_a_killed_parent_left_is_ended_with_its_worker_and_gives_its_memory_back(
    tmp_path: Path, started: list[psutil.Process], loads: float
) -> None:
    other = bystander(started)
    parent = start_parent(tmp_path, started, loads)
    engine, worker = (psutil.Process(pid) for pid in noted())
    parent.kill()
    parent.wait(10)
    assert engine.is_running()  # what happens without all this
    assert engine.memory_info().rss > 200 << 20
    assert worker.ppid() == engine.pid

    assert set(end_orphans()) == {engine.pid, worker.pid}

    assert not engine.is_running()
    assert not worker.is_running()
    assert other.alive()
    assert list(engines_folder().iterdir()) == []
    assert end_orphans() == []


def test_a_worker_whose_engine_is_gone_too_is_ended(tmp_path: Path, started: list[psutil.Process]) -> None:
    parent = start_parent(tmp_path, started, 0)
    engine, worker = (psutil.Process(pid) for pid in noted())
    for process in (parent, engine):
        process.kill()
    parent.wait(10)

    assert worker.pid in end_orphans()
    assert not worker.is_running()


def test_an_engine_whose_parent_is_alive_is_left_alone(tmp_path: Path, started: list[psutil.Process]) -> None:
    start_parent(tmp_path, started, 0)

    assert end_orphans() == []
    assert all(psutil.pid_exists(pid) for pid in noted())
    assert len(noted()) == 2


@pytest.mark.parametrize("wrong", [{"started": 1}, {"boot": "another machine"}], ids=["reused id", "another boot"])
def test_a_process_that_has_got_the_id_since_is_left_alone(
    started: list[psutil.Process], wrong: dict[str, int]
) -> None:
    other = bystander(started)
    gone = vars(other) | {"pid": 4_000_000}  # beyond what Linux gives
    (engines_folder() / "old.json").write_text(json.dumps({"parent": gone, "engine": [vars(other) | wrong]}))

    assert end_orphans() == []

    assert other.alive()


def test_a_parent_whose_id_another_process_has_is_gone(started: list[psutil.Process]) -> None:
    engine, here = bystander(started), Known.of(os.getpid())
    assert here is not None
    before = vars(here) | {"started": here.started - 1}
    (engines_folder() / "old.json").write_text(json.dumps({"parent": before, "engine": [vars(engine)]}))

    assert end_orphans() == [engine.pid]


@pytest.mark.parametrize("text", ["", "[]", '{"parent": {"pid": 1}}', '{"parent": null, "engine": []}', "{}"])
def test_a_file_that_says_nothing_stops_nothing(text: str) -> None:
    (engines_folder() / "odd.json").write_text(text)

    assert end_orphans() == []


def test_an_engine_that_ended_leaves_no_file(started: list[psutil.Process]) -> None:
    record = EngineRecord()
    record.write([bystander(started).pid])
    assert len(noted()) == 1

    record.remove()

    assert list(engines_folder().iterdir()) == []


def test_one_that_cannot_be_ended_is_waited_for_and_named(
    started: list[psutil.Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, here = bystander(started), Known.of(os.getpid())
    assert here is not None
    monkeypatch.setattr(orphans, "END_SECONDS", 0.2)
    monkeypatch.setattr(psutil.Process, "kill", lambda self: None)  # in a call of the driver that does not return
    gone = vars(here) | {"started": 1}
    (engines_folder() / "old.json").write_text(json.dumps({"parent": gone, "engine": [vars(engine)]}))

    assert end_orphans() == []

    assert f"process {engine.pid} of that engine still exists 0 s after it was killed" in caplog.text
