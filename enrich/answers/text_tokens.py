"""Which sequences of tokens form a permitted text, in any script and with any tokenizer.

A token stands for bytes: a word, or, where the vocabulary lacks a character, a part of its UTF-8. So the bytes before
it decide whether a token may come next. The automaton here reads bytes. It permits valid UTF-8 that is not blank, with
one leading space at most, no control characters, joiners only inside words, and no `<`, which several tokens could make
a control token. The parser accepts all of these texts.
"""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from functools import cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from enrich.answers.automata import Edges
from enrich.answers.plain_text import CONTROL, JOINERS, UNDECODED

# What a character is to a text, and so what the text is behind it. A text may start with one space.
_NEVER, _SPACE, _NARROW, _WIDE, _JOINER, _START = range(6)
_AFTER = {  # (what the text was, the next character) -> what it is then; the rest is not permitted
    **{(before, after): after for before in (_START, _SPACE, _NARROW, _WIDE) for after in (_NARROW, _WIDE)},
    (_START, _SPACE): _SPACE,
    (_NARROW, _SPACE): _NARROW,
    (_WIDE, _SPACE): _NARROW,
    (_WIDE, _JOINER): _JOINER,
    (_JOINER, _WIDE): _WIDE,
}
_CHARACTERS = 0x110000
_State = tuple[int, tuple]  # what the text was before this character; what its next byte may be, () between characters


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens and those that were added to the vocabulary, except white space: texts must not contain them."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {token for token, one in added if one.content.strip()}


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """What each token of the vocabulary writes, without special and added tokens.

    Vocabularies write bytes in two ways: GPT-2's has a letter for each of the 256 bytes, SentencePiece's has words, in
    which U+2581 is a space, and a token `<0xE3>` for each byte.
    """
    added = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    decoder = json.loads(tokenizer.backend_tokenizer.decoder.__getstate__())
    words = {i: token for token, i in tokenizer.get_vocab().items() if i not in added}
    if '"ByteLevel"' in json.dumps(decoder):
        byte = {letter: value for value, letter in bytes_to_unicode().items()}
        return {i: bytes(byte[letter] for letter in token) for i, token in words.items() if byte.keys() >= set(token)}
    alone = {f"<0x{value:02X}>": bytes([value]) for value in range(256)}
    return {i: alone.get(token) or token.replace("\u2581", " ").encode() for i, token in words.items()}


def text_edges(vocabulary: Mapping[int, bytes]) -> tuple[Edges, frozenset[int]]:
    """The automaton of texts: its edges, from state 0 on, and the states in which a text may end."""
    numbers: dict[_State, int] = {(_START, ()): 0}
    found: dict[int, dict[int, set[int]]] = {}
    whole, parts = _by_meaning(vocabulary)
    waiting = list(numbers)
    while waiting:
        state = waiting.pop()
        edges: dict[int, set[int]] = defaultdict(set)
        for tokens, after in [(tokens, _read(state, meaning)) for meaning, tokens in whole.items() if not state[1]] + [
            ({token}, _write(state, written)) for token, written in parts.items()
        ]:
            if after is None:
                continue
            if after not in numbers:
                numbers[after] = len(numbers)
                waiting.append(after)
            edges[numbers[after]] |= tokens
        found[numbers[state]] = edges
    ends = frozenset(number for (before, rest), number in numbers.items() if not rest and before in (_NARROW, _WIDE))
    alive = _leading_to(ends, found)
    return {
        state: [(frozenset(tokens), after) for after, tokens in edges.items() if after in alive]
        for state, edges in found.items()
        if state in alive
    }, ends


def _by_meaning(vocabulary: Mapping[int, bytes]) -> tuple[dict[bytes, set[int]], dict[int, bytes]]:
    """Tokens of whole characters, by what these are to a text; and tokens with a part of a character."""
    kinds = _kinds()
    whole: dict[bytes, set[int]] = defaultdict(set)
    parts: dict[int, bytes] = {}
    for token, written in vocabulary.items():
        try:
            meaning = bytes(kinds[ord(character)] for character in written.decode())
        except UnicodeDecodeError:
            parts[token] = written
        else:
            if meaning and _NEVER not in meaning:
                whole[meaning].add(token)
    return whole, parts


def _read(state: _State, meaning: bytes) -> _State | None:
    before: int | None = state[0]
    for kind in meaning:
        before = _AFTER.get((before, kind)) if before is not None else None
    return None if before is None else (before, ())


def _write(state: _State, written: bytes) -> _State | None:
    """The state after some bytes, None if they are not permitted."""
    before, rest = state
    for byte in written:
        options = rest or _first_bytes()
        found = options[byte - 0x80 if rest else byte] if (0x80 <= byte < 0xC0 or not rest) else _NEVER
        if found == _NEVER:
            return None
        rest = found if isinstance(found, tuple) else ()
        if not rest:
            after = _AFTER.get((before, found))
            if after is None:
                return None
            before = after
    return before, rest


@cache
def _kinds() -> bytes:
    """What each of Unicode's characters is to a text."""
    return bytes(_kind(chr(code)) for code in range(_CHARACTERS))


def _kind(character: str) -> int:
    if character in JOINERS:
        return _JOINER
    if unicodedata.category(character) in CONTROL or character == UNDECODED:
        return _NEVER
    if character == "<" or (unicodedata.decomposition(character) and "<" in unicodedata.normalize("NFKC", character)):
        return _NEVER
    return _SPACE if character.isspace() else _NARROW if character.isascii() else _WIDE


@cache
def _first_bytes() -> tuple:
    """By a character's first byte: what it is to a text, or, by the next byte less 0x80, the same again.

    Equal branches are one object: there are about a hundred.
    """
    known: dict[tuple, tuple | int] = {}

    def grouped(branches: list) -> list:
        """Each 64 in one."""
        groups = [tuple(branches[at : at + 64]) for at in range(0, len(branches), 64)]
        return [known.setdefault(group, group if any(group) else _NEVER) for group in groups]

    kinds = list(_kinds())
    two = grouped(kinds)
    three = grouped([*[_NEVER] * 32, *two[32:]])  # shorter spellings exist below, so these are not UTF-8
    four = grouped([*[_NEVER] * 16, *three[16:], *[_NEVER] * (-len(three) % 64)])
    never = [_NEVER] * 256
    return (*kinds[:0x80], *never[0x80:0xC2], *two[2:32], *three[:16], *four, *never[0xF0 + len(four) :])


def _leading_to(ends: frozenset[int], edges: Mapping[int, Mapping[int, set[int]]]) -> set[int]:
    """The states from which a text can still end."""
    before: dict[int, set[int]] = defaultdict(set)
    for state, found in edges.items():
        for after in found:
            before[after].add(state)
    alive, waiting = set(ends), list(ends)
    while waiting:
        for state in before[waiting.pop()] - alive:
            alive.add(state)
            waiting.append(state)
    return alive
