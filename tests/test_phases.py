"""The phases of a start."""

import pytest

from enrich import phases
from enrich.phases import Phase, Phases, Start, describe_start


def test_phases_may_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 102.0, 105.0, 107.0, 108.0])
    monkeypatch.setattr(phases.time, "monotonic", lambda: next(clock))
    made = Phases(before=4.0)
    merged = made.begin("merge")
    with made("engine") as parts:
        merged()
        parts["graphs"] = 1.5

    assert made.end() == Start(
        12.0,
        (
            Phase("imports", 0.0, 4.0),
            Phase("merge", 5.0, 9.0),
            Phase("engine", 6.0, 11.0, {"graphs": 1.5}),
        ),
    )


def test_described_in_a_line() -> None:
    start = Start(
        37.6, (Phase("plan", 0, 0.2), Phase("merge", 0, 12), Phase("engine", 5, 31, {"graphs": 6.2, "compile": 0.1}))
    )

    assert describe_start(start) == "38 s: merge 12, engine 26 (graphs 6)"
    assert describe_start(Start(0.3, ())) == "0 s"
