"""Random members of about a million parameters of each generic family, saved as a complete checkpoint.

Everything comes from the families' own classes in transformers: configuration, weights, image processor. The tokenizers
are small ones with the specials that each family's processor asks for, the chat templates say what the published ones
say about a single turn of the user. Photos cost a tenth of what they cost at full size.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma4.configuration_gemma4 import Gemma4Config
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE as SMOLVLM_TEMPLATE

from enrich.models.auto.model import AutoModel
from enrich.models.auto.processor import PhotoProcessor
from enrich.models.base import Family
from enrich.models.registry import family_of
from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.byte_level_bpe import byte_level_bpe
from tests.testing.tiny_phi3v import noise_image

QWEN3_VL_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Without thinking, the model's turn begins with an empty channel of thoughts, which a finished conversation has not.
GEMMA4_TEMPLATE = """\
{{ bos_token }}
{%- if enable_thinking is defined and enable_thinking -%}
    {{- '<|turn>system\\n<|think|><turn|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{- item['text'] | trim -}}
            {%- elif item['type'] == 'image' -%}
                {{- '\\n\\n<|image|>\\n\\n' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
    {%- if not enable_thinking | default(false) -%}
        {{- '<|channel>thought\\n<channel|>' -}}
    {%- endif -%}
{%- endif -%}
"""


@dataclass(frozen=True)
class Maker:
    """How a tiny member is made: `config` and `images` from the ids of its tokens."""

    tokenizer: Callable[[], PreTrainedTokenizerBase]
    config: Callable[[int, Callable[[str], int]], Any]
    images: Any
    template: str
    processor: Mapping[str, Any]  # processor_config.json, except the image processor
    eos: str


@dataclass(frozen=True)
class Member:
    path: Path
    family: Family
    how: AutoModel
    processor: PhotoProcessor
    model: Any

    def page(self, width: int, height: int, seed: int = 0) -> np.ndarray:
        """A photo of noise as its page."""
        photo, prepared = noise_image(width, height, seed), self.processor.preparation
        return self.family.layout.page(photo, prepared.num_crops, prepared.image_size)


def open_member(path: Path) -> Member:
    """The checkpoint in `path`, as the rest of the package opens it."""
    family = family_of(path)
    how: Any = family.load()
    model = how.load_model(path, dtype=torch.float32, device="cpu")
    return Member(path, family, how, how.load_processor(path), model)


def write_member(family: str, path: Path, *, seed: int = 0, vocabulary: float = 0.05, **text: Any) -> Path:
    """Write a random member of `family` to `path`.

    Args:
        vocabulary: size of the weights of embeddings and output layer. With 0.2 the model can be sure of a token, but
            sooner repeats one.
        text: for the configuration of its language model.
    """
    maker = MAKERS[family]
    tokenizer = maker.tokenizer()
    config = maker.config(len(tokenizer), tokenizer.convert_tokens_to_ids)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    if hasattr(config.vision_config, "out_hidden_size"):
        config.vision_config.out_hidden_size = config.text_config.hidden_size
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:  # large enough that every input changes the logits visibly
                parameter.normal_(std=vocabulary if "lm_head" in name or "embed_tokens" in name else 0.05)
    return write_files(maker, tokenizer, model, path)


def write_files(maker: Maker, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: Path) -> Path:
    """Write a checkpoint of this model and its other files."""
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(maker.eos))
    model.save_pretrained(path)
    write_processor(maker, tokenizer, path)
    return path


def write_processor(maker: Maker, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write what turns text and photos into a model's inputs."""
    tokenizer.chat_template = maker.template
    tokenizer.save_pretrained(path)
    maker.images.save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps(maker.processor))


def _byte_level(specials: Mapping[str, str], eos: str) -> PreTrainedTokenizerBase:
    return _with_specials(Tokenizer.from_str(byte_level_bpe().backend_tokenizer.to_str()), specials, eos)


def _sentence_pieces(specials: Mapping[str, str], eos: str) -> PreTrainedTokenizerBase:
    """The vocabulary of the tiny Phi-3-vision; as in Gemma's tokenizer, a text gets no space before it."""
    tokenizer = Tokenizer.from_file(str(TINY_MODEL_PATH / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_specials(tokenizer, specials, eos)


def _with_specials(tokenizer: Tokenizer, specials: Mapping[str, str], eos: str) -> PreTrainedTokenizerBase:
    """`specials`: tokens by the names that the family's processor knows them by."""
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in (eos, *specials.values())])
    named = {name: text for name, text in specials.items() if name.endswith("_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, padding_side="left", extra_special_tokens=named,
        **({} if "pad_token" in named else {"pad_token": eos}),
    )  # fmt: skip


def _smolvlm_tokenizer() -> PreTrainedTokenizerBase:
    cells = {f"cell {row} {column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
    specials = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
        "start": "<|im_start|>", "video_token": "<video>", **cells,
    }  # fmt: skip
    return _byte_level(specials, "<end_of_utterance>")


def _qwen3_vl_tokenizer() -> PreTrainedTokenizerBase:
    specials = {
        "start": "<|im_start|>", "end": "<|im_end|>", "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>", "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    }  # fmt: skip
    return _byte_level(specials, "<|im_end|>")


def _gemma4_tokenizer() -> PreTrainedTokenizerBase:
    specials = {
        "pad_token": "<unk>", "bos_token": "<bos>", "turn": "<|turn>", "end": "<turn|>", "boi_token": "<|image>",
        "eoi_token": "<image|>", "image_token": "<|image|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
        "audio_token": "<|audio|>", "video_token": "<|video|>", "channel": "<|channel>", "end of it": "<channel|>",
        "think": "<|think|>",
    }  # fmt: skip
    return _sentence_pieces(specials, "<eos>")


_TEXT: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
}  # fmt: skip
_VISION: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96}


def _smolvlm_config(vocabulary: int, id_of: Callable[[str], int]) -> SmolVLMConfig:
    """4 x 4 patches of 8 pixels a tile, 4 of them a token: 4 tokens."""
    return SmolVLMConfig(
        text_config={**_TEXT, "model_type": "llama", "vocab_size": vocabulary, "pad_token_id": 0},
        vision_config={**_VISION, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        image_token_id=id_of("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )


def _qwen3_vl_config(vocabulary: int, id_of: Callable[[str], int]) -> Qwen3VLConfig:
    """Patches of 16 pixels as in the original, 4 a token; features of one inner layer are added to the first decoder
    layer's output (DeepStack); three kinds of positions take 6, 5 and 5 frequencies (M-RoPE)."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config={**_TEXT, "vocab_size": vocabulary, "rope_parameters": rope},
        vision_config={
            **_VISION, "depth": 2, "num_heads": 4, "out_hidden_size": 96, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
    )  # fmt: skip


def _gemma4_config(vocabulary: int, id_of: Callable[[str], int]) -> Gemma4Config:
    """As E2B: embeddings for each layer, layers that share keys and values, sliding windows, capped logits.

    Image positions have the embeddings of padding; vLLM takes it for granted that its id is 0.
    """
    return Gemma4Config(
        text_config={
            **_TEXT, "vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary, "global_head_dim": 64,
            "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 1, "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"], "final_logit_softcapping": 30.0,
            "pad_token_id": 0, "bos_token_id": id_of("<bos>"), "eos_token_id": id_of("<eos>"),
        },
        vision_config={
            **_VISION, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12,
            "position_embedding_size": 512, "patch_size": 4, "pooling_kernel_size": 3, "default_output_length": 70,
        },
        image_token_id=id_of("<|image|>"),
        video_token_id=id_of("<|video|>"),
        audio_token_id=id_of("<|audio|>"),
        boi_token_id=id_of("<|image>"),
        eoi_token_id=id_of("<image|>"),
        boa_token_id=id_of("<|audio>"),
        eoa_token_index=id_of("<audio|>"),
    )  # fmt: skip


MAKERS = {
    "smolvlm": Maker(
        _smolvlm_tokenizer, _smolvlm_config,
        SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        SMOLVLM_TEMPLATE, {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}, "<end_of_utterance>",
    ),
    "qwen3_vl": Maker(
        _qwen3_vl_tokenizer, _qwen3_vl_config,
        Qwen2VLImageProcessorPil(
            patch_size=16, size={"shortest_edge": 12 * 1024, "longest_edge": 24 * 1024}, image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        QWEN3_VL_TEMPLATE, {"processor_class": "Qwen3VLProcessor"}, "<|im_end|>",
    ),
    "gemma4": Maker(
        _gemma4_tokenizer, _gemma4_config, Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70),
        GEMMA4_TEMPLATE, {"processor_class": "Gemma4Processor", "image_seq_length": 70}, "<turn|>",
    ),
}  # fmt: skip
