"""`enrich doctor --output URI --newer-than TIME`: an output that no run has published to for too long is noticed."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from enrich.errors import RunFailed
from enrich.output.run_record import SEQUENCES, RunInfo, RunRecord, claim_sequence, write_run_record
from enrich.pipeline.freshness import check_fresh
from enrich.storage import Store, open_store
from tests.testing.cli import RunCli
from tests.testing.rows import make_run

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def ran(output: str, run_id: str, hours_ago: float, state: Any = "published", now: datetime = NOW) -> None:
    """A run that claimed the next number and ended so long ago."""
    store = open_store(output, create=True)
    ended = now - hours_ago * HOUR
    run = make_run(run_id, sequence=claim_sequence(store, run_id, 0), created_at=ended - HOUR)
    write_record(store, run, ended, state)


def write_record(store: Store, run: RunInfo, ended: datetime, state: Any) -> None:
    record = RunRecord(
        run=run, state=state, counts={"rows": 1, "ok": 1, "failed": 0}, started_at=ended, finished_at=ended, seconds=1,
        images_per_second=1, engine="fake", host="h",
    )  # fmt: skip
    write_run_record(store, record)


def look(output: str, hours: float = 26) -> str:
    return check_fresh(output, hours * HOUR, now=NOW)


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest) -> str:
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path") / "output")
    return f"{request.getfixturevalue('s3_bucket')}/output"


def test_a_recent_run_is_enough(output: str) -> None:
    ran(output, "night-1", 30)
    ran(output, "night-2", 6)

    assert look(output) == f"output {output}: run night-2 ended 6h ago"


def test_a_run_that_had_nothing_to_do_is_enough(output: str) -> None:
    ran(output, "night-1", 6, "nothing_to_do")

    assert "night-1" in look(output)


def test_a_long_run_that_started_first_and_ended_last_is_enough(output: str) -> None:
    ran(output, "long", 2)
    ran(output, "short", 40)

    assert "long" in look(output)


def test_an_old_one_is_not(output: str) -> None:
    ran(output, "night-1", 30)
    store = open_store(output)
    claim_sequence(store, "night-2", 0)  # started, and killed

    with pytest.raises(RunFailed) as told:
        look(output)
    assert str(told.value) == (
        f"output {output}: run night-1 ended 30h ago, more than 26h, and none has published since; "
        "see the log of the last nightly run, and `enrich doctor --prefect`"
    )


def test_a_run_that_was_held_back_is_not_and_is_named(output: str) -> None:
    ran(output, "night-1", 60)
    ran(output, "night-2", 6, "held")

    with pytest.raises(RunFailed, match=r"run night-1 ended 2d 12h ago.*; run night-2, 6h ago, is held back"):
        look(output)


def test_an_output_without_runs_is_not(output: str) -> None:
    with pytest.raises(RunFailed, match="no run has published"):
        look(output)


def test_more_killed_runs_than_are_looked_at_hide_nothing(output: str) -> None:
    ran(output, "night-1", 6)
    store = open_store(output)
    for number in range(12):
        claim_sequence(store, f"killed-{number}", 0)

    assert "night-1" in look(output)


def test_thousands_of_runs_take_no_longer_than_ten(tmp_path: Any) -> None:
    output = str(tmp_path / "output")
    store = open_store(output, create=True)
    (tmp_path / "output" / SEQUENCES).mkdir(parents=True)
    for number in range(1, 3000):  # not through the store, which syncs each to the disk
        (tmp_path / "output" / SEQUENCES / f"{number:08d}").write_text(f"night-{number}")
    for number in range(1, 3000, 100):
        write_record(store, make_run(f"night-{number}", sequence=number), NOW - 100 * HOUR, "published")
    ran(output, "night-2999", 1)
    started = time.monotonic()

    assert "night-2999" in look(output)
    assert time.monotonic() - started < 2  # 0.1 s on an idle machine


def test_the_command_says_one_line_and_ends_with_1_or_0(run_cli: RunCli, tmp_path: Any) -> None:
    output = str(tmp_path / "output")
    assert run_cli("doctor", "--output", output, "--newer-than", "26h")[0] == 1
    ran(output, "night-1", 3, now=datetime.now(UTC))

    code, out, err = run_cli("doctor", "--output", output, "--newer-than", "26h")
    assert (code, err) == (0, "")
    assert out == f"output {output}: run night-1 ended 3h ago\n"

    code, out, err = run_cli("doctor", "--output", output, "--newer-than", "90m")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_run_from_the_future_keeps_nothing_quiet(output: str) -> None:
    ran(output, "night-1", 30)
    ran(output, "night-2", -100)
    with pytest.raises(RunFailed) as told:
        look(output)
    assert str(told.value) == (
        f"output {output}: run night-1 ended 30h ago, more than 26h, and none has published since; run night-2 ended "
        "4d 4h from now by the clock of host h: set that clock, or this one's"
    )
    ran(output, "night-3", 1)
    assert look(output) == f"output {output}: run night-3 ended 1h ago"


def test_clocks_may_differ_by_a_minute(output: str) -> None:
    ran(output, "night-1", -1 / 60)
    assert look(output) == f"output {output}: run night-1 ended 0m ago"


def test_a_run_from_the_future_alone_is_named(output: str) -> None:
    ran(output, "night-1", -48)
    with pytest.raises(RunFailed, match="no run has published; run night-1 ended 2d from now by the clock of"):
        look(output)


@pytest.mark.parametrize("time", ["26", "a day", "-1h"])
def test_a_time_that_is_not_one_is_refused_with_an_example(run_cli: RunCli, tmp_path: Any, time: str) -> None:
    code, _, err = run_cli("doctor", "--output", str(tmp_path), f"--newer-than={time}")

    assert code == 2
    assert "is not a duration; write 90d, 6h" in err


def test_without_an_output_the_command_is_refused(run_cli: RunCli) -> None:
    code, _, err = run_cli("doctor", "--newer-than", "26h")

    assert (code, "--output URI --newer-than 26h" in err) == (2, True)


def test_it_needs_neither_prefect_nor_torch(tmp_path: Any) -> None:
    lines = (
        "import sys; from enrich.cli import app; "
        f"app(['doctor', '--output', {str(tmp_path)!r}, '--newer-than', '1h'], standalone_mode=False)"
    )
    watched = (
        f"import sys\ntry:\n    {lines}\nfinally:\n    print(*({{'prefect', 'torch', 'vllm'}} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True)

    assert done.stdout.strip() == ""
    assert "no run has published" in done.stderr
