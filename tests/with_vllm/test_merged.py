"""What `enrich merge` writes is a checkpoint for stock vLLM, which answers as the adapter does here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from enrich.answers.prompt import Prompt
from enrich.models.adapted import load_merged
from enrich.models.phi3_vision import Phi3VForCausalLM
from enrich.models.phi3_vision.processing import render_turn
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.pipeline.merging import merge
from enrich.settings.training import MergeSettings
from tests.testing.random_adapter import write_random_adapter
from tests.testing.vllm.comparison import TOLERANCE, Engine, difference, ours, photo, seen_by_vllm, theirs
from tests.testing.vllm.random_phi3v import SPECIAL_IDS

pytestmark = pytest.mark.vllm

SIZES = ((300, 400), (640, 360))


def test_a_merged_checkpoint(engine: Engine, checkpoint: Path, model: Phi3VForCausalLM, tmp_path: Path) -> None:
    adapter = write_random_adapter(tmp_path / "adapter", checkpoint, num_crops=1)
    done = merge(str(adapter), str(tmp_path / "merged"), MergeSettings(dtype="float32", max_new_tokens=8))
    assert done.check.same_answers == done.check.rows
    prompt = render_turn(Prompt.read(tmp_path / "merged" / "prompt.json").instruction)
    merged = load_merged(checkpoint, adapter, dtype=torch.float32, device="cpu")
    processor = load_processor(adapter)
    inputs = [processor(prompt, photo(size)) for size in SIZES]
    requests = [{"prompt": prompt, "multi_modal_data": {"image": photo(size)}} for size in SIZES]
    # Nothing but the directory is named: num_crops and the stop tokens are in it.
    with engine(tmp_path / "merged", max_model_len=4096) as llm:
        completions = theirs(llm, requests)
        endings = [first_token(llm, prompt, token) for token in ("<|end|>", "<|endoftext|>", "<|assistant|>")]
    assert endings == ["stop"] * 3
    for own, completion in zip(inputs, completions, strict=True):
        assert list(completion.prompt_token_ids) == seen_by_vllm(own["input_ids"][0])
        (answer,) = ours(merged, own)
        assert difference(answer, completion) < TOLERANCE
        assert ours(model, own)[0].token_ids != answer.token_ids


def first_token(llm: Any, prompt: str, token: str) -> str:
    """Why vLLM stops after a first token that is made certain to be this one."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=4, logit_bias={SPECIAL_IDS[token]: 100.0})
    (completion,) = llm.generate([prompt.replace("<|image_1|>\n", "")], sampling, use_tqdm=False)
    (output,) = completion.outputs
    return output.finish_reason
