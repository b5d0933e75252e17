"""An adapter directory as fine-tuning leaves it, with random weights."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from enrich.answers.calibration import CALIBRATION_FILE, Calibration
from enrich.answers.prompt import make_prompt
from enrich.models.checkpoint import load_model, load_processor
from enrich.train.export import write_adapter
from enrich.vocabulary import RECORD_FILE

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def write_random_adapter(path: Path, base: Path, *, num_crops: int, idle: bool = False, **shown: int) -> Path:
    """An adapter of the checkpoint `base` that changes every linear of its language model visibly.

    Where it is `idle` it changes none of them: the tiny base's own answers parse. `shown`: photos_per_product and
    more_crops.
    """
    torch.manual_seed(4)
    model = load_model(base, dtype=torch.float32, device="cpu")
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights=idle))
    processor = load_processor(base, num_crops=num_crops, **shown)
    write_adapter(path, adapted, processor, make_prompt(("BAGS", "HATS"), "EUR"), base)
    (path / CALIBRATION_FILE).write_text(Calibration.uncalibrated().model_dump_json())
    (path / RECORD_FILE).write_text("{}")
    return path
