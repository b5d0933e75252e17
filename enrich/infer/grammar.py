"""The second pass: only tokens that keep the answer well formed and its category in the taxonomy."""

import json
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from enrich.infer.evidence import AnswerTokens
from enrich.parse import MAX_TITLE, holds_control_characters
from enrich.prompt import UNKNOWN_PRICE

MAX_TITLE_TOKENS = 40  # the tutorial's longest title has 71 characters, about 25 tokens
MAX_DIGITS = 7
TITLE_CHARACTERS = 100  # where characters are counted, not tokens: 40 tokens of 2.5 each


def answer_grammar(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> Callable[[Sequence[int]], list[int]]:
    """A function from the tokens written so far to those that may come next.

    The title is free text without control characters, neither blank nor longer than `parse_answer` takes; everything
    else is spelled out.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    vocabulary = tokenizer.get_vocab()
    texts = {  # "\u2581" marks a space; bytes could spell what the vocabulary's own words cannot
        i: token.replace("\u2581", " ")
        for token, i in vocabulary.items()
        if i not in special and not token.startswith("<0x") and not holds_control_characters(token)
    }
    words = list(texts)
    visible = [i for i, text in texts.items() if text.strip()]
    longest = max(map(len, texts.values()))

    def after_title(line: tuple[int, ...]) -> list[int]:
        prefix = tokens.title_prefix
        if len(line) < len(prefix):
            return [prefix[len(line)]]
        title = line[len(prefix) :]
        if not title:
            return words
        text = "".join(texts[token] for token in title)
        if not text.strip():
            return visible
        if len(title) >= MAX_TITLE_TOKENS or len(text) + longest > MAX_TITLE:
            return [tokens.newline]
        return [*words, tokens.newline]

    def after_category(line: tuple[int, ...]) -> list[int]:
        return sorted({label[len(line)] for label in tokens.labels if label[: len(line)] == line})

    def after_price(line: tuple[int, ...]) -> list[int]:
        prefix, unknown = tokens.price_prefix, tokens.unknown_price
        allowed = {whole[len(line)] for whole in (prefix, unknown) if whole[: len(line)] == line and whole != line}
        if line == unknown:
            allowed.add(tokens.stop)
        if line[: len(prefix)] == prefix and all(token in tokens.digits for token in line[len(prefix) :]):
            digits = len(line) - len(prefix)
            if digits < MAX_DIGITS:
                allowed.update(i for i, digit in tokens.digits.items() if digits or digit != "0")
            if digits:
                allowed.add(tokens.stop)
        return sorted(allowed)

    def allowed(written: Sequence[int]) -> list[int]:
        lines = tokens.split(written)
        after = (after_title, after_category, after_price)[min(len(lines), 3) - 1]
        return after(lines[-1])

    return allowed


def answer_ebnf(categories: Sequence[str]) -> str:
    """The same answers for vLLM's structured outputs, as a grammar of characters.

    It differs where only tokens can tell: a title is bounded by its characters, a label may be written in other tokens
    than the usual ones, and letters that no word of the vocabulary has may be spelled in bytes.
    """
    written = f"[^{_ranges(holds_control_characters)}]"
    visible = f"[^{_ranges(lambda character: character.isspace() or holds_control_characters(character))}]"
    rest = f"{visible} {written}{{0,{TITLE_CHARACTERS - 1}}}"
    labels = " | ".join(json.dumps(category, ensure_ascii=False) for category in categories)
    return "\n".join(
        [
            # The tokenizer puts a space before the first word of a text, and takes it away again where it decodes.
            r'root ::= " "? "Product:" title "\nCategory: " label "\nFull Price: " price',
            f'title ::= {rest} | " " {rest}',  # xgrammar 0.2.8 takes `" "?` before such a class for no space at all
            f"label ::= {labels}",
            f'price ::= [1-9] [0-9]{{0,{MAX_DIGITS - 1}}} | "{UNKNOWN_PRICE}"',
        ]
    )


def _ranges(chosen: Callable[[str], bool]) -> str:
    """The chosen characters as a grammar writes ranges of them. Surrogates are none: UTF-8 cannot spell them."""
    start, found = None, ""
    for point in range(0x110001):
        inside = point < 0x110000 and not 0xD800 <= point < 0xE000 and chosen(chr(point))
        if inside and start is None:
            start = point
        elif not inside and start is not None:
            found += f"\\U{start:08x}-\\U{point - 1:08x}"
            start = None
    return found
