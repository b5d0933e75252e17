"""Progress in a log: few lines, and never the last one twice."""

import pytest

from enrich.pipeline.progress import describe_progress, logged


@pytest.mark.parametrize(
    ("every_seconds", "said"),
    [
        (1000.0, ["photos: 1 of 3", "photos: 3 of 3"]),
        (0.0, ["photos: 1 of 3", "photos: 2 of 3", "photos: 3 of 3"]),
    ],
)
def test_the_first_the_last_and_what_is_due_between(every_seconds: float, said: list[str]) -> None:
    lines: list[str] = []
    tell = logged(lines.append, every_seconds)

    for done in (1, 2, 3, 3):
        tell("photos", done, 3)

    assert lines == said


def test_kinds_of_work_are_told_apart_by_the_words_before_a_comma() -> None:
    lines: list[str] = []
    tell = logged(lines.append)

    tell("listing", 1000, 0)
    tell("training, loss 2.0", 1, 9)
    tell("training, loss 1.9", 2, 9)

    assert lines == ["listing: 1,000", "training, loss 2.0: 1 of 9"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("photos", 1024, 7500, 33.1), "photos: 1,024 of 7,500, 33.1/s, 3 min 16 s left"),
        (("photos", 7500, 7500, 33.1), "photos: 7,500 of 7,500, 33.1/s"),
        (("photos", 1, 100_000, 2.0), "photos: 1 of 100,000, 2.0/s, 13 h 53 min left"),
        (("photos", 1, 10, 0.0), "photos: 1 of 10"),
        (("starting the engine", 0, 0, 0.0), "starting the engine"),
        (("listing", 3000, 0, 500.0), "listing: 3,000, 500.0/s"),
        (("training, loss 1.20", 30, 60, 1.0), "training, loss 1.20: 30 of 60, 1.0/s, 30 s left"),
    ],
)
def test_progress_says_how_far_how_fast_and_how_long(arguments: tuple[str, int, int, float], line: str) -> None:
    assert describe_progress(*arguments) == line
