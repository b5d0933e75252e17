"""Choosing the engine for a machine, and starting it."""

import importlib.util
from typing import Literal

from enrich.engines.adapter import Adapter, answer_budget
from enrich.engines.base import Engine
from enrich.errors import UsageError
from enrich.photos.prompt_size import most_tokens, refuse_long_prompts
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


def start_engine(adapter: Adapter, settings: RunSettings) -> Engine:
    """An engine that serves `adapter`, ready to answer. Loading a full-size model takes a minute.

    Raises:
        UsageError: see `refuse_long_prompts`, `load_vllm_engine` and `load_engine`.
    """
    if adapter.preparation.photos_per_product > 1:
        from enrich.models.checkpoint import load_processor

        processor, most = load_processor(adapter.path), most_tokens(adapter.path)
        refuse_long_prompts(processor, adapter.prompt, answer_budget(adapter, settings), most)
    if choose_engine(settings.engine, settings.device) == "vllm":
        from enrich.engines.vllm_engine import load_vllm_engine

        return load_vllm_engine(adapter, settings)
    from enrich.engines.transformers_engine import load_engine

    return load_engine(adapter, settings)
