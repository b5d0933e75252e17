"""The process that engines are forked from, and the code that adapters of a base share."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from enrich.engines.vllm_core import CoreContext, begin_imports
from enrich.engines.vllm_process import import_vllm
from enrich.settings.models import TINY_MODEL_PATH

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def _look(told: str) -> None:
    import sys
    import threading

    import torch

    loaded = "vllm.v1.engine.core" in sys.modules
    found = [os.environ.get("ENRICH_TEST"), torch.get_num_threads(), loaded, threading.active_count()]
    Path(told).write_text(repr(found))
    os._exit(3)


def test_a_fork_has_vllm_and_the_environment_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_imports(cpu=True)
    monkeypatch.setenv("ENRICH_TEST", "set after the imports began")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    process = CoreContext().Process(target=_look, args=(str(tmp_path / "told"),), name="EngineCore")
    process.start()
    process.join(300)

    assert process.exitcode == 3
    assert (tmp_path / "told").read_text() == repr(["set after the imports began", 2, True, 1])


def _look_at_keys(told: str, folders: list[str]) -> None:
    from vllm import EngineArgs
    from vllm.v1.worker import startup_plan

    from enrich.models.registry import register_with_vllm

    register_with_vllm()

    def config(folder: str, **more: Any) -> Any:
        return EngineArgs(model=folder, enforce_eager=True, **more).create_engine_config()

    plain = [config(folder) for folder in folders]
    assert [one.model_config.model for one in plain] == folders
    varied = [config(folders[0], **more) for more in VARIED]
    keys = {
        "compiled": [one.compute_hash() for one in plain],
        "memory": [startup_plan.compute_plan_fingerprint(one, 0, 1) for one in (*plain[:2], *varied)],
    }
    Path(told).write_text(json.dumps(keys))


VARIED: list[dict[str, Any]] = [
    {"gpu_memory_utilization": 0.5}, {"max_num_seqs": 3}, {"limit_mm_per_prompt": {"image": 3}},
]  # fmt: skip


def test_adapters_of_a_base_share_compiled_code(tmp_path: Path) -> None:
    """vLLM keeps it by a hash, which is that of the model's sizes and of no directory in an engine's process."""
    same, other = [shutil.copytree(TINY_MODEL_PATH, tmp_path / name) for name in "ab"], tmp_path / "c"
    shutil.copytree(TINY_MODEL_PATH, other)
    config = (other / "config.json").read_text()
    assert '"num_hidden_layers": ' in config
    (other / "config.json").write_text(config.replace('"num_hidden_layers": ', '"num_hidden_layers": 1'))
    begin_imports(cpu=True)
    folders = [str(folder) for folder in (*same, other)]
    process = CoreContext().Process(target=_look_at_keys, args=(str(tmp_path / "told"), folders))
    process.start()
    process.join(300)

    assert process.exitcode == 0
    keys = json.loads((tmp_path / "told").read_text())
    first, second, third = keys["compiled"]
    assert first == second != third
    first, second, *varied = keys["memory"]  # which also depends on what is asked of the engine
    assert first == second
    assert len({first, *varied}) == 1 + len(VARIED)


def test_a_models_class_is_looked_at_in_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would start an interpreter for it, and import everything there once more."""
    import subprocess

    import_vllm(cpu=True)
    from vllm.model_executor.models.registry import ModelRegistry

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))  # where it keeps what it found
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("an interpreter was started"))
    module = "enrich.models.phi3_vision.vllm_model"
    monkeypatch.delitem(sys.modules, module, raising=False)  # other tests import it
    model = ModelRegistry.models["Phi3VForCausalLM"]

    assert model.inspect_model_cls().supports_multimodal
    assert (tmp_path / "modelinfos/enrich-models-phi3_vision-vllm_model-Phi3VForCausalLM.json").is_file()
    assert module not in sys.modules  # which would start CUDA
