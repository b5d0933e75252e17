"""What run.json says about the packages that answered."""

from importlib.metadata import PackageNotFoundError

import pytest

from enrich.pipeline import versions
from enrich.pipeline.run import finish


def test_vllm_is_named_where_it_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: f"{name} 1")

    assert finish._versions("vllm")["vllm"] == "vllm 1"
    assert sorted(finish._versions("transformers")) == ["enrich", "peft", "polars", "torch", "transformers"]


def test_a_process_that_leads_workers_need_not_have_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name.startswith("vllm"):
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(versions, "version", version)

    assert finish._versions("vllm") == finish._versions("transformers")
