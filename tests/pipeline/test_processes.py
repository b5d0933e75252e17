"""Several processes of one command: one group, one message, one exit code."""

import sys
from pathlib import Path

import pytest

from enrich import cli
from enrich.pipeline import processes
from enrich.pipeline.processes import run_together
from tests.testing.cli import RunCli

ONE_OF_GROUP = """
import sys, torch
from accelerate import PartialState
from enrich.train.device import is_main_process, one_group
with one_group():
    state = PartialState(cpu=True)
    ranks = torch.full((1,), state.process_index + 1)
    torch.distributed.all_reduce(ranks)
assert not torch.distributed.is_initialized()
assert is_main_process() == (state.process_index == 0)  # as after `train`, where all but the first end
open(f"{sys.argv[1]}/{state.process_index}", "w").write(f"{state.num_processes} {int(ranks)}")
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_the_processes_are_one_group(tmp_path: Path) -> None:
    assert run_together(python(ONE_OF_GROUP, str(tmp_path)), 2) == (0, "")
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 3", "2 3"]


@pytest.mark.parametrize(("error", "stays"), [("UsageError", False), ("RunFailed", True)])
def test_an_error_that_others_may_not_share_leaves_the_group_alone(error: str, stays: bool) -> None:
    code = f"""
import torch
from accelerate import PartialState
from enrich.errors import RunFailed, UsageError
from enrich.train.device import one_group
try:
    with one_group():
        PartialState(cpu=True)
        raise {error}("an error")
except {error}:
    joined = torch.distributed.is_initialized()
PartialState().destroy_process_group()
assert joined == {stays}
"""
    assert run_together(python(code), 2) == (0, "")


def test_what_all_meet_is_said_once_and_its_exit_code_kept(capfd: pytest.CaptureFixture[str]) -> None:
    fails = "import sys; print('error: no such catalog', file=sys.stderr); sys.exit(2)"
    assert run_together(python(fails), 3) == (2, "")
    assert capfd.readouterr().err == "error: no such catalog\n"


def test_what_one_of_the_others_meets_is_reported_and_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    code = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("error: GPU memory ran out", file=sys.stderr)
    sys.exit(1)
time.sleep(600)
"""
    assert run_together(python(code), 2) == (1, "GPU memory ran out")
    killed = "import os, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9); time.sleep(600)"
    assert run_together(python(killed), 2) == (1, "process 1 was killed")


def test_wrong_usage_of_several_processes_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    catalog = tmp_path / "none"
    monkeypatch.setattr(sys, "argv", ["enrich", "finetune", "--catalog", str(catalog), "--out", str(tmp_path / "out"),
                                      "--processes", "2"])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    # On a busy machine the processes take long enough to start for a line about what is going on before it.
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("fine-tuning (")]
    assert lines == [f"error: {catalog}: no such directory; check the path"]


@pytest.mark.parametrize(("rank", "said"), [("0", True), ("1", False)])
def test_of_several_processes_only_the_first_speaks_of_wrong_usage(
    rank: str, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    monkeypatch.setenv("RANK", rank)
    code, _, err = run_cli(f"finetune --catalog {tmp_path}/none --out {tmp_path}/out")
    assert code == 2
    assert bool(err) == said
    code, _, err = run_cli("finetune --no-such-option")
    assert (code, bool(err)) == (2, said)
