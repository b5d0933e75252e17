"""vLLM's engine in its own process: start, feed and watch it, and find out why it died."""

import json
import logging
import multiprocessing.connection
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from enrich.engines.gpu_memory import holders, wait_for_memory
from enrich.engines.orphans import EngineRecord, end_orphans
from enrich.engines.vllm_core import begin_imports
from enrich.errors import RunFailed, UsageError
from enrich.models.registry import register_with_vllm
from enrich.storage.scratch import Scratch

log = logging.getLogger(__name__)

HANG_SECONDS = 600.0  # a step takes 0.1 s on a GPU; 4,096 tokens of the full-size model on a few cores take 2 minutes
_LOOK_SECONDS = 5.0  # between checks for a hung engine

_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|less than desired GPU memory utilization|No available memory for the cache"
    r"|larger than the available KV cache memory"
)


def import_vllm(*, cpu: bool) -> None:
    """Import vLLM here, which takes 10 s, while the process that engines are forked from does the same."""
    begin_imports(cpu=cpu)
    from enrich.engines.vllm_compat import fork_engines

    fork_engines()
    register_with_vllm()  # vLLM loads plugins once per process, perhaps before ours were installed


class EngineDied(Exception):
    """The engine's process has ended; the message says why if its log does."""


class EngineProcess:
    """One vLLM engine. Every call that waits for it raises `EngineDied` within a second of its death.

    An engine that has work but makes no step for HANG_SECONDS is killed.

    Args:
        arguments: arguments of vLLM's EngineArgs.
        lora: directory of an adapter to serve unmerged.

    Raises:
        UsageError: the GPU lacks the memory that the settings require, or vLLM rejects the arguments.
        RunFailed: it fails to start for any other reason.
    """

    def __init__(self, arguments: dict[str, Any], *, cpu: bool, lora: Path | None = None) -> None:
        self._scratch = Scratch()
        self._log = self._scratch.path / "vllm.log"
        import_vllm(cpu=cpu)
        from vllm import EngineArgs
        from vllm.lora.request import LoRARequest

        from enrich.engines.vllm_compat import EngineDeadError, Internals, LLMEngine

        self._dead: type[Exception] = EngineDeadError
        self._lora = LoRARequest("adapter", 1, str(lora)) if lora else None
        end_orphans()
        if not cpu:
            wait_for_memory(arguments["gpu_memory_utilization"])
        self._record = EngineRecord()
        try:
            config = EngineArgs(**arguments, logging_config=_logging_config(self._scratch.path, self._log))
            with self._record.starting():
                self._engine = LLMEngine.from_engine_args(config, enable_multiprocessing=True)
        except (RuntimeError, ValueError, TimeoutError, OSError) as error:
            text = self._log.read_text(errors="replace") if self._log.is_file() else ""
            raise start_failure(error, text, arguments, self._log) from error
        self.start_parts = start_parts(self._log.read_text(errors="replace") if self._log.is_file() else "")
        self.dtype = getattr(torch, arguments["dtype"])
        self._internals = Internals(self._engine)
        self._record.write(self.pids)
        self._waiting_since: float | None = None  # time.monotonic at which `outputs` started to wait for a step
        self._hung = False
        threading.Thread(target=self._watch, daemon=True, name="enrich-vllm-watch").start()

    @property
    def pids(self) -> list[int]:
        """The ids of the engine's processes."""
        return [process.pid for process in self._internals.processes if process.pid is not None]

    def add(self, id: str, prompt: Any, params: Any) -> None:
        """Send a request to the engine. ValueError: the engine rejects it. EngineDied: the engine has ended."""
        from vllm.exceptions import VLLMClientError
        from zmq.error import ZMQError

        try:
            self._engine.add_request(id, prompt, params, lora_request=self._lora)
        except VLLMClientError as error:
            raise ValueError(str(error)) from error
        except (self._dead, ZMQError) as error:  # ZMQError while vLLM is closing its sockets
            raise EngineDied(self.reason()) from error

    def has_outputs(self) -> bool:
        """Whether `outputs` would return without waiting."""
        return self._internals.has_outputs()

    def finished(self) -> tuple[int, float]:
        """How many finished requests `outputs` has not returned yet, and when (time.monotonic) the last finished."""
        return self._internals.finished()

    def outputs(self) -> list[Any]:
        """Wait for the next step of an engine that has requests; return those it finished. EngineDied: it has ended."""
        self._waiting_since = time.monotonic()
        try:
            return self._engine.step()
        except self._dead as error:
            raise EngineDied(self.reason()) from error
        finally:
            self._waiting_since = None

    def abort(self, ids: Sequence[str]) -> None:
        """Cancel requests, answered or not."""
        from zmq.error import ZMQError

        try:
            self._engine.abort_request(list(ids))
        except (self._dead, ZMQError):  # then there is nothing to cancel
            return

    def reason(self) -> str:
        """The last error in the engine's log, or how its process ended."""
        if self._hung:
            return f"it made no step for {HANG_SECONDS:.0f} s"
        for process in self._internals.processes:
            process.join(1.0)  # the pipe closes shortly before the process ends and has an exit code
        if self._log.is_file() and (told := last_error(self._log.read_text(errors="replace"))):
            return told
        codes = [process.exitcode for process in self._internals.processes if process.exitcode]
        return f"its process ended with code {codes[0]}" if codes else "its process ended"

    def close(self) -> None:
        """Stop the engine, dead or alive, and free its resources."""
        self._internals.shutdown()
        self._record.remove()
        self._scratch.remove()

    def _watch(self) -> None:
        """Kill the processes if they hang; when they end, wake any caller that waits for an output."""
        sentinels = [process.sentinel for process in self._internals.processes]
        while not multiprocessing.connection.wait(sentinels, timeout=_LOOK_SECONDS):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > HANG_SECONDS:
                self._hung = True
                for process in self._internals.processes:
                    process.kill()
        self._internals.wake()


