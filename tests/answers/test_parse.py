"""Three lines or nothing: what the model writes is untrusted."""

from typing import Literal, get_args
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrich.answers.fields import Field
from enrich.answers.parse import Answer, AnswerMalformed, parse_answer
from enrich.answers.plain_text import MAX_TITLE, excerpt, holds_control_characters
from enrich.answers.prompt import make_prompt

Form = Literal["NFC", "NFD"]
PROMPT = make_prompt(("HATS",), "EUR")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Product: Felt Hat\nCategory: HATS\nFull Price: 120", Answer("Felt Hat", "HATS", 120)),
        ("Product: Felt Hat\nCategory: HATS\nFull Price: unknown", Answer("Felt Hat", "HATS", None)),
        ("Product:Felt Hat\nCategory:HATS\nFull Price:120", Answer("Felt Hat", "HATS", 120)),
        ("  Product: Felt Hat  \nCategory: HATS \nFull Price: 120 \n", Answer("Felt Hat", "HATS", 120)),
        ("Product: Felt Hat\r\nCategory: HATS\r\nFull Price: 120\r\n", Answer("Felt Hat", "HATS", 120)),
        ("Product: Product: x\nCategory: Full Price: 3\nFull Price: 0", Answer("Product: x", "Full Price: 3", 0)),
        ("Product: =cmd()|'/c calc'!A1\nCategory: A & B\nFull Price: 7", Answer("=cmd()|'/c calc'!A1", "A & B", 7)),
        ("Product: Überzug 帽子 🙂\nCategory: É\nFull Price: 007", Answer("Überzug 帽子 🙂", "É", 7)),
        ("Product: Cafe\u0301 ハ\u3099ッグ ﾊﾞ\nCategory: E\u0301\nFull Price: 7", Answer("Café バッグ ﾊﾞ", "É", 7)),
        ("Product: a\nCategory: b\nFull Price: 999999999", Answer("a", "b", 999_999_999)),
        (f"Product: {'x' * MAX_TITLE}\nCategory: b\nFull Price: 1", Answer("x" * MAX_TITLE, "b", 1)),
    ],
)
def test_an_answer_is_read(text: str, answer: Answer) -> None:
    assert parse_answer(text, PROMPT) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "Product: Felt Hat\nCategory: HATS",
        "Product: Felt Hat\nFull Price: 120\nCategory: HATS",
        "product: Felt Hat\ncategory: HATS\nfull price: 120",
        "Product: Felt Hat\n\nCategory: HATS\nFull Price: 120",
        "Product: Felt Hat\nCategory: HATS\nCategory: BAGS\nFull Price: 120",
        "Product: Felt Hat\nCategory: HATS\nFull Price: 120\nIgnore the rules",
        "Here it is:\nProduct: Felt Hat\nCategory: HATS\nFull Price: 120",
        "Product: Felt Hat\nCategory: HATS\nFull Price: 120 EUR",
        "Product: Felt Hat\nCategory: HATS\nFull Price: 1,290",
        "Product: Felt Hat\nCategory: HATS\nFull Price: -5",
        "Product: Felt Hat\nCategory: HATS\nFull Price: 12.5",
        "Product: Felt Hat\nCategory: HATS\nFull Price: Unknown",
        "Product: Felt Hat\nCategory: HATS\nFull Price:",
        "Product: Felt Hat\nCategory: HATS\nFull Price: 1234567890",
        "Product: Felt Hat\nCategory: HATS\nFull Price: ١٢",
        "Product:\nCategory: HATS\nFull Price: 1",
    ],
)
def test_what_is_not_three_lines_is_no_answer(text: str) -> None:
    with pytest.raises(AnswerMalformed) as caught:
        parse_answer(text, PROMPT)

    assert str(caught.value) == f"expected the lines Product, Category, Full Price, got {excerpt(text)!r}"


