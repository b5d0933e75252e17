"""Which device and precision a run gets, and how much memory it took."""

import os
import resource
import sys

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from enrich.errors import UsageError
from enrich.models import device as models_device


def device_and_dtype(device: str) -> tuple[torch.device, torch.dtype]:
    """`auto` takes the GPU where there is one: bf16 there, float32 on a CPU.

    Of several processes (RANK, WORLD_SIZE) each joins the others here and gets a GPU of its own.

    Raises:
        UsageError: a GPU was asked for but none is visible, or there are fewer GPUs than processes.
    """
    single, dtype = models_device.device_and_dtype(device)
    if single.type == "cpu":
        return PartialState(cpu=True).device, dtype
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise UsageError(f"{processes} processes: only {gpus} GPUs are visible here; start one for each GPU")
    return PartialState().device, dtype


def broadcast(decision: bool) -> bool:
    """The first process's decision, in every process: their clocks differ, and they must continue together."""
    return decision if PartialState().num_processes == 1 else broadcast_object_list([decision])[0]


def is_main_process() -> bool:
    """Whether this is the process that writes: the first of several, or the only one."""
    return PartialState().is_main_process


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_bytes(device: torch.device) -> int:
    """The most that tensors took on the GPU; without one, the most that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB on Linux
