"""The grammar of the second pass: well-formed answers whose category is in the taxonomy.

It is defined once, as a structural tag of xgrammar, which vLLM takes directly. transformers calls `answer_grammar`,
which reads the same tag, so that installations without vLLM need no xgrammar (and triton with it).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any
from unicodedata import normalize

from transformers import PreTrainedTokenizerBase

from enrich.answers.parse import MAX_TITLE, holds_control_characters
from enrich.answers.token_evidence import AnswerTokens

MAX_TITLE_TOKENS = 40  # the tutorial's longest title has 71 characters, about 25 tokens
MAX_DIGITS = 7

Form = dict[str, Any]


def answer_structure(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> Form:
    """The answers that may be written, token by token: a line for each field.

    A grammar over characters would leave the choice of tokens to the model, and a label spelled with unusual tokens has
    another probability. A text is not blank, without control characters, and of bounded length.
    """
    texts = title_words(tokenizer)
    blank = [i for i, text in texts.items() if not text.strip()]
    others = tuple(i for i in range(len(tokenizer)) if i not in texts)
    # xgrammar 0.2.8 permits every token behind a "repeat" of "exclude_token"; "any_tokens" means the same.
    words = [
        *([_repeated(_either(list(map(_token, blank))), 1)] if blank else []),
        {"type": "exclude_token", "exclude_tokens": (*others, *blank)},
        {"type": "any_tokens", "exclude_tokens": others, "max_tokens": MAX_TITLE_TOKENS - 1},
    ]
    number = [
        _either([_token(i) for i, digit in tokens.digits.items() if digit != "0"]),
        _repeated(_either(list(map(_token, tokens.digits))), MAX_DIGITS - 1),
    ]

    def choice(after: Mapping[tuple[int, ...], list[int]], line: tuple[int, ...] = ()) -> Form:
        """The rest of a choice's line, its newline included, as a tree: thousands are looked up, not searched."""
        forms = [
            _token(i) if i == tokens.newline else _sequence([_token(i), choice(after, (*line, i))]) for i in after[line]
        ]
        return _either(forms)

    elements: list[Form] = []
    for field in tokens.prompt.fields:
        prefix = list(map(_token, tokens.prefixes[field.name]))
        unknown = tokens.unknown.get(field.name)
        match field.kind:
            case "choice":
                elements.append(choice(tokens.choices[field.name].after))
                continue
            case "text":
                elements += [*prefix, *words]
            case "number" if unknown:
                elements.append(_either([_sequence([*prefix, *number]), _sequence(list(map(_token, unknown)))]))
            case "number":
                elements += [*prefix, *number]
        if field != tokens.prompt.fields[-1]:
            elements.append(_token(tokens.newline))
    return {"type": "structural_tag", "format": _sequence(elements)}


def answer_grammar(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens, stops: Collection[int] = ()
) -> Callable[[Sequence[int]], list[int]]:
    """A function from the tokens written so far to those that may come next.

    It also bounds a text's characters (`MAX_TITLE`), which a structural tag cannot express.

    Args:
        stops: what may end an answer beside `<|end|>`. vLLM permits all of a request's stop tokens, and a token's
            probability is that among the permitted ones.
    """
    answer = answer_structure(tokenizer, tokens)["format"]
    texts = title_words(tokenizer)
    longest = max(map(len, texts.values()))
    vocabulary = frozenset(range(len(tokenizer)))
    all_but = cache(vocabulary.difference)

    def follow(form: Form, starts: set[int], written: Sequence[int], following: set[int]) -> set[int]:
        """Where in `written` a `form` that starts at one of `starts` may end; adds tokens that may come next."""
        match form:
            case _ if not starts:
                return starts
            case {"type": "sequence", "elements": elements}:
                for element in elements:
                    starts = follow(element, starts, written, following)
                return starts
            case {"type": "or", "elements": elements}:
                return set().union(*(follow(element, starts, written, following) for element in elements))
            case {"type": "repeat", "content": content, "max": most}:
                ends = set(starts)
                for _ in range(most):
                    starts = follow(content, starts, written, following)
                    ends |= starts
                return ends
            case {"type": "any_tokens", "exclude_tokens": excluded, "max_tokens": most}:
                word = {"type": "exclude_token", "exclude_tokens": excluded}
                return follow(_repeated(word, most), starts, written, following)
            case {"type": "token", "token": token}:
                permitted: frozenset[int] = frozenset([token])
            case {"type": "exclude_token", "exclude_tokens": excluded}:
                permitted = all_but(excluded)
        if len(written) in starts:
            following |= permitted
        return {start + 1 for start in starts if start < len(written) and written[start] in permitted}

    def text_so_far(written: Sequence[int]) -> Sequence[int]:
        """The tokens of the value that is being written, if it is a text."""
        ends = [i for i, token in enumerate(written) if token == tokens.newline]
        field = tokens.prompt.fields[len(ends)]
        line = written[ends[-1] + 1 :] if ends else written
        return line[len(tokens.prefixes[field.name]) :] if field.kind == "text" else ()

    def allowed(written: Sequence[int]) -> list[int]:
        following: set[int] = set()
        if len(written) in follow(answer, {0}, written, following):
            following |= {tokens.stop, *stops}
        text = text_so_far(written) if tokens.newline in following else ()
        if text and sum(len(texts[token]) for token in text) + longest > MAX_TITLE:
            return [tokens.newline]
        return list(following)

    return allowed


def title_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids that a text may consist of, and their text: no control characters, bytes or special tokens.

    Nor `<`: several of these tokens could spell a control token with it.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return {  # "\u2581" marks a space; bytes could spell what the vocabulary's own words cannot
        i: token.replace("\u2581", " ")
        for token, i in tokenizer.get_vocab().items()
        if i not in special and "<" not in normalize("NFKC", token) and not holds_control_characters(token)
    }


def _token(token: int) -> Form:
    return {"type": "token", "token": token}


def _repeated(content: Form, most: int) -> Form:
    return {"type": "repeat", "content": content, "min": 0, "max": most}


def _sequence(elements: list[Form]) -> Form:
    return {"type": "sequence", "elements": elements}


def _either(elements: list[Form]) -> Form:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": elements}
