"""A checkpoint of each family with random weights, of the published model's sizes or tiny.

Sizes are those of the config.json of the models that `Size.published` names, as transformers and vLLM read them; where
a value is the default of the family's configuration in transformers, it is left out. Tokenizers are the small ones of
the tests, so text takes more tokens than with the published vocabularies; embeddings and output layers have the
published number of rows, on which the time of the output layer depends.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import made_up


@dataclass(frozen=True)
class Size:
    """A published model of a family: what its configuration has that differs from the tiny member's.

    images: settings of the image processor; layers and sizes of `text` and `vision` are whole configurations.
    more: of the whole model's configuration; processor: of processor_config.json.
    """

    published: str
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)


PHI = "phi3_v"
# Qwen3-VL and Gemma 4 as in their config.json; Gemma's without the audio tower (0.3 B), which no photo goes through.
SIZES = {
    PHI: Size("microsoft/Phi-3.5-vision-instruct"),  # `made_up.FULL`
    "qwen3_vl": Size(
        "Qwen/Qwen3-VL-4B-Instruct",
        {
            "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
        },
        {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"tie_word_embeddings": True},
    ),
    "gemma4": Size(
        "google/gemma-4-E4B-it",
        {
            "vocab_size": 262_144, "vocab_size_per_layer_input": 262_144, "hidden_size": 2560,
            "intermediate_size": 10_240, "num_hidden_layers": 42, "num_attention_heads": 8, "num_key_value_heads": 2,
            "head_dim": 256, "global_head_dim": 512, "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 18,
            "sliding_window": 512, "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 7,
            "final_logit_softcapping": 30.0, "max_position_embeddings": 131_072,
        },
        {"default_output_length": 280, "use_clipped_linears": True},
        {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280},
        processor={"image_seq_length": 280},
    ),
    "smolvlm": Size(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        {
            "model_type": "llama", "vocab_size": 49_280, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64,
            "max_position_embeddings": 8192, "pad_token_id": 0,
        },
        {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 384, "patch_size": 14,
        },
        {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
        {"scale_factor": 3, "tie_word_embeddings": False},
        {"image_seq_len": 81},
    ),
}  # fmt: skip


def write_member(name: str, path: Path, tokens: int, *, tiny: bool) -> None:
    """Write the member of family `name`, unless it is there; by its files a photo takes about `tokens` tokens.

    In a process of its own: it uses the GPU where there is one.
    """
    if name == PHI and not path.exists():
        from enrich.models.checkpoint import load_processor
        from enrich.settings.models import TINY_MODEL_PATH

        made_up.make_checkpoint(path, made_up.TINY if tiny else made_up.FULL)
        # Its own tokenizer has labels of answers as control tokens, which no product may spell.
        load_processor(TINY_MODEL_PATH).tokenizer.save_pretrained(path)
    elif not path.exists():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_write, name, path, tokens, tiny).result()


def _write(name: str, path: Path, tokens: int, tiny: bool) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from enrich.models.checkpoint import load_processor
    from tests.testing import tiny_families

    if tiny:
        tiny_families.write_member(name, path)
    else:
        maker = full_maker(name)
        tokenizer = maker.tokenizer()
        config = maker.config(len(tokenizer), tokenizer.convert_tokens_to_ids)
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        tiny_families.write_files(maker, tokenizer, model, path)
    load_processor(path, photo_tokens=tokens).save(path)


def full_maker(name: str) -> Any:
    """The tests' maker of a tiny member, for one of the published size."""
    from tests.testing.tiny_families import MAKERS

    size, maker = SIZES[name], MAKERS[name]

    def config(vocabulary: int, id_of: Any) -> Any:
        small = maker.config(vocabulary, id_of)
        ids = {key: value for key, value in small.to_dict().items() if key.endswith(("_token_id", "_token_index"))}
        text_ids = {
            key: getattr(small.text_config, key, None) for key in ("pad_token_id", "bos_token_id", "eos_token_id")
        }
        return type(small)(text_config={**text_ids, **size.text}, vision_config=dict(size.vision), **ids, **size.more)

    images = type(maker.images)(**size.images)
    return replace(maker, config=config, images=images, processor={**maker.processor, **size.processor})
