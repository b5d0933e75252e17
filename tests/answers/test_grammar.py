"""Every sequence sampled from the tokens that the grammar allows is a valid answer of the taxonomy."""

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from enrich.answers.fields import Field
from enrich.answers.grammar import MAX_DIGITS, MAX_TITLE_TOKENS, answer_grammar
from enrich.answers.parse import MAX_TITLE, parse_answer
from enrich.answers.prompt import make_prompt
from enrich.answers.token_evidence import AnswerTokens
from tests.testing.tiny_phi3v import wrap_tokenizer
from tests.testing.tiny_tokenizer import CATEGORIES

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


@pytest.mark.parametrize("categories", [CATEGORIES, HOSTILE, ("ONLY",)])
def test_every_walk_ends_in_an_answer_with_a_known_category(
    tokenizer: PreTrainedTokenizerBase, categories: tuple[str, ...]
) -> None:
    prompt = make_prompt(categories, "EUR", others=OTHERS)
    tokens = AnswerTokens(tokenizer, prompt)
    allowed = answer_grammar(tokenizer, tokens)
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


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("price", ["unknown", "1", "1290", "9999999"])
def test_the_answers_that_were_taught_can_be_written(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens, category: str, price: str
) -> None:
    allowed = answer_grammar(tokenizer, tokens)
    text = f"Product: x Blue shirt (2)\nCategory: {category}\nFull Price: {price}"
    written = tokenizer.encode(text, add_special_tokens=False)

    for end, token in enumerate([*written, tokens.stop]):
        assert token in allowed(written[:end]), tokenizer.decode(written[:end])


def test_the_longest_words_make_no_title_too_long(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    lengths = {i: len(token) for token, i in tokenizer.get_vocab().items()}

    written = walk(
        answer_grammar(tokenizer, tokens), tokens.stop, lambda options: max(options, key=lengths.__getitem__)
    )

    title = parse_answer(tokenizer.decode(written), tokens.prompt).title
    assert MAX_TITLE / 2 < len(title) <= MAX_TITLE


def test_a_title_ends_in_time_and_is_not_blank(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    allowed = answer_grammar(tokenizer, tokens)
    blank = tokenizer.convert_tokens_to_ids("\u2581")
    short = tokenizer.convert_tokens_to_ids("B")
    written = [*tokens.prefixes["title"]]

    assert tokens.newline not in allowed(written)
    assert blank in allowed(written)
    assert {blank, tokens.newline}.isdisjoint(allowed([*written, blank]))
    assert {blank, tokens.newline} <= {*allowed([*written, blank, short])}
    assert allowed([*written, *[short] * MAX_TITLE_TOKENS]) == [tokens.newline]


def test_no_title_holds_control_tokens_or_bytes(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    options = answer_grammar(tokenizer, tokens)(tokens.prefixes["title"])

    assert options
    assert tokenizer.added_tokens_decoder.keys().isdisjoint(options)
    assert not [token for token in tokenizer.convert_ids_to_tokens(options) if token.startswith("<0x")]


def test_no_title_holds_control_characters_of_the_vocabulary() -> None:
    """The original vocabulary contains zero-width and right-to-left marks as separate tokens."""
    pieces = ["<unk>", "<s>", "</s>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "Hat", "\u200b", "\u202eHat", "\r", "\ufeff", "帽子"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = wrap_tokenizer(Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)))
    tokens = AnswerTokens(tokenizer, make_prompt(["HATS"], "EUR"))

    options = answer_grammar(tokenizer, tokens)(tokens.prefixes["title"])

    assert {"\u2581", "Hat", "帽子"} <= {*tokenizer.convert_ids_to_tokens(options)}
    assert {"\u200b", "\u202eHat", "\r", "\ufeff"}.isdisjoint(tokenizer.convert_ids_to_tokens(options))


def test_a_price_has_no_leading_zero_and_ends_in_time(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    allowed = answer_grammar(tokenizer, tokens)
    ids = {digit: i for i, digit in tokens.digits.items()}
    text = "Product: a\nCategory: HATS\n"
    written = [*tokenizer.encode(text, add_special_tokens=False), *tokens.prefixes["price"]]

    unknown = tokens.unknown["price"][len(tokens.prefixes["price"])]  # it starts like a price

    assert {*allowed(written)} == {unknown, *(ids[digit] for digit in "123456789")}
    assert {*allowed([*written, ids["1"]])} == {*ids.values(), tokens.stop}
    assert allowed([*written, *[ids["1"]] * MAX_DIGITS]) == [tokens.stop]
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ends = answer_grammar(tokenizer, tokens, [other])
    assert {*ends([*written, ids["1"]])} == {*ids.values(), tokens.stop, other}
    assert {*ends(written)} == {*allowed(written)}
    assert allowed([*written[: -len(tokens.prefixes["price"])], *tokens.unknown["price"]]) == [tokens.stop]


def test_a_vocabulary_with_a_word_longer_than_any_title_still_begins_an_answer() -> None:
    pieces = ["<unk>", "<s>", "</s>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "Hat", "\u2581" * (MAX_TITLE + 1)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = wrap_tokenizer(Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)))
    tokens = AnswerTokens(tokenizer, make_prompt(["HATS"], "EUR"))
    allowed = answer_grammar(tokenizer, tokens)

    assert allowed([]) == [tokens.prefixes["title"][0]]
    assert len(allowed(tokens.prefixes["title"])) > 1
