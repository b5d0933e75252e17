"""What log-probabilities say, on completions worked out by hand."""

import math
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from enrich.answers.completion import Completion
from enrich.answers.fields import Field
from enrich.answers.grammar import answer_grammar
from enrich.answers.lexicon import lexicon_of
from enrich.answers.prompt import make_prompt, render_answer
from enrich.answers.token_evidence import (
    MOST_ALTERNATIVES,
    AnswerTokens,
    PriceFeatures,
    alternatives,
    answer_probability,
    line_probability,
    price_features,
    title_words,
)
from enrich.errors import UsageError
from enrich.models.phi3_vision.processing import END
from tests.testing.byte_level_bpe import byte_level_bpe
from tests.testing.fake_engine import write_completion
from tests.testing.tiny_tokenizer import CATEGORIES

ANSWER = "Product: Blue 9 shirt\nCategory: {}\nFull Price: {}"
HATS = ANSWER.format("HATS", "12")


@dataclass(frozen=True)
class Writer:
    """Writes completions token by token."""

    tokenizer: PreTrainedTokenizerBase
    tokens: AnswerTokens

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def line(self, text: str, number: int) -> range:
        """Positions of a line's tokens in `text`, with the newline at its end, if there is one."""
        ids = self.ids(text)
        ends = [-1, *(i for i, token in enumerate(ids) if token == self.tokens.newline), len(ids) - 1]
        return range(ends[number] + 1, ends[number + 1] + 1)

    def token(self, category: str, place: int) -> int:
        """The token at a place of a label's line."""
        return next(label for label, name in self.tokens.choices["category"].lines.items() if name == category)[place]

    def write(self, text: str, **options: Any) -> Completion:
        return write_completion(self.tokenizer, text, **options)

    def price(self, price: str, rivals: dict[int, dict[str, float]]) -> PriceFeatures:
        """Features of a price whose digits have these rivals, digits or `stop`, by place from the left."""
        tokens, text = self.tokens, HATS.replace("12", price)
        first = len(self.ids(text)) - len(price)
        ids = {digit: i for i, digit in tokens.digits.items()} | {"stop": tokens.stop, "newline": tokens.newline}
        completion = self.write(
            text,
            probabilities={first + place: 1 - sum(others.values()) for place, others in rivals.items()},
            rivals={first + place: {ids[name]: p for name, p in others.items()} for place, others in rivals.items()},
        )
        return price_features(completion, tokens.spans(completion.token_ids), tokens)


