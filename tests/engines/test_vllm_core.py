"""When vLLM's imports begin before it is known whether there is a GPU."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from enrich.engines import vllm_core
from enrich.engines.vllm_core import begin_early
from enrich.settings.run import RunSettings


@pytest.mark.parametrize(
    ("settings", "driver", "begins"),
    [
        ({}, True, True),
        ({"engine": "vllm"}, True, True),
        ({}, False, False),
        ({"engine": "transformers"}, True, False),
        ({"device": "cpu", "engine": "vllm"}, True, False),  # whose environment is another
        ({"runner": "ray"}, True, False),  # this process leads workers
    ],
)
def test_imports_begin_where_a_run_clearly_uses_a_gpu(
    settings: dict[str, Any], driver: bool, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(Path, "exists", lambda path: driver and path == Path("/dev/nvidiactl"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(vllm_core, "begin_imports", lambda *, cpu: started.append(cpu))

    begin_early(RunSettings.model_validate(settings))

    assert started == [False] * begins
