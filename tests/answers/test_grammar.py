"""Every sequence sampled from the tokens that the grammar allows is a valid answer of the taxonomy."""

import random
from collections.abc import Callable, Sequence
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from enrich.answers.fields import Field
from enrich.answers.grammar import SHORTEST_TEXT, answer_grammar, text_room
from enrich.answers.kinds.number import MAX_DIGITS
from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.plain_text import MAX_TITLE, holds_control_characters
from enrich.answers.prompt import Prompt, make_prompt, render_answer
from enrich.answers.text_tokens import text_edges, token_bytes
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.phi3_vision.processing import END
from tests.testing.byte_level_bpe import byte_level_bpe
from tests.testing.tiny_phi3v import wrap_tokenizer
from tests.testing.tiny_tokenizer import CATEGORIES, PROMPT

Allowed = Callable[[Sequence[int]], list[int]]
Choose = Callable[[list[int]], int]

HOSTILE = ("A", "AA", "A A", "12", "unknown", "Full Price: 3", "Product", "Ñandú & Co. <b>", "帽", "e\u0301")
OTHERS = (
    Field(name="colour", kind="choice", label="Colour", column="colour", values=("red", "dark red")),
    Field(name="fit", kind="text", label="Fit", column="fit"),
)


def walk(allowed: Allowed, stop: int, choose: Choose) -> list[int]:
    """Choose tokens one at a time until the stop token."""
    written: list[int] = []
    for _ in range(500):
        token = choose(allowed(written))
        if token == stop:
            return written
        written.append(token)
    raise AssertionError(f"no end after {len(written)} tokens")


@pytest.mark.parametrize("terse", [False, True])
@pytest.mark.parametrize("categories", [CATEGORIES, HOSTILE, ("ONLY",)])
def test_every_walk_ends_in_an_answer_with_a_known_category(
    tokenizer: PreTrainedTokenizerBase, categories: tuple[str, ...], terse: bool
) -> None:
    prompt = make_prompt(categories, "EUR", others=OTHERS, terse=terse)
    tokens = AnswerTokens(tokenizer, prompt, END)
    allowed = answer_grammar(tokens)
    seen = set()
    for seed in range(60):
        rng = random.Random(seed)
        title_ends = rng.random()  # from one word to the maximum

        def choose(options: list[int], rng: random.Random = rng, title_ends: float = title_ends) -> int:
            ends = tokens.newline in options and len(options) > 50
            return tokens.newline if ends and rng.random() < title_ends else rng.choice(options)

        written = walk(allowed, tokens.stop, choose)
        answer = parse_answer(tokenizer.decode(written, skip_special_tokens=True), prompt)
        assert answer.category in prompt.categories
        assert answer.price is None or 0 < answer.price < 10**MAX_DIGITS
        assert answer.attributes["colour"] in ("red", "dark red", None)
        assert len(answer.attributes["fit"] or "") <= MAX_TITLE
        seen.add(answer.category)
    assert len(seen) >= min(len(categories), 3)


@pytest.mark.parametrize("terse", [False, True])
@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("price", [None, 1, 1290, 9999999])
@pytest.mark.parametrize("title", ["x Blue shirt (2)", "青いシャツ"])
def test_the_answers_that_were_taught_can_be_written(
    tokenizer: PreTrainedTokenizerBase, title: str, category: str, price: int | None, terse: bool
) -> None:
    for one in (tokenizer, byte_level_bpe(), byte_level_bpe(groups=True)):
        can_be_written(one, make_prompt(CATEGORIES, "EUR", terse=terse), title, category, price)


def can_be_written(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, title: str, category: str, price: int | None
) -> None:
    tokens = AnswerTokens(tokenizer, prompt, END)
    allowed = answer_grammar(tokens)
    written = tokenizer.encode(render_answer(prompt, title, category, price), add_special_tokens=False)

    for end, token in enumerate([*written, tokens.stop]):
        assert token in allowed(written[:end]), tokenizer.decode(written[:end])


