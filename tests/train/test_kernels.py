"""What a run trains with."""

import pytest
import torch

from enrich.errors import UsageError
from enrich.train import kernels
from enrich.train.kernels import attention_kernel, check_4bit, worth_compiling
from tests.testing.tiny_job import TinyJob

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("installed", "wanted", "device", "kernel"),
    [
        ((), "auto", GPU, "sdpa"),
        (("2",), "auto", GPU, "flash_attention_2"),
        (("2", "3"), "auto", GPU, "flash_attention_3"),
        (("2", "3"), "auto", CPU, "sdpa"),
        (("2", "3"), "sdpa", GPU, "sdpa"),
        (("2", "3"), "flash_attention_2", GPU, "flash_attention_2"),
    ],
)
def test_attention_takes_what_is_installed(
    installed: tuple[str, ...], wanted: str, device: torch.device, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("2", "3"):
        monkeypatch.setattr(kernels, f"is_flash_attn_{version}_available", lambda version=version: version in installed)
    assert attention_kernel(wanted, device) == kernel


@pytest.mark.parametrize("device", [CPU, GPU])
def test_kernels_that_are_not_there_are_named(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_flash_attn_3_available", lambda: device == CPU)
    with pytest.raises(UsageError) as raised:
        attention_kernel("flash_attention_3", device)
    assert str(raised.value) == (
        "attention flash_attention_3: needs a CUDA GPU and the package flash-attn; use attention: auto"
    )


def test_compiling_must_pay(job: TinyJob) -> None:
    long, short = job.settings(epochs=4), job.settings(epochs=1)
    assert worth_compiling(long, GPU, 500)
    assert not worth_compiling(short, GPU, 500)
    assert not worth_compiling(long, CPU, 500)
    assert worth_compiling(job.settings(epochs=4, load_in_4bit=True), GPU, 500)
    assert worth_compiling(job.settings(compile=True), CPU, 1)
    assert not worth_compiling(job.settings(epochs=4, compile=False), GPU, 500)


def test_a_4bit_base_needs_its_package(job: TinyJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_bitsandbytes_available", lambda: False)
    check_4bit(job.settings())
    with pytest.raises(UsageError) as raised:
        check_4bit(job.settings(load_in_4bit=True))
    assert str(raised.value) == (
        "load_in_4bit: needs bitsandbytes; pip install 'enrich[qlora]', or set load_in_4bit: false"
    )
