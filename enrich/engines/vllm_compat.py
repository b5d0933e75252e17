"""What the engine process needs of vLLM 0.32 beyond its public interface.

Import it only after the environment variables that vLLM reads at import are set.
"""

from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

__all__ = ["EngineDeadError", "Internals", "LLMEngine"]


# The ZeroMQ contexts of all engines of this process, so that none is ever garbage: destroying one waits for its last
# socket, for ever if that was closed in the middle of a message. vLLM closes the sockets of an engine that died in a
# thread of its own while another may be sending; a test hung so, in whatever code collected garbage next. A context
# that is kept costs three idle threads.
_CONTEXTS: list[Any] = []


class Internals:
    """Queues and processes of an LLMEngine whose core runs in a process of its own."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        _CONTEXTS.append(engine.engine_core.ctx)
        self._outputs = engine.engine_core.outputs_queue
        self.processes: list[BaseProcess] = list(engine.engine_core.resources.engine_manager.processes)

    def has_outputs(self) -> bool:
        """Whether `engine.step()` would return without waiting."""
        return not self._outputs.empty()

    def finished(self) -> tuple[int, float]:
        """How many finished requests `step` has not returned yet, and when (time.monotonic) the last one finished."""
        waiting = [batch for batch in tuple(self._outputs.queue) if not isinstance(batch, BaseException)]
        count = sum(output.finish_reason is not None for batch in waiting for output in batch.outputs)
        return count, max((batch.timestamp for batch in waiting), default=0.0)

    def wake(self) -> None:
        """Make a waiting `step` raise EngineDeadError: when its process ends, vLLM only marks itself dead."""
        self._outputs.put(EngineDeadError())

    def shutdown(self) -> None:
        """End the core's processes, theirs, and the renderer's threads."""
        # On a CPU the core has a worker. It ends the worker, unless it is killed before that: after these 10 s. Both
        # need 4 on two idle cores.
        workers = [worker for process in self.processes for worker in _children(process)]
        self._engine.engine_core.shutdown(timeout=10.0)
        self._engine.renderer.shutdown()
        for process in (*self.processes, *workers):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _children(process: BaseProcess) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
