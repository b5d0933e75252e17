"""Memory of a GPU that others hold: waited for, then named. The GPU is not real here, NVML's answers are its format."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from enrich.engines import gpu_memory
from enrich.engines.gpu_memory import GIB, holders, wait_for_memory
from enrich.engines.vllm_process import start_failure
from enrich.errors import UsageError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """140 GiB, of which `used` are in use at each look; waiting takes no time."""
    found = SimpleNamespace(used=iter([0]), listing="GPU:0\nno processes are running", now=0.0, looks=0)

    def used(device: int) -> int:
        found.looks += 1
        return int(next(found.used) * GIB)

    def sleep(seconds: float) -> None:
        found.now += seconds

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=140 * GIB))
    monkeypatch.setattr(torch.cuda, "device_memory_used", used)
    monkeypatch.setattr(torch.cuda, "list_gpu_processes", lambda index: found.listing)
    monkeypatch.setattr(gpu_memory, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: found.now))
    return found


def forever(gib: float) -> Iterator[float]:
    while True:
        yield gib


def test_a_free_gpu_is_not_waited_for(gpu: SimpleNamespace) -> None:
    gpu.used = forever(1)

    wait_for_memory(0.9)

    assert (gpu.looks, gpu.now) == (1, 0)


def test_memory_that_is_given_back_is_waited_for(gpu: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    gpu.used = iter([115, 115, 60, 2])
    gpu.listing = f"GPU:0\nprocess {os.getpid():>10d} uses   117760.000 MB GPU memory"

    wait_for_memory(0.9)

    assert gpu.now == 3
    assert "waiting for GPU memory: 115 of 140 GiB are in use (process " in caplog.text
    assert caplog.text.count("waiting") == 1


def test_what_is_never_given_back_is_waited_for_a_minute(gpu: SimpleNamespace) -> None:
    gpu.used = forever(115)

    wait_for_memory(0.9)

    assert gpu.now == 60


@pytest.mark.parametrize("error", [ModuleNotFoundError("pynvml"), RuntimeError("NVML: not supported")])
def test_without_nvml_nothing_is_waited_for_and_nobody_named(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(index: int) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "device_memory_used", broken)
    monkeypatch.setattr(torch.cuda, "list_gpu_processes", broken)

    wait_for_memory(0.9)

    assert gpu.now == 0
    assert holders() == ""


def test_the_processes_are_named_in_the_error_the_largest_first(gpu: SimpleNamespace) -> None:
    gpu.listing = (
        "GPU:0\nprocess    4000001 uses     2048.000 MB GPU memory\n"
        f"process {os.getpid():>10d} uses   117760.000 MB GPU memory"
    )
    log = "ValueError: Free memory on device (24.1/139.8 GiB) on startup is less than desired GPU memory utilization"

    error = start_failure(RuntimeError("it ended"), log, {"gpu_memory_utilization": 0.9}, Path("log"))

    assert isinstance(error, UsageError)
    name = psutil.Process().name()
    assert f"stop what else runs on this GPU (process {os.getpid()}, {name}: 115 GiB; process 4000001: 2 GiB)" in str(
        error
    )


def test_where_there_is_no_gpu_nobody_is_named() -> None:
    assert torch.cuda.is_available() or holders() == ""
