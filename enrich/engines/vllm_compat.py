"""The private parts of vLLM 0.32 that the engine process needs.

Import it only after the environment variables that vLLM reads at import are set.
"""

import copy
import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle
import psutil
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models import registry
from vllm.platforms import current_platform
from vllm.v1.engine import utils
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.worker import startup_plan

from enrich.engines.vllm_core import CoreContext, forked
from enrich.models.registry import register_with_vllm
from enrich.storage.cache import cache_directory
from enrich.storage.exclusive import once

__all__ = ["EngineDeadError", "Internals", "LLMEngine", "fork_engines", "share_compiled_code"]


# The ZeroMQ contexts of all engines of this process, kept so that none is ever garbage-collected: destroying a context
# waits for its last socket, forever if that was closed in the middle of a message. vLLM closes the sockets of a dead
# engine in one thread while another may be sending; a test hung this way, in whichever code collected garbage next. A
# kept context costs three idle threads.
_CONTEXTS: list[Any] = []


def fork_engines() -> None:
    """Make vLLM start engines, and inspect model classes, in forks of the process that has imported it."""
    utils.get_mp_context = CoreContext
    registry._run_in_subprocess = _in_a_fork


def _in_a_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns: vLLM starts an interpreter for it, whose imports take 8 s; the model's take one."""
    with forked() as pool:
        return pool.submit(_work, cloudpickle.dumps(work)).result()


def _work(pickled: bytes) -> Any:
    register_with_vllm()
    return cloudpickle.loads(pickled)()


def share_compiled_code() -> None:
    """In an engine's process: reuse what was compiled and measured for another adapter or by another engine."""
    _forget_where_models_are()
    _tell_memory_apart()
    if current_platform.is_cuda():
        _compile_once()


def _forget_where_models_are() -> None:
    """Let models of one shape share compiled code; vLLM's key includes the directory, and each adapter has its own."""
    compute = ModelConfig.compute_hash

    @wraps(compute)
    def without_directory(config: ModelConfig) -> str:
        nameless = copy.copy(config)
        nameless.model = ""
        return compute(nameless)

    ModelConfig.compute_hash = without_directory


def _tell_memory_apart() -> None:
    """vLLM keeps how much memory the cache may take (VLLM_ENABLE_STARTUP_PLAN), by a key that lacks what we vary."""
    fingerprint = startup_plan.compute_plan_fingerprint

    @wraps(fingerprint)
    def of_everything(config: VllmConfig, rank: int, world_size: int) -> str:
        scheduler, photos = config.scheduler_config, config.model_config.multimodal_config
        more = (
            config.cache_config.gpu_memory_utilization,
            scheduler.max_num_seqs,
            scheduler.max_num_batched_tokens,
            config.compilation_config.cudagraph_capture_sizes,
            photos and (photos.limit_per_prompt, photos.mm_processor_kwargs),
        )
        known = fingerprint(config, rank, world_size)
        return hashlib.sha256(repr((known, more)).encode()).hexdigest()[:16]

    startup_plan.compute_plan_fingerprint = of_everything


def _compile_once() -> None:
    """Let engines that start at the same time on a machine load, then wait until the first one has compiled."""
    import torch
    from vllm.v1.worker.gpu_worker import Worker

    profile = Worker.determine_available_memory  # the first call of the model, which compiles it

    @wraps(profile)
    def after_the_first(worker: Worker) -> int:
        parts = worker.vllm_config.compute_hash(), torch.__version__, torch.cuda.get_device_name()
        marker = cache_directory() / "compiled" / re.sub(r"\W+", "-", "-".join(parts))
        with once(marker, "compiling"):
            return profile(worker)

    Worker.determine_available_memory = after_the_first


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
