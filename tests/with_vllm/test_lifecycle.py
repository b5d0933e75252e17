"""Members of the generic families from training to serving: one here, the others in `make test-families`."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pytest

from tests.testing.lifecycle import OTHERS, Lifecycle, live, write_catalogs
from tests.testing.tiny_families import MAKERS

pytestmark = pytest.mark.timeout(1800)

HERE = "qwen3_vl"  # M-RoPE, features for several layers


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogs")
    write_catalogs(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the member of HERE lived."""
    return tmp_path_factory.mktemp(HERE)


@pytest.mark.vllm
def test_a_member_goes_all_the_way(catalogs: Path, folder: Path) -> None:
    check(live(HERE, catalogs, folder, epochs=6))


@pytest.mark.families
@pytest.mark.parametrize("family", sorted(MAKERS.keys() - {HERE}))
def test_members_of_other_families_go_all_the_way(family: str, catalogs: Path, tmp_path: Path) -> None:
    check(live(family, catalogs, tmp_path, epochs=6))


def check(found: Lifecycle) -> None:
    assert found.by_heart[-1] < 0.05
    assert found.losses[-1] < 0.6 * found.losses[0]
    for record in (found.merged, found.lora):
        assert (record.rows, record.failed, record.same_prompts) == (OTHERS, 0, OTHERS)
        assert record.same_answers >= 0.99 * OTHERS
        assert record.largest_difference < 2e-3


@pytest.mark.vllm
def test_a_run_from_the_command_line_ends_and_leaves_no_process(catalogs: Path, folder: Path, tmp_path: Path) -> None:
    """After the test above, whose adapter it serves: a member that learned so little is held back by the gate."""
    (tmp_path / "run.yaml").write_text("device: cpu\ngate: {enabled: false}\nvllm: {max_num_seqs: 8}\n")
    places = {"images": catalogs / "others" / "images", "adapter": folder / "adapter", "output": tmp_path / "output"}
    options = [part for name, place in places.items() for part in (f"--{name}", str(place))]
    process = subprocess.Popen(
        [sys.executable, "-m", "enrich.cli", "run", *options, "--config", str(tmp_path / "run.yaml"),
         "--engine", "vllm", "--limit", "12"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    told, _ = process.communicate(timeout=600)  # until the last process that inherited its output has ended
    assert process.returncode == 0, told
    left = [other for other in psutil.process_iter() if is_of_session(other, process.pid)]
    assert psutil.wait_procs(left, timeout=10)[1] == []  # some are in the middle of ending
    rows = pl.read_parquet(tmp_path / "output" / "products.parquet")
    assert (rows.height, set(rows["status"]), set(rows["engine"])) == (12, {"ok"}, {"vllm"})


def is_of_session(process: psutil.Process, session: int) -> bool:
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    return False
