"""The process from which vLLM's engines, and the process that merges an adapter for them, are forked. It imports vLLM,
torch and transformers while its parent plans a run.

vLLM itself starts an engine as a new interpreter, whose imports alone take 10 s, or as a fork of the calling process,
with all its locks and pipes. Python's fork server avoids both: it is an interpreter that has imported vLLM and nothing
else, with one thread and without CUDA. Restarting a dead engine also needs no imports.
"""

import importlib.util
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import context, forkserver, parent_process, popen_forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from enrich.settings.run import RunSettings
from enrich.storage.cache import keep_compiled_code

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    # Of processes that an engine starts itself, on a CPU: a fork would copy the locks of its threads.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Greedy decoding does not need a sampler, and this one is compiled at startup.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # How much memory the cache may take is measured once, and again only where less of it is free.
    "VLLM_ENABLE_STARTUP_PLAN": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(os.cpu_count() or 1),  # if unset, vLLM uses one thread
}


def begin_imports(*, cpu: bool) -> None:
    """Set vLLM's environment and start the process that imports it, unless there is one. Takes a few milliseconds."""
    for name, value in {**ENVIRONMENT, **(ON_CPU if cpu else {})}.items():
        os.environ.setdefault(name, value)
    keep_compiled_code()
    forkserver.set_forkserver_preload(["enrich.engines.vllm_preload"])
    forkserver.ensure_running()


def begin_early(settings: RunSettings) -> None:
    """`begin_imports` if a run clearly uses vLLM on a GPU; asking torch would take the seconds that this saves."""
    wanted = settings.engine != "transformers" and settings.device != "cpu" and settings.runner == "inline"
    if wanted and Path("/dev/nvidiactl").exists() and importlib.util.find_spec("vllm") is not None:
        begin_imports(cpu=False)


class ForkContext(context.ForkServerContext):
    """Forks of the process that has imported vLLM, with the environment and the number of threads of a new interpreter.

    For what needs the imports and is started after `begin_imports`; before, forks have nothing imported.
    """

    class Process(context.ForkServerProcess):
        """A fork of it."""

        _environment: dict[str, str]

        @staticmethod
        def _Popen(process_obj: Any) -> "_Popen":
            return _Popen(process_obj)

        def start(self) -> None:
            self._environment = dict(os.environ)
            super().start()

        def run(self) -> None:
            import torch

            os.environ.clear()
            os.environ.update(self._environment)
            if threads := self._environment.get("OMP_NUM_THREADS"):
                torch.set_num_threads(int(threads))
            self.prepare()
            super().run()

        def prepare(self) -> None:
            """Run the preparation before the work."""


@contextmanager
def forked() -> Iterator[Executor]:
    """A pool of one process, forked as by `ForkContext`. It ends with the block, immediately if the block raises, and
    with this process if that is killed."""
    with ProcessPoolExecutor(1, mp_context=ForkContext(), initializer=_end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            for process in dict(getattr(pool, "_processes", None) or {}).values():
                process.kill()  # Python 3.14 has kill_workers for this
            raise


def _end_with_parent() -> None:
    """Exit as soon as the parent is killed; otherwise this process would keep its GPU memory."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class CoreContext(ForkContext):
    """What vLLM asks for the process of an engine, instead of multiprocessing's context "spawn"."""

    class Process(ForkContext.Process):
        """A fork whose engine shares compiled code with those of other adapters."""

        def prepare(self) -> None:
            from enrich.engines.vllm_compat import share_compiled_code

            share_compiled_code()


class _Popen(popen_forkserver.Popen):
    """Safe to poll from several threads: the exit code can be read from its pipe once."""

    _reading = threading.Lock()

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self.returncode is None and wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            with self._reading:
                super().poll(os.WNOHANG)
        return self.returncode
