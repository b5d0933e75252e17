"""Merged checkpoints, of which one process of a machine writes each."""

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from enrich.engines import merged_cache
from enrich.engines.merged_cache import is_merged, merged_checkpoint, merged_place, merging

ADAPTER: Any = SimpleNamespace(id="0123456789abcdef", path=Path("adapter"))
_processes = multiprocessing.get_context("fork")


@pytest.fixture
def merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that gets a line for each merge."""
    told = tmp_path / "merges"
    told.touch()

    def merge(*_: object) -> None:
        with told.open("a") as file:
            file.write(f"{os.getpid()}\n")

    monkeypatch.setattr(merged_cache, "merge_adapter", merge)
    monkeypatch.setattr(merged_cache, "save_merged", lambda model, adapter, target: target.mkdir())
    return told


def _checkpoint(cache: Path, begin: Any, found: Any) -> None:
    begin.wait()
    found.put(merged_checkpoint(ADAPTER, torch.bfloat16, cache))


def test_of_processes_that_start_at_once_one_merges(tmp_path: Path, merges: Path) -> None:
    begin, found = _processes.Barrier(3), _processes.SimpleQueue()
    processes = [_processes.Process(target=_checkpoint, args=(tmp_path / "cache", begin, found)) for _ in range(3)]
    for process in processes:
        process.start()
    places = {found.get() for _ in processes}
    for process in processes:
        process.join()

    assert places == {tmp_path / "cache" / "0123456789abcdef-bfloat16"}
    assert len(merges.read_text().splitlines()) == 1


def test_after_a_killed_merge_the_next_process_merges(tmp_path: Path, merges: Path) -> None:
    place = merged_place(ADAPTER, torch.bfloat16, tmp_path / "cache")
    ours, theirs = _processes.Pipe()

    def hang() -> None:
        with merging(place):
            theirs.send("merging")
            signal.pause()

    process = _processes.Process(target=hang)
    process.start()
    assert ours.recv() == "merging"
    process.kill()

    assert merged_checkpoint(ADAPTER, torch.bfloat16, tmp_path / "cache") == place
    assert is_merged(place)
    assert len(merges.read_text().splitlines()) == 1