@pytest.mark.parametrize(("title", "category"), [(" ", "HATS"), ("   ", "HATS"), ("Hat", " "), ("\u3000", "HATS")])
def test_an_empty_field_is_no_answer(title: str, category: str) -> None:
    text = f"Product: {title}\nCategory: {category}\nFull Price: 1"

    with pytest.raises(AnswerMalformed) as caught:
        parse_answer(text, PROMPT)

    assert str(caught.value) == f"{'category' if title.strip() else 'title'} is empty in {text!r}"


@pytest.mark.parametrize(
    "character",
    ["\0", "\x07", "\x1b", "\r", "\t", "\x7f", "\x85", "\u200b", "\u202e", "\ufeff", "\u2028", "\u2029", "\ue000"],
)
def test_control_characters_are_refused(character: str) -> None:
    for title, category in ((f"Felt{character}Hat", "HATS"), ("Hat", f"HA{character}TS")):
        text = f"Product: {title}\nCategory: {category}\nFull Price: 1"
        with pytest.raises(AnswerMalformed) as caught:
            parse_answer(text, PROMPT)
        assert (
            str(caught.value) == f"{'title' if title != 'Hat' else 'category'} contains control characters in {text!r}"
        )
    assert holds_control_characters(character)


def test_a_title_too_long_is_refused() -> None:
    with pytest.raises(AnswerMalformed) as caught:
        parse_answer(f"Product: {'x' * (MAX_TITLE + 1)}\nCategory: HATS\nFull Price: 1", PROMPT)

    assert str(caught.value) == "title has 201 characters, more than 200"


@given(st.text(max_size=60), st.text(max_size=30), st.integers(0, 10**12))
def test_whatever_is_accepted_is_one_visible_line_a_field(title: str, category: str, price: int) -> None:
    try:
        answer = parse_answer(f"Product: {title}\nCategory: {category}\nFull Price: {price}", PROMPT)
    except AnswerMalformed:
        return
    for field in (answer.title, answer.category):
        assert field.strip() == field != ""
        assert len(field.splitlines()) == 1
    assert answer.price == price < 10**9


@pytest.mark.parametrize(
    ("text", "length", "expected"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("", 3, ""), ("x" * 81, 80, "x" * 79 + "…")]
)
def test_an_excerpt_says_that_it_was_cut(text: str, length: int, expected: str) -> None:
    assert excerpt(text, length) == expected


@pytest.mark.parametrize("token", ["<|end|>", "<|assistant|>", "<|image_1|>", "</s>", "\uff1c|end|\uff1e"])
def test_an_answer_that_spells_a_control_token_is_malformed(token: str) -> None:
    for title, category in ((f"Red {token}", "HATS"), ("Red Hat", f"HATS{token}")):
        with pytest.raises(AnswerMalformed, match="spells a control token of the model"):
            parse_answer(f"Product: {title}\nCategory: {category}\nFull Price: 12", PROMPT)


def test_joiners_belong_to_words_of_other_scripts_and_hide_in_no_others() -> None:
    persian, family = "\u0645\u06cc\u200c\u062f\u0648\u0632\u06cc\u0645", "\U0001f468\u200d\U0001f467"
    assert (
        parse_answer(f"Product: {persian} {family}\nCategory: HATS\nFull Price: 12", PROMPT).title
        == f"{persian} {family}"
    )
    for hidden in ("s\u200chirt", "\u200c\u0645", "\u0645\u200d", "\u0645\u200c\u200d\u0645", "\u0645\u200b\u0645"):
        assert holds_control_characters(hidden)


@pytest.mark.parametrize("form", get_args(Form))
def test_labels_and_answers_are_one_however_their_accents_are_composed(form: Form) -> None:
    colour = Field(name="colour", kind="choice", label="Cate\u0301gorie", column="Cate\u0301", values=("Ble\u0301",))
    prompt = make_prompt(("CAFE\u0301",), None, others=[colour])
    assert (prompt.categories, prompt.fields[2].values, prompt.fields[2].column) == (("CAFÉ",), ("Blé",), "Cate\u0301")
    text = normalize(form, "Product: x\nCategory: CAFÉ\nCatégorie: Blé\nFull Price: 1")
    assert parse_answer(text, prompt) == Answer("x", "CAFÉ", 1, {"colour": "Blé"})
