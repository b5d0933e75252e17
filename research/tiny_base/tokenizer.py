"""The tiny base's tokenizer, processor and configuration: every part of Phi-3-vision's, small."""

import json
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from enrich.answers.prompt import render_answer
from enrich.models.phi3_vision import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor
from enrich.models.phi3_vision.processing import END, render_turn
from research.tiny_base.retailers import base_prompt
from research.tiny_base.words import text, words
from sample.dialects import BASE
from sample.products import sample_product

NUM_CROPS = 4  # what the processor is saved with, and most photos are learned at
IMAGE_SIZE = 112
ENGLISH, JAPANESE = 1744, 700  # tokens learned for each; the weights stay below 16 MiB
SPECIALS = [  # the original's 45 added tokens, in its order
    "<|endoftext|>", "<|assistant|>", *(f"<|placeholder{i}|>" for i in range(1, 5)), "<|system|>", "<|end|>",
    *(f"<|placeholder{i}|>" for i in (5, 6)), "<|user|>", *(f"<|placeholder{i}|>" for i in range(7, 40)), "<|image|>",
]  # fmt: skip
RSTRIP = {"<|assistant|>"}  # the newline after it vanishes, as in the original
KANA = [*map(chr, range(0x3041, 0x3097)), *map(chr, range(0x30A1, 0x30FD)), *"、。・「」（）：／"]  # noqa: RUF001

Learned = tuple[list[str], list[list[str]]]  # tokens, the more frequent ones first, and the merges that make them


def make_processor() -> Phi3VProcessor:
    """A small tokenizer built like Llama's (word-start marker, byte fallback, single digits) with Phi-3's specials."""
    marked = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = make_tokenizer(marked, render_turn(base_prompt().instruction))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True, rstrip=t in RSTRIP) for t in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    images = Phi3VImageProcessor(num_crops=NUM_CROPS, image_size=IMAGE_SIZE, patch_size=14)
    return Phi3VProcessor(images, fast)


def make_tokenizer(marked: normalizers.Normalizer, turn: str) -> Tokenizer:
    """English, Japanese and every byte; `turn` is what a prompt says.

    The languages are learned apart, so that neither takes the other's tokens. A kanji that no word of `words/ja.txt`
    holds is spelled in bytes.
    """
    english = learn(english_texts(turn), ENGLISH, [*map(chr, range(33, 127)), "▁"], marked)
    japanese = learn(words("ja"), JAPANESE, KANA)
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in english[0] + japanese[0]:
        if token != "\n":  # a newline is its byte, as in Llama's
            tokens.setdefault(token, len(tokens))
    merges = [(left, right) for left, right in english[1] + japanese[1]]
    tokenizer = Tokenizer(models.BPE(tokens, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = marked
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def make_config(tokenizer: PreTrainedTokenizerFast) -> Phi3VConfig:
    """Every part of Phi-3-vision, small: CLIP tower 6 x 192, language model 5 x 256."""
    half = 32  # half the head dimension
    return Phi3VConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={
            "type": "su",
            "short_factor": [round(1.0 + i / half, 3) for i in range(half)],
            "long_factor": [round(1.0 + 63 * (i / (half - 1)) ** 2, 3) for i in range(half)],
        },
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        img_processor={
            "image_dim_out": 192,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
        },
    )


def learn(
    texts: Iterable[str], size: int, alphabet: Sequence[str], normalizer: normalizers.Normalizer | None = None
) -> Learned:
    """At most `size` tokens of `texts`. Words, digits, Latin words and newlines are apart while learning, so that no
    merge crosses them; in use nothing splits."""
    learner = Tokenizer(models.BPE())
    if normalizer:
        learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"[\n\d:.,]"), "isolated"),
        ]
    )
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    return sorted(learned["vocab"], key=learned["vocab"].get), learned["merges"]


def english_texts(turn: str) -> list[str]:
    """The BASE retailer's answers, a prompt's `turn`, and words that many retailers use."""
    prompt = base_prompt()
    answers = [
        render_answer(prompt, product.title, product.category, product.price)
        for product in (sample_product(99, i, BASE) for i in range(4000))
    ]
    retail, other = text("en"), text("en_other")
    each = [retail.upper()] * 40 + [retail.title()] * 40 + [retail] * 10
    return answers + [turn] * 50 + each + [other, other.upper(), other.title()] * 5
