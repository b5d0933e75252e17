"""Choosing the engine for a machine, and starting it."""

import importlib.util
from pathlib import Path
from typing import Literal

from enrich.engines.adapter import Adapter, answer_budget
from enrich.engines.base import Engine
from enrich.errors import UsageError, first_line
from enrich.models.registry import family_of
from enrich.photos.prompt_size import refuse_long_prompts
from enrich.settings.run import RunSettings


def choose_engine(
    name: Literal["auto", "vllm", "transformers"], device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Literal["vllm", "transformers"]:
    """The engine to start for `name`: `auto` is vLLM if it is installed and there is a GPU to use.

    Raises:
        UsageError: vLLM was asked for but is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if name == "vllm":
        if not installed:
            raise UsageError(
                "engine vllm: vLLM is not installed; pip install 'enrich[vllm]', or use --engine transformers"
            )
        return "vllm"
    if name == "transformers" or not installed or device == "cpu":
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def need_vllm_imports(adapter: Path) -> None:
    """UsageError if vLLM lacks a package for the adapter's family; otherwise it would fail after minutes of merging."""
    family = family_of(adapter)
    for name in family.load().vllm_imports:
        try:
            importlib.import_module(name)
        except Exception as error:  # ImportError, or what a build for another torch makes of it
            import torch

            build = f" (the build for torch {torch.__version__})" if name == "torchvision" else ""
            raise UsageError(
                f"engine vllm: for {family.title} it needs {name}: {first_line(error)}; "
                f"install {name}{build}, or use --engine transformers"
            ) from error


def start_engine(adapter: Adapter, settings: RunSettings) -> Engine:
    """An engine that serves `adapter`, ready to answer. Loading a full-size model takes a minute.

    Raises:
        UsageError: see `need_vllm_imports`, `refuse_long_prompts`, `load_vllm_engine` and `load_engine`.
    """
    name = choose_engine(settings.engine, settings.device)
    if name == "vllm":
        need_vllm_imports(adapter.path)
    if adapter.preparation.photos_per_product > 1:
        from enrich.models.checkpoint import load_processor

        refuse_long_prompts(load_processor(adapter.path), adapter.prompt, answer_budget(adapter, settings))
    if name == "vllm":
        from enrich.engines.vllm_engine import load_vllm_engine

        return load_vllm_engine(adapter, settings)
    from enrich.engines.transformers_engine import load_engine

    return load_engine(adapter, settings)
