"""What the UI is told: progress in words, counts, places."""

from collections.abc import Callable
from typing import Any

import pytest

import flows.artifacts
from flows.artifacts import ProgressArtifact


def test_a_server_that_is_away_holds_no_progress_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(flows.artifacts, "create_progress_artifact", away)
    heard: list[tuple[str, int, int]] = []
    on_progress = ProgressArtifact(also=lambda *told: heard.append(told))

    for done in range(3):
        on_progress("photos", done, 2)

    assert heard == [("photos", 0, 2), ("photos", 1, 2), ("photos", 2, 2)]


def test_progress_is_sent_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []

    def at_once(_: Any, send: Callable[..., Any], *arguments: Any) -> None:
        sent.append(arguments[1])

    monkeypatch.setattr(flows.artifacts, "create_progress_artifact", lambda share, **_: "artifact")
    monkeypatch.setattr(flows.artifacts.ThreadPoolExecutor, "submit", at_once)
    on_progress = ProgressArtifact(also=lambda *_: None, every_seconds=3600)

    for done in range(1, 101):
        on_progress("photos", done, 100)

    assert sent == [100.0]
