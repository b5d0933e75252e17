"""What one process of a machine does for all of them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from enrich.storage.exclusive import exclusively, if_first, once

_processes = multiprocessing.get_context("fork")
LATEST = 20.0  # seconds that a process has for its next word


class Other:
    """A process that says a word when it is in its block, and leaves that when it is told to."""

    def __init__(self, block: Callable[[], Any]) -> None:
        self._ours, theirs = _processes.Pipe()
        self.process = _processes.Process(target=_work, args=(block, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def inside(self, seconds: float = LATEST) -> bool:
        return self._ours.poll(seconds) and self._ours.recv() == "inside"

    def leave(self) -> None:
        self._ours.send("leave")
        self.process.join(LATEST)


def _work(block: Callable[[], Any], pipe: Connection) -> None:
    with block():
        pipe.send("inside")
        pipe.recv()


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], Any]], Other]]:
    made: list[Other] = []

    def other(block: Callable[[], Any]) -> Other:
        made.append(Other(block))
        return made[-1]

    yield other
    for one in made:
        one.process.kill()


def test_one_at_a_time(tmp_path: Path, start: Callable[[Any], Other]) -> None:
    first = start(lambda: exclusively(tmp_path / "lock", "merging"))
    assert first.inside()
    second = start(lambda: exclusively(tmp_path / "lock", "merging"))
    assert not second.inside(0.3)
    with if_first(tmp_path / "lock") as held:
        assert not held

    first.leave()

    assert second.inside()
    second.leave()
    with if_first(tmp_path / "lock") as held:
        assert held


def test_a_killed_owner_holds_nothing(
    tmp_path: Path, start: Callable[[Any], Other], caplog: pytest.LogCaptureFixture
) -> None:
    first = start(lambda: exclusively(tmp_path / "lock", "merging"))
    assert first.inside()
    assert (tmp_path / "lock").read_text() == str(first.process.pid)
    second = start(lambda: exclusively(tmp_path / "lock", "merging"))
    assert not second.inside(0.3)

    os.kill(first.process.pid or 0, signal.SIGKILL)

    assert second.inside()
    assert (tmp_path / "lock").read_text() == str(second.process.pid)


def test_the_others_start_together_once_the_first_is_done(tmp_path: Path, start: Callable[[Any], Other]) -> None:
    def block() -> Any:
        return once(tmp_path / "compiled", "compiling")

    first = start(block)
    assert first.inside()
    others = [start(block) for _ in range(2)]
    assert not any(other.inside(0.3) for other in others)

    first.leave()

    assert all(other.inside() for other in others)  # neither has left
    assert start(block).inside()


def test_work_that_failed_is_done_by_the_next(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no memory"), once(tmp_path / "compiled", "compiling"):
        raise ValueError("no memory")

    assert not (tmp_path / "compiled").exists()
