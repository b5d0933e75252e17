"""vLLM's own Phi3VForCausalLM, in this process, on the CPU."""

import gc
import importlib.util
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from enrich.models.checkpoint import load_model
from enrich.models.phi3_vision import Phi3VForCausalLM
from tests.testing.vllm.comparison import Engine
from tests.testing.vllm.random_phi3v import write_checkpoint

# `make test` runs where vLLM is not installed, and `make test-vllm` where it is.
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # Unset, vLLM takes one thread, and three times as long on 2 cores.
    "OMP_NUM_THREADS": str(os.cpu_count()),
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For merged weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENRICH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton's kernels run as Python: it decides that when it is imported."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        patch.setenv("TRITON_INTERPRET", "1")
        yield pool


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton compiles."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield pool


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Start an engine on a checkpoint; it is gone afterwards, for there can be one at a time in a process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        from vllm import LLM, ModelRegistry
        from vllm.distributed import cleanup_dist_env_and_memory
        from vllm.model_executor.layers import rotary_embedding
        from vllm.model_executor.models import phi3v
        from vllm.plugins import load_general_plugins

        @contextmanager
        def start(path: Path, **options: Any) -> Iterator[Any]:
            # A constant in there: at the published 24 layers an image of 17 crops takes a minute on 2 cores.
            layers = json.loads((path / "config.json").read_text())["img_processor"]["num_hidden_layers"]
            patch.setattr(phi3v.CLIP_VIT_LARGE_PATCH14_336_CONFIG, "num_hidden_layers", layers)
            # vLLM's own class in the place that this package's plugin takes, which it loads once a process.
            load_general_plugins()
            ModelRegistry.register_model("Phi3VForCausalLM", phi3v.Phi3VForCausalLM)
            rotary_embedding._ROPE_DICT.clear()  # kept by all but max_model_len, which chooses between the factors
            settings = {"dtype": "float32", "enforce_eager": True, "enable_prefix_caching": False, "seed": 0}
            llm = LLM(str(path), **{**settings, **options})
            assert llm.apply_model(type) == [phi3v.Phi3VForCausalLM]
            try:
                yield llm
            finally:
                del llm
                gc.collect()
                cleanup_dist_env_and_memory()

        yield start


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("random") / "phi3v")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Phi3VForCausalLM:
    return load_model(checkpoint, dtype=torch.float32, device="cpu")
