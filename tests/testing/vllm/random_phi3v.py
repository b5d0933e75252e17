"""A Phi-3-vision with random weights that stock vLLM can load: published tower width, heads, factors and token ids."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from tests.testing.tiny_phi3v import wrap_tokenizer

# The published factors of a head's 48 frequencies.
SHORT_FACTORS = [1.05] * 3 + [1.1] * 3 + [1.25] * 2 + [1.4, 1.45, 1.55, 1.85, 1.9] + [2.0] * 19 + [2.1] * 2 + [2.2]
SHORT_FACTORS += [2.35] * 4 + [2.4] * 2 + [2.65, 2.7, 2.9, 2.95] + [3.05] * 3
LONG_FACTORS = [1.03, 1.05, 1.05, 1.08, 1.23, 1.23, 1.30, 1.45, 1.60, 1.65, 1.90, 2.86, 3.69, 5.42, 5.49, 5.49]
LONG_FACTORS += [9.09, 11.58, 15.66, 15.77, 15.79, 18.36, 21.99, 23.08, 30.01, 32.35, 32.59, 35.56, 39.95, 53.84]
LONG_FACTORS += [56.20, 57.95, 59.29, 59.77, 59.92, 61.19, 61.96, 62.50, 63.37, 63.48, 63.48, 63.66, 63.85, 64.08]
LONG_FACTORS += [64.76, 64.80, 64.81, 64.81]

# Ids of the published tokenizer.json.
SPECIAL_IDS = {"<|endoftext|>": 32000, "<|assistant|>": 32001, "<|system|>": 32006, "<|end|>": 32007, "<|user|>": 32010}
IMAGE_ID = 32044  # what vLLM puts at image positions

TOWER_LAYERS = 3  # of 24; two of them are computed, as 23 of the original's are
HIDDEN = 288  # three heads of the published width


def write_checkpoint(path: Path, *, num_crops: int = 16, tower_layers: int = TOWER_LAYERS) -> Path:
    """Save model, tokenizer and processor to `path`: 65 M parameters, 0.25 GB in float32."""
    random_model(tower_layers).save_pretrained(path)
    Phi3VProcessor(Phi3VImageProcessor(num_crops=num_crops), byte_tokenizer()).save_pretrained(path)
    # As published. vLLM spells a prompt from its ids and tokenises it again; the space that decoding puts after a
    # special token it removes only for those that the tokenizer's settings list.
    file = path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings |= {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    settings["additional_special_tokens"] = ["<|system|>", "<|end|>", "<|user|>", "<|end|>"]
    file.write_text(json.dumps(settings))
    return path


def random_model(tower_layers: int) -> Phi3VForCausalLM:
    """Weights at which every part shows: logits spread by 5, and attention that prefers some positions by far."""
    config = Phi3VConfig(
        architectures=["Phi3VForCausalLM"],
        vocab_size=32064,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=HIDDEN // 96,
        num_key_value_heads=HIDDEN // 96,
        pad_token_id=32000,
        original_max_position_embeddings=4096,
        rope_scaling={"type": "su", "short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS},
        img_processor={"num_hidden_layers": tower_layers},
        dtype="float32",
    )
    model = Phi3VForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            module = name.removesuffix(".weight").rpartition(".")[2]
            if "norm" in module and name.endswith(".weight"):
                parameter.mul_(0.2).add_(1)
            elif name.endswith(".bias"):
                parameter.mul_(0.1)
            elif name.endswith(".weight") and "embed" not in module:
                gain = {"lm_head": 5.0, "qkv_proj": 1.5}.get(module, 1.0)
                parameter.mul_(gain * parameter[0].numel() ** -0.5)
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The published ids of bytes and special tokens; it has no words."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}, "\u2581": 29871}
    vocab |= {**SPECIAL_IDS, "<|image|>": IMAGE_ID}
    return wrap_tokenizer(Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)))
