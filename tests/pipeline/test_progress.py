"""Progress in a log: few lines, and never the last one twice."""

import pytest

from enrich.pipeline.progress import logged


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

    assert lines == ["listing: 1000", "training, loss 2.0: 1 of 9"]