@pytest.fixture
def writer(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> Writer:
    return Writer(tokenizer, tokens)


def test_an_answer_is_written_with_the_tokens_of_its_parts(writer: Writer, tokens: AnswerTokens) -> None:
    for category in CATEGORIES:
        for price in ("unknown", "1290"):
            ids = writer.ids(ANSWER.format(category, price))
            title, label, full_price = (tuple(ids[tokens.spans(ids).line(field)]) for field in tokens.prefixes)
            before = tokens.prefixes["price"]
            assert title[: len(tokens.prefixes["title"])] == tokens.prefixes["title"]
            assert tokens.choices["category"].lines[label] == category
            if price == "unknown":
                assert full_price == tokens.unknown["price"]
            else:
                assert full_price[: len(before)] == before
                assert "".join(tokens.digits[i] for i in full_price[len(before) :]) == price


@pytest.mark.parametrize("terse", [False, True])
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_evidence_of_an_answer_is_the_same_without_labels(
    tokenizer: PreTrainedTokenizerBase, category: str, terse: bool
) -> None:
    prompt = make_prompt(CATEGORIES, "EUR", terse=terse)
    tokens = AnswerTokens(tokenizer, prompt, END)
    ids = tokenizer.encode(render_answer(prompt, "Blue 9 shirt", category, 129), add_special_tokens=False)
    spans = tokens.spans(ids)
    label, price, word = spans.line("category"), spans.tokens(*spans.value("price")), spans.value("title")[1] - 1
    last = next(i for i, digit in tokens.digits.items() if digit == "7")
    sure = {label.start: 0.5, price.stop - 1: 0.75, spans.tokens(word, word + 1).start: 0.25}
    completion = write_completion(tokenizer, spans.text, probabilities=sure, rivals={price.stop - 1: {last: 0.25}})

    assert tokens.choices["category"].lines[tuple(ids[label])] == category
    assert line_probability(completion, spans, "category") == pytest.approx(0.5)
    assert title_words(completion, spans, tokens.lexicon)[-1] == ("shirt", pytest.approx(0.25))
    found = price_features(completion, spans, tokens)
    assert found.expectation == pytest.approx(129**0.75 * 127**0.25)


def test_a_labels_probability_is_the_product_of_its_tokens(writer: Writer, tokens: AnswerTokens) -> None:
    label = writer.line(HATS, 1)
    unsure = {label[0]: 0.9, label[2]: 0.5, label[-1]: 0.8}
    elsewhere = {0: 0.1, label.start - 1: 0.2, label.stop: 0.3}  # the title, its newline, the price

    completion = writer.write(HATS, probabilities=unsure | elsewhere)

    assert completion.token_ids[label[-1]] == tokens.newline
    assert line_probability(completion, tokens.spans(completion.token_ids), "category") == pytest.approx(
        0.9 * 0.5 * 0.8
    )


def test_a_label_that_begins_as_another_leaves_it_at_the_newline(writer: Writer, tokens: AnswerTokens) -> None:
    label = writer.line(HATS, 1)
    more = writer.token("HATS AND CAPS", len(label) - 1)
    completion = writer.write(HATS, probabilities={label[2]: 0.5, label[-1]: 0.6}, rivals={label[-1]: {more: 0.3}})

    assert alternatives(completion, tokens.spans(completion.token_ids), tokens, "category") == pytest.approx(
        {"HATS AND CAPS": 0.5 * 0.3}
    )


def test_the_shorter_label_ends_where_the_longer_continues(writer: Writer, tokens: AnswerTokens) -> None:
    text = ANSWER.format("HATS AND CAPS", "12")
    label = writer.line(text, 1)
    shorter = next(len(ids) - 1 for ids, name in tokens.choices["category"].lines.items() if name == "HATS")
    completion = writer.write(text, rivals={label[shorter]: {tokens.newline: 0.25}})

    assert alternatives(completion, tokens.spans(completion.token_ids), tokens, "category") == pytest.approx(
        {"HATS": 0.25}
    )


def test_labels_that_leave_by_the_same_token_share_it(writer: Writer, tokens: AnswerTokens) -> None:
    text = ANSWER.format("BAGS", "12")
    label = writer.line(text, 1)
    place = 2  # after `Category` and `:` the labels part
    rivals = {
        writer.token("HATS", place): 0.3,
        writer.token("ÜBERZÜGE 帽子 🙂", place): 0.2,
        tokens.stop: 0.1,  # begins no label
    }
    completion = writer.write(
        text, probabilities={label[place]: 0.4, label[place + 1]: 0.5}, rivals={label[place]: rivals}
    )

    found = alternatives(completion, tokens.spans(completion.token_ids), tokens, "category")

    assert found == pytest.approx({"ÜBERZÜGE 帽子 🙂": 0.2, "HATS": 0.15, "HATS AND CAPS": 0.15})
    assert next(iter(found)) == "ÜBERZÜGE 帽子 🙂"  # most probable first


def test_a_label_is_reached_only_by_what_was_written_before_it(writer: Writer, tokens: AnswerTokens) -> None:
    text = ANSWER.format("BAGS", "12")
    label = writer.line(text, 1)
    hats = writer.token("HATS", 2)
    completion = writer.write(text, rivals={label[3]: {hats: 0.4}, label[0]: {hats: 0.4}, 1: {hats: 0.4}})

    assert alternatives(completion, tokens.spans(completion.token_ids), tokens, "category") == {}


@pytest.mark.parametrize(
    ("price", "rivals", "atoms"),
    [
        ("1290", {}, {1290: 1.0}),
        ("1290", {0: {"2": 0.4}}, {1290: 0.6, 1000 * math.sqrt(6): 0.4}),
        ("1290", {3: {"5": 0.4}}, {1290: 0.6, 1295: 0.4}),
        ("950", {0: {"1": 0.5}}, {950: 0.5, 1000 * math.sqrt(2): 0.5}),  # nearer than 141
        ("110", {0: {"9": 0.5}}, {110: 0.5, 10 * math.sqrt(90): 0.5}),  # nearer than 949
        (
            "45",
            {0: {"5": 0.2, "3": 0.1}, 1: {"9": 0.3}},
            {45: 0.49, 10 * math.sqrt(30): 0.2, 10 * math.sqrt(12): 0.1, 49: 0.21},
        ),
        ("120", {2: {"stop": 0.2}}, {120: 0.8, 12: 0.2}),  # it nearly ended a digit earlier
        ("120", {0: {"stop": 0.2}}, {120: 1.0}),  # nothing would be no price
        ("120", {1: {"newline": 0.2}}, {120: 1.0}),  # no answer at all
        ("7", {0: {"0": 0.2}}, {7: 1.0}),  # no price either
        ("7", {0: {"8": 0.25}}, {7: 0.75, 8: 0.25}),
        ("2", {0: {"1": 0.25}}, {2: 0.75, 1: 0.25}),  # the least price
    ],
)
def test_prices_that_were_nearly_written(
    writer: Writer, price: str, rivals: dict[int, dict[str, float]], atoms: dict[float, float]
) -> None:
    found = writer.price(price, rivals)

    mean = sum(p * math.log(value) for value, p in atoms.items())
    variance = sum(p * (math.log(value) - mean) ** 2 for value, p in atoms.items())
    assert found.expectation == pytest.approx(math.exp(mean), rel=1e-5)
    assert found.spread == pytest.approx(math.sqrt(variance), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("price", ["0", "unknown"])
def test_without_a_price_features_are_zero(writer: Writer, price: str) -> None:
    assert writer.price(price, {}) == PriceFeatures()


def test_digits_of_the_title_are_no_price(writer: Writer, tokens: AnswerTokens) -> None:
    ids = writer.ids(HATS)
    nine = next(i for i, token in enumerate(ids) if tokens.digits.get(token) == "9")
    two = next(token for token, digit in tokens.digits.items() if digit == "2")

    completion = writer.write(HATS, rivals={nine: {two: 0.4}})

    assert price_features(completion, tokens.spans(completion.token_ids), tokens).spread == 0.0


@pytest.mark.parametrize("text", ["", "Product: Hat", "no answer at all, not even a line"])
def test_a_text_without_lines_says_nothing(writer: Writer, tokens: AnswerTokens, text: str) -> None:
    completion = writer.write(text, probabilities={0: 0.5})

    assert line_probability(completion, tokens.spans(completion.token_ids), "category") == 1.0  # nothing was asked for
    assert answer_probability(completion, tokens.spans(completion.token_ids), "category") == (
        pytest.approx(0.5) if text else 1.0
    )
    assert alternatives(completion, tokens.spans(completion.token_ids), tokens, "category") == {}
    assert price_features(completion, tokens.spans(completion.token_ids), tokens) == PriceFeatures()


def test_doubt_about_the_title_is_doubt_about_the_label(writer: Writer, tokens: AnswerTokens) -> None:
    label = writer.line(HATS, 1)
    price = writer.line(HATS, 2)
    completion = writer.write(HATS, probabilities={2: 0.5, label[2]: 0.8, price[0]: 0.1})

    assert line_probability(completion, tokens.spans(completion.token_ids), "category") == pytest.approx(0.8)
    assert answer_probability(completion, tokens.spans(completion.token_ids), "category") == pytest.approx(0.4)


def test_words_of_the_title_have_their_probabilities(writer: Writer, tokens: AnswerTokens) -> None:
    title = writer.line(HATS, 0)
    completion = writer.write(HATS, probabilities={title[-2]: 0.25})

    words = title_words(completion, tokens.spans(completion.token_ids), tokens.lexicon)

    assert [word for word, _ in words] == ["Blue", "9", "shirt"]
    assert words[-1][1] == pytest.approx(0.25)
    assert [probability for _, probability in words[:-1]] == pytest.approx([1.0, 1.0])


def test_words_of_a_title_without_blanks_are_those_that_can_be_seen(writer: Writer, tokens: AnswerTokens) -> None:
    text = "Product: 婦人用ネイビーウールコート\nCategory: HATS\nFull Price: 12"
    spans = tokens.spans(writer.ids(text))
    navy = spans.tokens(text.index("ネイビー"), text.index("ウール"))
    completion = writer.write(text, probabilities={navy.start: 0.2})

    assert title_words(completion, spans, lexicon_of("ja")) == [("ネイビー", pytest.approx(0.2)), ("ウール", 1.0)]


def test_a_taxonomy_of_thousands_is_looked_up(tokenizer: PreTrainedTokenizerBase) -> None:
    names = [f"{kind} / {colour} {number}" for kind in ("BAGS", "HATS", "COATS") for colour in ("RED", "BLUE")
             for number in range(1000)]  # fmt: skip
    many = AnswerTokens(tokenizer, make_prompt(names, "EUR"), END)
    text, writer = ANSWER.format("HATS / RED 77", "12"), Writer(tokenizer, many)
    ids, label = writer.ids(text), writer.line(text, 1)
    blue = next(tokens for tokens, name in many.choices["category"].lines.items() if name == "HATS / BLUE 77")
    place = next(i for i, position in enumerate(label) if blue[i] != ids[position])
    completion = writer.write(text, rivals={label[place]: {blue[place]: 0.2}})
    allowed = answer_grammar(many)
    written = list(completion.token_ids[: label[0]])

    start = time.perf_counter()
    for _ in range(50):
        others = alternatives(completion, many.spans(completion.token_ids), many, "category")
        for end in range(len(label)):
            assert completion.token_ids[label[end]] in allowed([*written, *completion.token_ids[label[0] : label[end]]])
    seconds = (time.perf_counter() - start) / 50

    assert len(many.choices["category"].lines) == len(names) == 6000
    assert list(others.values()) == pytest.approx(
        [0.2 / 1000] * MOST_ALTERNATIVES
    )  # each of the blue hats, of which a few are named
    assert seconds < 0.05  # searched, it would be ten times as much


def test_words_are_found_by_their_characters_whatever_the_tokens(writer: Writer, tokens: AnswerTokens) -> None:
    text = "Product: Überzug, 帽子 🙂 (neu)!\nCategory: HATS\nFull Price: 12"
    ids = writer.ids(text)
    spans = tokens.spans(ids)
    bytes_of_ü = spans.tokens(text.index("Ü"), text.index("Ü") + 1)
    smile = spans.tokens(text.index("🙂"), text.index("🙂") + 1)
    assert spans.text == text
    assert (smile.stop - smile.start, bytes_of_ü.stop - bytes_of_ü.start) == (4, 2)  # in UTF-8
    completion = writer.write(text, probabilities={bytes_of_ü.start: 0.5, smile.stop - 1: 0.25})

    found = dict(title_words(completion, spans, tokens.lexicon))

    assert list(found) == ["Überzug", "帽子", "🙂", "neu"]
    assert found == pytest.approx({"Überzug": 0.5, "帽子": 1.0, "🙂": 0.25, "neu": 1.0})
    for start in range(len(text)):
        for end in range(start, len(text) + 1):
            covered = spans.tokens(start, end)
            assert (covered.stop > covered.start) == (end > start)
            assert text[start:end].strip() in writer.tokenizer.decode(ids[covered])  # decoding drops the first space


@pytest.mark.parametrize("kind", ["words and bytes", "letters for bytes"])
@given(st.lists(st.integers(0, 476), max_size=12), st.text(st.sampled_from("a0 \né帽🙂\x00"), max_size=12))
@example([], " a")
@example([], "  ")
@example([], "coat")
def test_tokens_are_placed_as_the_tokenizer_decodes_them(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens, kind: str, drawn: list[int], text: str
) -> None:
    if kind == "letters for bytes":
        tokenizer, tokens = byte_level_bpe(), AnswerTokens(byte_level_bpe(), tokens.prompt, END)
    ids = tokenizer.encode(text, add_special_tokens=False)
    found, stream, said, waiting = tokens.spans(ids), DecodeStream(skip_special_tokens=False), "", 0
    ends: list[int] = []
    for token in ids:
        waiting += 1
        if (written := stream.step(tokenizer.backend_tokenizer, token)) is not None:
            said += written
            ends += [len(said)] * waiting
            waiting = 0

    assert found.text == said == tokenizer.decode(ids)
    assert list(found.ends) == ends
    whatever = tokens.spans([*drawn, 10**6, tokens.stop])  # broken and special ones do no harm
    assert len(whatever.ends) == len(drawn) + 2
    assert list(whatever.ends) == sorted(whatever.ends)
    assert len(whatever.text) >= whatever.ends[-1]


def test_further_fields_have_their_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    colour = Field(name="colour", kind="choice", label="Colour", column="colour", values=("red", "dark red"))
    tokens = AnswerTokens(tokenizer, make_prompt(("HATS",), "EUR", others=[colour]), END)
    text = "Product: Hat\nCategory: HATS\nColour: {}\nFull Price: 12"
    for value in ("red", "dark red", "unknown"):
        ids = tokenizer.encode(text.format(value), add_special_tokens=False)
        spans = tokens.spans(ids)
        start, end = spans.value("colour")
        assert spans.text[start:end] == value
        assert tokens.choices["colour"].lines[tuple(ids[spans.line("colour")])] == value


@pytest.mark.parametrize("text", ["<|end|>", "HATS<|user|>", "<|placeholder7|>"])
def test_a_category_that_spells_a_control_token_is_refused_before_anything_is_answered(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    category = make_prompt(("HATS",), None).fields[1]
    unchecked = Field.model_construct(**{**dict(category), "values": ("HATS", text)})
    prompt = make_prompt(("HATS",), None)
    prompt = prompt.model_copy(update={"fields": (prompt.fields[0], unchecked, prompt.fields[2])})
    with pytest.raises(UsageError, match="spells a control token of the model; take it out of the catalog"):
        AnswerTokens(tokenizer, prompt, END)


def write_number(price: str, groups: bool, rivals: dict[int, dict[str, float]]) -> tuple[PriceFeatures, list[str]]:
    """Features of a price whose digits share tokens, with these rivals by token; and the price's tokens."""
    tokenizer = byte_level_bpe(groups)
    tokens = AnswerTokens(tokenizer, make_prompt(("HATS",), "EUR"), END)
    text = f"Product: Hat\nCategory: HATS\nFull Price: {price}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    spans = tokens.spans(ids)
    place = spans.tokens(*spans.value("price"))
    by_digits = [
        {tokens.digits[i]: i for i in (tokens.inner if at or not_led else tokens.leading)}
        for at, not_led in ((0, groups), (1, True))
    ]
    completion = write_completion(
        tokenizer,
        text,
        probabilities={place.start + at: 1 - sum(others.values()) for at, others in rivals.items()},
        rivals={
            place.start + at: {by_digits[min(at, 1)][digits]: p for digits, p in others.items()}
            for at, others in rivals.items()
        },
    )
    written = [tokenizer.decode([i]).strip() for i in ids[place]]
    return price_features(completion, spans, tokens), written


@pytest.mark.parametrize(
    ("price", "groups", "pieces", "rivals", "atoms"),
    [
        ("129", True, ["12", "9"], {0: {"13": 0.4}}, {129: 0.6, 10 * math.sqrt(13 * 14): 0.4}),
        ("129", True, ["12", "9"], {1: {"5": 0.25}}, {129: 0.75, 125: 0.25}),
        (
            "120",
            False,
            ["12", "0"],
            {0: {"13": 0.4}, 1: {"5": 0.5}},
            {120: 0.3, 10 * math.sqrt(13 * 14): 0.4, 125: 0.3},
        ),
    ],
)
def test_prices_whose_digits_share_tokens_have_a_distribution(
    price: str, groups: bool, pieces: list[str], rivals: dict[int, dict[str, float]], atoms: dict[float, float]
) -> None:
    found, written = write_number(price, groups, rivals)

    mean = sum(p * math.log(value) for value, p in atoms.items())
    variance = sum(p * (math.log(value) - mean) ** 2 for value, p in atoms.items())
    assert written == pieces
    assert found.expectation == pytest.approx(math.exp(mean), rel=1e-5)
    assert found.spread == pytest.approx(math.sqrt(variance), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("price", ["7", "12", "990", "1290", "129012", "unknown"])
def test_the_grammar_permits_prices_whose_digits_share_tokens(price: str, groups: bool) -> None:
    tokenizer = byte_level_bpe(groups)
    tokens = AnswerTokens(tokenizer, make_prompt(("HATS",), "EUR"), END)
    allowed = answer_grammar(tokens)
    ids = tokenizer.encode(f"Product: Blue shirt\nCategory: HATS\nFull Price: {price}", add_special_tokens=False)

    assert tokens.shares_digits
    assert (tokens.note or "").startswith("prices: this model writes up to 2 digits in one token")
    for at, token in enumerate([*ids, tokens.stop]):
        assert token in allowed(ids[:at])
    number = ids.index(tokens.newline, ids.index(tokens.newline) + 1) + 1 + len(tokens.prefixes["price"])
    starts = [tokens.digits[token] for token in allowed(ids[:number]) if token in tokens.digits]
    assert {digits[0] for digits in starts} == set("123456789")
    assert max(map(len, starts)) > 1


def test_nothing_is_said_of_a_tokenizer_that_writes_each_digit_alone(tokens: AnswerTokens) -> None:
    assert tokens.note is None
    assert sorted(tokens.digits.values()) == list("0123456789")
