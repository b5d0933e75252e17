"""A run's device and precision, and its memory use."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def one_group() -> Iterator[None]:
    """Leave the group of processes that was joined within, if one was, at the end or after an error that all meet.

    This cannot be left to the interpreter's exit: the group's threads sometimes abort it (torch 2.13: "terminate called
    without an active exception", 1 of 40 groups on busy cores). After any other error the group stays: the others may
    still wait for this process, and to leave would be to wait for them.
    """
    try:
        yield
    except UsageError:
        _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