def test_a_title_ends_in_time_and_is_not_blank(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    allowed = answer_grammar(tokens)
    blank = tokenizer.convert_tokens_to_ids("\u2581")
    short = tokenizer.convert_tokens_to_ids("B")
    written = [*tokens.prefixes["title"]]

    assert tokens.newline not in allowed(written)
    assert blank in allowed(written)
    assert {blank, tokens.newline}.isdisjoint(allowed([*written, blank]))
    assert {blank, tokens.newline} <= {*allowed([*written, blank, short])}
    room = text_room(tokens)
    assert len(allowed([*written, *[short] * (room - 1)])) > 1
    assert allowed([*written, *[short] * room]) == [tokens.newline]


def test_an_answer_has_room_for_a_long_text_and_still_ends_in_its_budget(tokenizer: PreTrainedTokenizerBase) -> None:
    for budget in (8, 64, 65, 300):
        tokens = AnswerTokens(tokenizer, make_prompt(CATEGORIES, "EUR", max_new_tokens=budget), END)
        allowed = answer_grammar(tokens)
        word = tokenizer.convert_tokens_to_ids("B")
        longest = max(tokens.choices["category"].lines, key=len)
        title = [*tokens.prefixes["title"], *[word] * text_room(tokens), tokens.newline]
        price = [*tokens.prefixes["price"], *[next(iter(tokens.digits))] * MAX_DIGITS]
        assert allowed([*title, *longest[:-1]]) != []
        assert allowed([*title[:-1]]) == [tokens.newline]
        assert len([*title, *longest, *price, tokens.stop]) <= max(budget, SHORTEST_TEXT + 40)


def test_a_title_that_ends_inside_a_character_is_completed(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens
) -> None:
    allowed = answer_grammar(tokens)
    word, byte = tokenizer.convert_tokens_to_ids("B"), lambda value: tokenizer.convert_tokens_to_ids(f"<0x{value:02X}>")
    full = [*tokens.prefixes["title"], *[word] * (text_room(tokens) - 1), byte(0xE5)]

    assert tokens.newline not in allowed(full)
    assert tokens.newline not in allowed([*full, byte(0x85)])
    assert allowed([*full, byte(0x85), byte(0x86)]) == [tokens.newline]


def test_no_title_holds_control_tokens(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    options = answer_grammar(tokens)(tokens.prefixes["title"])

    assert options
    assert tokenizer.added_tokens_decoder.keys().isdisjoint(options)


TITLES = [
    "日本語のシャツ（青）", "Überzug 帽子 🙂", "Рубашка, синяя", "قميص أزرق", "می\u200cدوزیم", "👨\u200d👧 x",
    "हिन्दी", "a\u00a0b", "∑ ½ “q”",
]  # fmt: skip
HIDDEN = [
    "a\u200bb", "a\u00adb", "\u202ea", "a\x85b", "a\x1bb", "a\u2028b", "a<b", "a\uff1cb", "a\ufe64b", "a\ue000b",
    "a\U000e0041b", "a\U000f0000b", "a\ufffdb", "s\u200chirt", "\u0645\u200d", "\u200c\u0645", "   ", "\u3000", "a\tb",
]  # fmt: skip


def writes(allowed: Allowed, tokens: AnswerTokens, title: Sequence[int]) -> bool:
    """Whether the grammar lets a title be written with these tokens."""
    ids = [*tokens.prefixes["title"], *title, tokens.newline]
    return all(token in allowed(ids[:at]) for at, token in enumerate(ids))


@pytest.mark.parametrize("kind", ["words and bytes", "letters for bytes"])
def test_titles_of_any_script_can_be_written_and_hidden_characters_cannot(
    tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    tokenizer = tokenizer if kind == "words and bytes" else byte_level_bpe()
    tokens = AnswerTokens(tokenizer, make_prompt(["HATS"], "EUR", max_new_tokens=200), END)
    allowed = answer_grammar(tokens)
    byte = {written: token for token, written in token_bytes(tokenizer).items() if len(written) == 1}
    for title in TITLES:
        ids = tokenizer.encode(f"Product: {title}", add_special_tokens=False)[len(tokens.prefixes["title"]) :]
        assert writes(allowed, tokens, ids), title
        assert writes(allowed, tokens, [byte[bytes([one])] for one in title.encode()]), title
        assert parse_answer(f"Product: {title}\nCategory: HATS\nFull Price: 1", tokens.prompt).title == title
    for title in HIDDEN:
        assert not writes(allowed, tokens, [byte[bytes([one])] for one in title.encode()]), repr(title)
        if "<" not in normalize("NFKC", title):  # which is harmless alone
            with pytest.raises(AnswerMalformed):
                parse_answer(f"Product: {title}\nCategory: HATS\nFull Price: 1", tokens.prompt)
    for broken in (b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xe6\x97", b"\xff"):
        assert not writes(allowed, tokens, [byte[bytes([one])] for one in b"a" + broken if bytes([one]) in byte])


BYTES = text_edges({byte: bytes([byte]) for byte in range(256)})
TEXT = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\u200c\u200d <\uff1c\u3000مदa\u226e"))


@given(st.text(TEXT, min_size=1, max_size=8).filter(lambda text: len(text) - len(text.lstrip()) < 2))
def test_the_grammar_permits_the_characters_that_the_parser_does(text: str) -> None:
    (edges, ends), state = BYTES, 0
    for byte in text.encode():
        following = [after for permitted, after in edges.get(state, ()) if byte in permitted]
        state = following[0] if following else -1
    try:
        parse_answer(f"Product: {text}\nCategory: HATS\nFull Price: 1", PROMPT)
        readable = not holds_control_characters(text) and "<" not in normalize("NFKC", text)
    except AnswerMalformed:
        readable = False
    assert (state in ends) == readable


def test_no_title_holds_control_characters_of_the_vocabulary() -> None:
    """The original vocabulary contains zero-width and right-to-left marks as separate tokens."""
    pieces = ["<unk>", "<s>", "</s>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "Hat", "\u200b", "\u202eHat", "\r", "\ufeff", "帽子"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = wrap_tokenizer(Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)))
    tokens = AnswerTokens(tokenizer, make_prompt(["HATS"], "EUR"), END)

    options = answer_grammar(tokens)(tokens.prefixes["title"])

    assert {"\u2581", "Hat", "帽子"} <= {*tokenizer.convert_ids_to_tokens(options)}
    assert {"\u200b", "\u202eHat", "\r", "\ufeff"}.isdisjoint(tokenizer.convert_ids_to_tokens(options))


def test_a_price_has_no_leading_zero_and_ends_in_time(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    allowed = answer_grammar(tokens)
    ids = {digit: i for i, digit in tokens.digits.items()}
    text = "Product: a\nCategory: HATS\n"
    written = [*tokenizer.encode(text, add_special_tokens=False), *tokens.prefixes["price"]]

    unknown = tokens.unknown["price"][len(tokens.prefixes["price"])]  # it starts like a price

    assert {*allowed(written)} == {unknown, *(ids[digit] for digit in "123456789")}
    assert {*allowed([*written, ids["1"]])} == {*ids.values(), tokens.stop}
    assert allowed([*written, *[ids["1"]] * MAX_DIGITS]) == [tokens.stop]
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ends = answer_grammar(tokens, [other])
    assert {*ends([*written, ids["1"]])} == {*ids.values(), tokens.stop, other}
    assert {*ends(written)} == {*allowed(written)}
    assert allowed([*written[: -len(tokens.prefixes["price"])], *tokens.unknown["price"]]) == [tokens.stop]


def test_a_vocabulary_with_a_word_longer_than_any_title_still_begins_an_answer() -> None:
    pieces = ["<unk>", "<s>", "</s>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "Hat", "\u2581" * (MAX_TITLE + 1)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = wrap_tokenizer(Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)))
    tokens = AnswerTokens(tokenizer, make_prompt(["HATS"], "EUR"), END)
    allowed = answer_grammar(tokens)

    assert allowed([]) == [tokens.prefixes["title"][0]]
    assert len(allowed(tokens.prefixes["title"])) > 1
