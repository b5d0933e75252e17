"""Once with all 24 layers of the published vision tower, in which vLLM runs 23."""

from pathlib import Path

import pytest
import torch

from enrich.models.checkpoint import load_model
from enrich.models.phi3_vision.vision_model import load_processor
from tests.testing.vllm.comparison import PROMPT, TOLERANCE, Engine, difference, ours, photo, theirs
from tests.testing.vllm.random_phi3v import write_checkpoint

pytestmark = pytest.mark.vllm


def test_all_layers(engine: Engine, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "phi3v", tower_layers=24, num_crops=1)
    (answer,) = ours(
        load_model(path, dtype=torch.float32, device="cpu"), load_processor(path)(PROMPT, photo((300, 400)))
    )
    with engine(path, max_model_len=1024) as llm:
        (completion,) = theirs(llm, [{"prompt": PROMPT, "multi_modal_data": {"image": photo((300, 400))}}])
    assert difference(answer, completion) < TOLERANCE
