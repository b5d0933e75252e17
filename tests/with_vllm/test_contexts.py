"""What a dead engine leaves behind stops nobody."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
_LEFT_BEHIND = """
import gc, queue
from types import SimpleNamespace
import zmq
{kept}

def engine():
    context = zmq.Context()
    with context.socket(zmq.PUSH) as sender:  # closed with a message that nobody will ever read
        sender.connect("tcp://127.0.0.1:1")
        sender.send(b"x")
    manager = SimpleNamespace(processes=[])
    core = SimpleNamespace(ctx=context, outputs_queue=queue.Queue(), resources=SimpleNamespace(engine_manager=manager))
    return SimpleNamespace(engine_core=core)

one = engine()
{used}
del one
gc.collect()
print("collected")
"""


@pytest.mark.parametrize("ours", [True, False])
def test_the_context_of_a_dead_engine_is_never_collected(ours: bool) -> None:
    kept = "from enrich.engines.vllm_compat import Internals" if ours else ""
    script = _LEFT_BEHIND.format(kept=kept, used="Internals(one)" if ours else "")
    command = [sys.executable, "-c", script]
    if ours:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        assert "collected" in done.stdout
    else:  # what it would do otherwise
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=ROOT, capture_output=True, timeout=10, check=True)
