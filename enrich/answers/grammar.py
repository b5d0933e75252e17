"""The second pass: only tokens that keep the answer well formed and its category in the taxonomy."""

from collections.abc import Callable, Sequence
from typing import Any
from unicodedata import normalize

from transformers import PreTrainedTokenizerBase

from enrich.answers.parse import MAX_TITLE, holds_control_characters
from enrich.answers.token_evidence import AnswerTokens

MAX_TITLE_TOKENS = 40  # the tutorial's longest title has 71 characters, about 25 tokens
MAX_DIGITS = 7


def answer_grammar(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> Callable[[Sequence[int]], list[int]]:
    """A function from the tokens written so far to those that may come next.

    The title is free text without control characters, neither blank nor longer than `parse_answer` takes; everything
    else is spelled out.
    """
    texts = title_words(tokenizer)
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
        return tokens.after_label.get(line, [])

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


def title_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids that a title may be written in, and what they spell: no control characters, no bytes, no special tokens.

    Nor `<`, with which several of them could spell a control token.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return {  # "\u2581" marks a space; bytes could spell what the vocabulary's own words cannot
        i: token.replace("\u2581", " ")
        for token, i in tokenizer.get_vocab().items()
        if i not in special and "<" not in normalize("NFKC", token) and not holds_control_characters(token)
    }


def answer_structure(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> dict[str, Any]:
    """The same answers, token by token, for vLLM: a structural tag of xgrammar.

    A grammar of characters would leave the tokens to the model, and a label spelled in others than the usual ones has
    another probability. Only the title's bound in characters cannot be said here: its tokens are bounded.
    """
    words = title_words(tokenizer)
    blank = [i for i, text in words.items() if not text.strip()]
    others = [i for i in range(len(tokenizer)) if i not in words]
    visible = {"type": "exclude_token", "exclude_tokens": [*others, *blank]}

    def more(least: int) -> dict[str, Any]:
        return {"type": "any_tokens", "exclude_tokens": others, "max_tokens": MAX_TITLE_TOKENS - least}

    titles = [_sequence([visible, more(1)])]
    if blank:
        titles.append(_sequence([_either(list(map(_token, blank))), visible, more(2)]))
    digit = _either([_token(i) for i in tokens.digits])
    price = _sequence(
        [
            *map(_token, tokens.price_prefix),
            _either([_token(i) for i, digit in tokens.digits.items() if digit != "0"]),
            {"type": "repeat", "content": digit, "min": 0, "max": MAX_DIGITS - 1},
        ]
    )
    answer = _sequence(
        [
            *map(_token, tokens.title_prefix),
            _either(titles),
            _token(tokens.newline),
            _either([_sequence(list(map(_token, label))) for label in tokens.labels]),
            _either([price, _sequence(list(map(_token, tokens.unknown_price)))]),
        ]
    )
    return {"type": "structural_tag", "format": answer}


def _token(token: int) -> dict[str, Any]:
    return {"type": "token", "token": token}


def _sequence(elements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "sequence", "elements": elements}


def _either(elements: list[dict[str, Any]]) -> dict[str, Any]:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": elements}
