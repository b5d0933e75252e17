"""When a run stops by itself."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from enrich.pipeline.run import deadline
from enrich.pipeline.run.deadline import Deadline


def test_no_shard_is_started_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now[0]))
    until = Deadline.after(35.0)
    assert not until.passed()
    until.last, now[0] = 20.0, 120.0
    assert until.passed()  # at 120 s, with 20 s more to go
    now[0] -= 6.0
    assert not until.passed()


def test_without_a_deadline_none_passes() -> None:
    never = replace(Deadline.after(None), last=1e9)
    assert not never.passed()
