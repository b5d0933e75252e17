"""A real engine whose parent is killed with SIGKILL: it stays, and is ended before the next one starts."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from enrich.engines.orphans import end_orphans
from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.random_adapter import write_random_adapter

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PARENT = """
import sys, time
from pathlib import Path
from enrich.engines.adapter import read_adapter
from enrich.engines.vllm_engine import load_vllm_engine
from enrich.settings.run import RunSettings

if __name__ == "__main__":
    engine = load_vllm_engine(read_adapter(Path(sys.argv[1])), RunSettings(device="cpu", vllm={"max_num_seqs": 2}))
    print("up", *engine.process.pids, flush=True)
    time.sleep(600)
"""


def test_an_engine_that_outlived_its_killed_parent_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path / "cache"))
    adapter = write_random_adapter(tmp_path / "adapter", TINY_MODEL_PATH, num_crops=1)
    (tmp_path / "parent.py").write_text(PARENT)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(adapter)], cwd=root, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(root), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    line = next((line for line in parent.stdout if line.startswith("up ")), "")
    engines = [psutil.Process(int(pid)) for pid in line.split()[1:]]
    assert engines
    family = [*engines, *(child for engine in engines for child in engine.children(recursive=True))]

    parent.kill()
    parent.wait(10)

    print("outlived their parent:", [process.pid for process in family if process.is_running()])
    end_orphans()
    assert not any(process.is_running() for process in family)
