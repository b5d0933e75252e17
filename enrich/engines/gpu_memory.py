"""What uses a GPU's memory: vLLM does not start if it is short, and that of ended processes takes a while to free."""

import logging
import re
import time
from contextlib import suppress

import psutil

log = logging.getLogger(__name__)

WAIT_SECONDS = 60.0  # for memory that others may be about to give back: an engine that ends takes some seconds
GIB = 1 << 30


def wait_for_memory(share: float) -> None:
    """Wait until `share` of the first GPU's memory is free, for at most WAIT_SECONDS; vLLM then reports any lack."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    while (used := _used()) is not None and total - used < share * total and time.monotonic() < deadline:
        if not told:
            log.warning("waiting for GPU memory: %.0f of %.0f GiB are in use%s", used / GIB, total / GIB, holders())
            told = True
        time.sleep(1.0)


def holders() -> str:
    """The processes that hold the first GPU's memory, the largest first, as ` (process 7, python3: 115 GiB)`."""
    import torch

    if not torch.cuda.is_available():
        return ""
    text = ""
    with suppress(Exception):  # without NVML, and in a container that may not see the processes of others
        text = torch.cuda.list_gpu_processes(0)
    found = [(float(size) / 1024, int(pid)) for pid, size in re.findall(r"process\s+(\d+) uses\s+([\d.]+) MB", text)]
    told = [f"process {pid}{_name(pid)}: {size:.0f} GiB" for size, pid in sorted(found, reverse=True)]
    return f" ({'; '.join(told)})" if told else ""


def _used() -> int | None:
    """Bytes of the first GPU in use, by all processes; None where NVML cannot tell."""
    import torch

    with suppress(Exception):
        return int(torch.cuda.device_memory_used(0))
    return None


def _name(pid: int) -> str:
    with suppress(psutil.Error):
        return f", {psutil.Process(pid).name()}"
    return ""
