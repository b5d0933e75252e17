"""The generic families in vLLM's own model classes: greedy answers and log-probabilities are those of transformers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from enrich.engines.vllm_render import sampling
from enrich.models.generation import generate_answers
from tests.testing.tiny_families import MAKERS, Member, open_member, write_member

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

NEW_TOKENS = 12
TOLERANCE = 1e-4  # of log-probabilities in float32; the largest difference seen was 6e-6
PRODUCTS = [
    [(100, 133)], [(300, 200), (50, 50)], [(200, 90)], [(64, 64), (100, 133), (33, 90)], [(90, 90)], [(40, 300)],
    [(133, 100)], [(80, 70), (70, 80)],
]  # fmt: skip


@contextmanager
def serving(member: Member) -> Iterator[Any]:
    from vllm import EngineArgs
    from vllm.distributed import cleanup_dist_env_and_memory

    from enrich.engines.vllm_compat import LLMEngine

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(member.path),
            dtype="float32",
            max_model_len=1024,
            max_num_batched_tokens=2048,
            max_num_seqs=8,
            enforce_eager=True,
            limit_mm_per_prompt={"image": 3, "video": 0, "audio": 0},
            mm_processor_kwargs=member.how.vllm_photo_arguments(member.processor.preparation),
            **member.how.vllm_arguments(torch.device("cpu"), torch.float32),
        )
    )
    try:
        yield engine
    finally:
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()


def answers(engine: Any, prompts: list[Any]) -> list[Any]:
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, sampling([], NEW_TOKENS))
    found: dict[int, Any] = {}
    while engine.has_unfinished_requests():
        found |= {int(output.request_id.split("-")[0]): output for output in engine.step() if output.finished}
    return [found[number].outputs[0] for number in range(len(prompts))]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_answers_are_those_of_transformers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "0" if "MULTI" in name else "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    member = open_member(write_member(kind, tmp_path / kind))
    pages = [
        [member.page(*size, seed=10 * number + at) for at, size in enumerate(sizes)]
        for number, sizes in enumerate(PRODUCTS)
    ]
    render = member.processor.vllm_input("What is it?", torch.float32)
    prompts = [render(row, [f"{number} {at}" for at in range(len(row))]) for number, row in enumerate(pages)]
    with serving(member) as engine:
        theirs = answers(engine, prompts)
    inputs = member.processor.inputs("What is it?", pages)
    ours = generate_answers(member.model, inputs, max_new_tokens=NEW_TOKENS, stop_ids=[], top_k=8)
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.token_ids) == list(other.token_ids)
        found = [step[token].logprob for step, token in zip(other.logprobs, other.token_ids, strict=True)]
        assert one.logprobs.tolist() == pytest.approx(found, abs=TOLERANCE)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_pixels_reach_the_engine_as_bytes_or_in_the_models_type(kind: str, tmp_path: Path) -> None:
    member = open_member(write_member(kind, tmp_path / kind))
    rendered = member.processor.vllm_input("What is it?", torch.bfloat16)([member.page(100, 133)], ["photo"])
    [item] = rendered["mm_kwargs"]["image"]
    assert item["pixel_values"].data.dtype == (torch.uint8 if kind == "qwen3_vl" else torch.bfloat16)
