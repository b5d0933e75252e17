"""Several processes of one command that work together on this machine, as torchrun starts them, with one outcome."""

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, Any

GRACE_SECONDS = 20.0  # for the others to end by themselves once one has failed: mostly they meet the same error
_LOOK_SECONDS = 0.1


def run_together(command: Sequence[str], count: int) -> tuple[int, str]:
    """Run `count` processes of `command` that find each other by RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR.

    The first writes to this terminal; the output of the others, which is the same, is suppressed. Once one has failed
    or this process is interrupted, the others are ended.

    Returns:
        The exit code: 0, or the first process's own, or that of the one that failed (1 if it was killed); and the last
        line of the one that failed, unless that is the first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with ExitStack() as files:
        said = [files.enter_context(TemporaryFile()) for _ in range(count)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, file in enumerate(said):
                quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": file} if rank else {}
                environment = {**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(subprocess.Popen(command, env=environment, **quiet))
            failed = _wait(processes)
        finally:
            _end(processes)
        if failed is None:
            return 0, ""
        first = processes[0].returncode
        if first > 0:  # it has said why
            return first, ""
        return max(processes[failed].returncode, 1), _last_line(said[failed]) or f"process {failed} was killed"


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The rank of the first process to fail, once the others ended or GRACE_SECONDS passed; None if all succeed."""
    failed, until = None, float("inf")
    while time.monotonic() < until:
        codes = [process.poll() for process in processes]
        if failed is None and (failed := next((rank for rank, code in enumerate(codes) if code), None)) is not None:
            until = time.monotonic() + GRACE_SECONDS
        if all(code is not None for code in codes):
            break
        time.sleep(_LOOK_SECONDS)
    return failed


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else ""
