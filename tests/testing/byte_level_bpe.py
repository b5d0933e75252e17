"""A tokenizer of the other kind: byte-level BPE, as GPT-2's and Qwen's, whose digits share tokens."""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.testing.tiny_phi3v import SPECIALS

# Frequent enough for merges: words, parts of characters, digits in twos and threes.
_TEXTS = [
    *[f"Product: Blue shirt\nCategory: HATS\nFull Price: {number}" for number in range(100, 1000)],
    *["製品: 青いシャツ（日本語）\nカテゴリ: 帽子 🙂 😀\n定価: 不明"] * 50,
    *["Рубашка می\u200cدوزیم"] * 20,
]


@cache
def byte_level_bpe(groups: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer. `groups`: digits are cut into threes from the left before they merge, as Llama 3 does."""
    tokenizer = Tokenizer(models.BPE())
    digits = r"\p{N}{1,3}" if groups else r" ?\p{N}+"
    pattern = digits + r"| ?\p{L}+|[\r\n]+| ?[^\s\p{L}\p{N}]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
