"""The files of a tiny SmolVLM2 but its weights: tokenizer, configuration and settings of photos."""

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, normalizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from research.tiny_base.retailers import base_prompt
from research.tiny_base.tokenizer import make_tokenizer

TILE, PATCH, SCALE = 112, 14, 2  # pixels, pixels, patches along a side of a token
TILE_TOKENS = (TILE // PATCH // SCALE) ** 2  # 16
SIDE_TILES = 2  # of a photo's longer side: 4 tiles and the whole, as 4 crops and the whole in the tiny base
END = "<end_of_utterance>"
# By the names that SmolVLMProcessor knows them by; the others stand in its texts.
NAMED = {
    "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
    "video_token": "<video>",
}  # fmt: skip
PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", END, *NAMED.values(), *PLACES]


def write_files(out: Path) -> None:
    """Everything that `enrich` reads of a checkpoint but model.safetensors."""
    tokenizer = make_smolvlm_tokenizer()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    make_config(tokenizer).save_pretrained(out)
    SmolVLMImageProcessorPil(
        size={"longest_edge": SIDE_TILES * TILE}, max_image_size={"longest_edge": TILE}
    ).save_pretrained(out)
    (out / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": TILE_TOKENS}, indent=2) + "\n"
    )
    GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(END)).save_pretrained(out)


def make_smolvlm_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny base's vocabulary under SmolVLM2's special tokens and chat template; a text gets no space before it."""
    marked = normalizers.Replace(" ", "▁")
    tokenizer = make_tokenizer(marked, f"User:\n{base_prompt().instruction}\nAssistant:")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token="<|im_end|>",
        unk_token="<unk>",
        extra_special_tokens=NAMED,
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=DEFAULT_CHAT_TEMPLATE,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    """Every part of SmolVLM2, as large as the tiny base's: SigLIP tower 6 x 192, language model 5 x 256."""
    id_of = tokenizer.convert_tokens_to_ids
    pad = id_of("<|im_end|>")
    return SmolVLMConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 640,
            "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "pad_token_id": pad,
            "bos_token_id": id_of("<|im_start|>"), "eos_token_id": id_of(END),
        },
        vision_config={
            "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6,
            "image_size": TILE, "patch_size": PATCH,
        },
        image_token_id=id_of("<image>"),
        scale_factor=SCALE,
        pad_token_id=pad,
        tie_word_embeddings=False,
    )  # fmt: skip
