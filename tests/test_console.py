"""What `enrich run` says at its end, and what long work says meanwhile."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enrich.console import print_record, progress_bars
from enrich.output.run_record import Changes, RunRecord
from tests.testing.rows import at, make_run


def record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run": make_run(), "state": "nothing_to_do", "counts": {"rows": 0, "ok": 0, "failed": 0}, "started_at": at(0),
        "finished_at": at(1), "seconds": 60, "images_per_second": 0, "engine": "fake", "host": "h",
    }  # fmt: skip
    return RunRecord(**(values | changes))


def said(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    print_record(record(**changes), "out")
    return capsys.readouterr().out.splitlines()


def test_nothing_to_do_says_which_photos_failed_and_what_would_try_them_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = said(capsys, answered_before=94, failed_before={"not_found": 1, "too_large": 4, "truncated": 1})[0]
    assert first == (
        "nothing to do: 94 products of s3://photos have their answer, 6 failed "
        "(1 not_found, 4 too_large, 1 truncated) and are not retried without other bytes, another adapter "
        "or other settings (limits.max_bytes, max_attempts)"
    )
    first = said(capsys, answered_before=1, failed_before={"truncated": 1})[0]
    assert first.endswith("1 failed (1 truncated) and are not retried without other bytes, another adapter")


def test_every_photo_has_its_answer_only_where_that_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, answered_before=94)[0] == "nothing to do: every product of s3://photos has its answer"


@pytest.mark.parametrize("state", ["published", "held", "nothing_to_do"])
def test_photos_that_left_the_source_are_always_told(capsys: pytest.CaptureFixture[str], state: str) -> None:
    changes = Changes(0, 0, 0, 0, {}, 0, gone=5, examples=())
    assert "5 products of earlier runs are gone from s3://photos" in said(capsys, state=state, changes=changes)


def heartbeat(capsys: pytest.CaptureFixture[str], *steps: tuple[str, int, int]) -> list[str]:
    """The lines that work without a terminal prints after it has reported `steps` and then says nothing more."""
    with progress_bars("fine-tuning", every_seconds=0.01) as progress:
        for step in steps:
            progress(*step)
        time.sleep(0.1)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ([], "fine-tuning (0 s so far)"),
        ([("loading the base model", 0, 0)], "loading the base model (0 s so far)"),
        ([("listing", 1000, 0), ("photos", 1, 3)], "photos: 1 of 3 (0 s so far)"),
        ([("photos", 1, 3), ("photos", 3, 3)], "photos: 3 of 3, next step in progress (0 s so far)"),
        ([("training, loss 2.0", 1, 9), ("training, loss [1.9]", 1, 9)], "training, loss [1.9]: 1 of 9 (0 s so far)"),
    ],
)
def test_without_a_terminal_the_last_step_is_repeated(
    capsys: pytest.CaptureFixture[str], steps: list[tuple[str, int, int]], line: str
) -> None:
    lines = heartbeat(capsys, *steps)

    assert len(lines) > 1
    assert lines[-1] == line


def test_work_that_is_done_before_the_first_line_is_due_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars("fine-tuning") as progress:
        progress("photos", 1, 2)

    assert capsys.readouterr() == ("", "")


def test_of_processes_that_train_together_only_the_first_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")

    assert heartbeat(capsys, ("photos", 1, 3)) == []


def test_work_goes_on_when_nobody_reads_its_output_any_more(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from enrich.console import console, errors\n"
        "for number in range(100): console.print('x' * 2000); errors.print('y' * 2000)\n"
        "Path(sys.argv[1]).touch()"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "done")], stdout=write, stderr=write, check=False)
    os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "done").exists()