def start_parts(text: str) -> dict[str, float]:
    """Seconds of the parts of a start, parsed from vLLM's log; empty if the log has another format."""

    def seconds(line: str) -> float:
        return sum(map(float, re.findall(line, text)))

    compiling = seconds(r"torch\.compile took ([\d.]+) s in total")
    graphs = seconds(r"Graph capturing finished in ([\d.]+) secs")
    whole = seconds(r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s")
    return {
        "model": seconds(r"Model loading took .* memory and ([\d.]+) seconds"),
        "compile": compiling,
        "graphs": graphs,
        "profile": max(0.0, whole - compiling - graphs),
    }


def start_failure(error: Exception, text: str, arguments: dict[str, Any], file: Path) -> UsageError | RunFailed:
    """The error to report if the engine did not start: `error` was raised here, `text` is its log in `file`."""
    refused = re.search(r"Value error, (.+?) \[type=", str(error), re.DOTALL)  # pydantic's format
    reason = last_error(text) or " ".join((refused[1] if refused else str(error)).split())[:300]
    if _NO_MEMORY.search(reason):
        named = ("gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs")
        lower = ", ".join(f"vllm.{name} ({arguments[name]})" for name in named if arguments.get(name) is not None)
        return UsageError(
            f"engine vllm: not enough memory on the GPU: {reason}; lower {lower}, set quantization and "
            f"kv_cache_dtype to fp8, or stop what else runs on this GPU{holders()}"
        )
    if isinstance(error, ValueError):
        return UsageError(f"engine vllm: {reason}; change that setting")
    return RunFailed(f"engine vllm: does not start: {reason}; see its log {file}")


def _logging_config(folder: Path, file: Path) -> Any:
    """Make vLLM log everything to a file and only errors to the terminal, unless its own variables override this."""
    if "VLLM_LOGGING_CONFIG_PATH" in os.environ or os.environ.get("VLLM_CONFIGURE_LOGGING") == "0":
        return None
    from vllm.config.logging import LoggingConfig

    form = {"class": "vllm.logging_utils.NewLineFormatter", "format": "(%(processName)s) %(levelname)s %(message)s"}
    level = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
    handlers = {
        "file": {"class": "logging.FileHandler", "filename": str(file), "level": "INFO", "formatter": "vllm"},
        "terminal": {"class": "logging.StreamHandler", "level": level, "formatter": "vllm"},
    }
    loggers = {"vllm": {"handlers": list(handlers), "level": "INFO", "propagate": False}}
    config = {"version": 1, "disable_existing_loggers": False, "formatters": {"vllm": form}, "handlers": handlers,
              "loggers": loggers}  # fmt: skip
    (folder / "logging.json").write_text(json.dumps(config))
    return LoggingConfig(pylogging_config_file=str(folder / "logging.json"))


def last_error(text: str) -> str | None:
    """The last line of a log that names an exception, except those that only refer to another one."""
    found = re.findall(r"^(?:\(.*?\) ERROR )?((?:\w+\.)*\w+(?:Error|Exception): .+)$", text, re.MULTILINE)
    own = [line for line in found if "See root cause above" not in line and "EngineDeadError" not in line]
    return own[-1][:300] if own else None
