"""Prompt and answer are worded once, and read back from an adapter as they were."""

from pathlib import Path

import pytest

from enrich.errors import UsageError
from enrich.parse import Answer, parse_answer
from enrich.prompt import ANSWER_TEMPLATE, Prompt, make_prompt, render_answer, render_prompt


def test_the_prompt_is_the_model_cards() -> None:
    assert render_prompt(make_prompt(("HATS",), "EUR")) == (
        "<|user|>\n<|image_1|>\nWhat product is this? Give its title, category and full price in EUR.<|end|>\n"
        "<|assistant|>\n"
    )


def test_a_catalog_without_currency_asks_for_none() -> None:
    prompt = make_prompt(("HATS", "BAGS"), None)

    assert prompt.instruction == "What product is this? Give its title, category and full price."
    assert prompt.categories == ("BAGS", "HATS")


@pytest.mark.parametrize(
    ("price", "written"),
    [(None, "unknown"), (0.2, "1"), (0.5, "1"), (1.49, "1"), (19.99, "20"), (1290.0, "1290"), (123456.7, "123457")],
)
def test_a_price_is_a_bare_integer(price: float | None, written: str) -> None:
    answer = render_answer(make_prompt(("HATS",), "EUR"), "A {felt} hat", "HATS", price)

    assert answer == f"Product: A {{felt}} hat\nCategory: HATS\nFull Price: {written}"
    assert parse_answer(answer) == Answer("A {felt} hat", "HATS", None if written == "unknown" else int(written))


def test_a_prompt_is_read_back(tmp_path: Path) -> None:
    prompt = make_prompt(("ÜBERZÜGE", "帽子"), "EUR")
    path = tmp_path / "prompt.json"
    path.write_text(prompt.model_dump_json(), "utf-8")

    assert Prompt.read(path) == prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{",
            "prompt: Invalid JSON: EOF while parsing an object at line 1 column 1; fine-tune again with this version",
        ),
        ('{"instruction": "What?"}', "categories: Field required; fine-tune again with this version"),
        (
            '{"instruction": "What?", "categories": ["HATS"], "temperature": 1}',
            "temperature: Extra inputs are not permitted; fine-tune again with this version",
        ),
        (
            '{"instruction": "What?", "categories": ["HATS"], "answer_template": "{title}"}',
            f"answer_template: Value error, prompt version 1 answers as {ANSWER_TEMPLATE!r}; "
            "fine-tune again with this version",
        ),
    ],
)
def test_a_prompt_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompt.json"
    path.write_text(text)

    with pytest.raises(UsageError) as caught:
        Prompt.read(path)

    assert str(caught.value) == f"{path}: {message}"


def test_a_missing_prompt_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"

    with pytest.raises(UsageError) as caught:
        Prompt.read(path)

    assert str(caught.value) == f"{path}: No such file or directory; name an adapter made by `enrich finetune`"
