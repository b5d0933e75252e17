"""What the UI is told: progress in words, counts, places."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import flows.artifacts
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.enrichment import answer_shards
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


def test_the_rate_is_that_of_the_answering_which_the_summary_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the first answer on, 18 products of a run of a minute came at 58.7 a second."""
    told: list[str] = []
    clock = iter([100.0, 160.0, 170.0])
    monkeypatch.setattr(flows.artifacts, "create_progress_artifact", lambda share, **more: "artifact")
    monkeypatch.setattr(flows.artifacts.ThreadPoolExecutor, "submit", lambda *sent: told.append(sent[-1]))
    monkeypatch.setattr(flows.artifacts, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    on_progress = ProgressArtifact(also=lambda *_: None)
    run: Any = SimpleNamespace(manifest=SimpleNamespace(rows=20, rows_in=lambda shards: 10 * len(shards)))

    on_progress("starting the engine", 0, 0)
    answer_shards(
        run, lambda shards, deadline: iter([20]), [0, 1], [0, 1], Deadline.after(None), on_progress, told.append
    )

    assert told[-1] == "products: 20 of 20, 2.0/s"


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
