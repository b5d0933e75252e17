"""A Phi-3-vision of some 50,000 random parameters with a real tokenizer and processor, for tests of any part."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor

# The original's specials; rstrip swallows the white space after the token.
SPECIALS = {"<|endoftext|>": False, "<|assistant|>": True, "<|system|>": False, "<|end|>": False, "<|user|>": False}


@dataclass(frozen=True)
class Tiny:
    path: Path
    model: Phi3VForCausalLM
    processor: Phi3VProcessor


def tiny_phi3v(tmp_path: Path, *, num_crops: int = 4, seed: int = 0) -> Tiny:
    """Build a model and its processor and save both to `tmp_path / "tiny"`, tensors under the original's names.

    Images take 28 pixels a crop and 4 tokens (side 2): 4 crops make (4 + 1) * 4 + 1 + 3 * 2 = 27 tokens.
    """
    path = tmp_path / "tiny"
    processor = Phi3VProcessor(
        Phi3VImageProcessor(num_crops=num_crops, image_size=28, patch_size=7), byte_level_tokenizer()
    )
    model = random_model(tiny_config(len(processor.tokenizer)), seed)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return Tiny(path, model, processor)


def tiny_config(vocab_size: int = 300, **overrides: object) -> Phi3VConfig:
    """4 heads of 8, 2 layers, LongRoPE switching at 4096; a tower of 3 layers on 28 pixels."""
    settings: dict = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]},
        "img_processor": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
    }
    return Phi3VConfig(**{**settings, **overrides})


def random_model(config: Phi3VConfig, seed: int = 0) -> Phi3VForCausalLM:
    """Random weights large enough (0.2) that every input changes the logits visibly."""
    torch.manual_seed(seed)
    model = Phi3VForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    return model.eval()


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """The original's kind of tokenizer (SentencePiece-like BPE with byte fallback) whose text tokens are bytes."""
    pieces = ["<unk>", "<s>", "</s>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return wrap_tokenizer(Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)))


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Normaliser, decoder, specials and `<s>` template as in the original's tokenizer.json."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, rstrip=rstrip, normalized=False) for text, rstrip in SPECIALS.items()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image in which no two pixels can be mistaken for each other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pattern_image(width: int, height: int) -> Image.Image:
    """value[y, x, c] = (3x + 5y + 40c) mod 256: the image of the golden vectors."""
    y, x, channel = np.ogrid[:height, :width, :3]
    return Image.fromarray(((3 * x + 5 * y + 40 * channel) % 256).astype(np.uint8))


def image_inputs(*sizes: tuple[int, int], num_crops: int = 4) -> dict[str, Any]:
    """pixel_values, image_sizes and the token counts of pattern images."""
    processor = Phi3VImageProcessor(num_crops=num_crops, image_size=28, patch_size=7)
    return dict(processor([pattern_image(*size) for size in sizes]))


def prompt_inputs(*rows: tuple[list[int], tuple[int, int], list[int]]) -> dict[str, torch.Tensor]:
    """Rows of text, one image, text; padded on the left with id 3."""
    images = image_inputs(*(size for _, size, _ in rows))
    counts = images.pop("num_img_tokens")
    ids = [[*before, *[-1] * count, *after] for (before, _, after), count in zip(rows, counts, strict=True)]
    longest = max(len(row) for row in ids)
    return {
        "input_ids": torch.tensor([[3] * (longest - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids]),
        **images,
    }
