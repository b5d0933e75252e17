"""Token ids and labels: the bugs that vision-language fine-tuning is known for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from enrich.answers.plain_text import MAX_TITLE
from enrich.answers.prompt import SHORTEST_BUDGET, make_prompt, render_answer
from enrich.errors import UsageError
from enrich.models.phi3_vision.processing import END, render_turn
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.settings.models import TINY_MODEL_PATH
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.examples import IGNORED, LONGEST_BUDGET, Example, build_examples, check_answers, needed_budget
from tests.testing.tiny_job import TinyJob


@pytest.fixture
def examples(job: TinyJob) -> list[Example]:
    return job.build(job.products)[0]


def test_only_the_answer_and_its_end_are_learned(examples: list[Example], job: TinyJob) -> None:
    for example in examples:
        product = example.product
        learned = [label for label in example.labels if label != IGNORED]
        text = render_answer(job.prompt, product.title, product.category, product.price) + END
        assert job.tiny.processor.tokenizer.decode(learned) == text
        assert len(example.labels) == len(example.input_ids)
        assert example.labels[-len(learned) :] == learned == example.input_ids[-len(learned) :]


def test_the_stop_token_is_learned_though_padding_and_eos_are_others(examples: list[Example], job: TinyJob) -> None:
    tokenizer = job.tiny.processor.tokenizer
    end = tokenizer.convert_tokens_to_ids(END)
    assert end not in (tokenizer.pad_token_id, tokenizer.eos_token_id, job.tiny.model.config.eos_token_id)
    assert {example.labels[-1] for example in examples} == {end}


def test_prompt_ids_are_a_prefix_of_the_whole_texts_ids(examples: list[Example], job: TinyJob) -> None:
    for example in examples:
        product = example.product
        text = (
            render_turn(job.prompt.instruction)
            + render_answer(job.prompt, product.title, product.category, product.price)
            + END
        )
        assert example.input_ids == job.tiny.processor.token_ids(text, [example.num_image_tokens])


def test_prompt_ids_are_those_of_serving(examples: list[Example], job: TinyJob) -> None:
    for example in examples:
        served = job.tiny.processor(render_turn(job.prompt.instruction), Image.open(example.product.image_paths[0]))
        assert served["input_ids"][0].tolist() == list(example.prompt_ids)


def test_bos_stands_where_the_processor_puts_it_and_nowhere_else(examples: list[Example], job: TinyJob) -> None:
    bos = job.tiny.processor.tokenizer.bos_token_id
    for example in examples:
        places = [place for place, token in enumerate(example.input_ids) if token == bos]
        last_image_token = max(place for place, token in enumerate(example.input_ids) if token < 0)
        assert places == [0, last_image_token + 1]


def test_no_image_token_is_cut(examples: list[Example], job: TinyJob) -> None:
    photos = Photos(examples, job.tiny.processor, job.settings().limits)
    batch = Collator(job.tiny.processor)(photos.__getitems__(range(len(photos))))
    features = embed_images(job.tiny.model, batch, photos, job.settings())["image_features"]
    assert [example.num_image_tokens for example in examples] == [len(tokens) for tokens in features]
    assert len({len(tokens) for tokens in features}) > 1  # photos of another shape take another number


def test_a_row_over_max_length_is_refused_not_cut(job: TinyJob) -> None:
    long = replace(job.products[0], product_code="long", title="x" * 60)
    with pytest.raises(UsageError) as raised:
        job.build([*job.products, long], job.prompt.model_copy(update={"max_new_tokens": 200}), max_length=200)
    assert str(raised.value) == (
        "product long: photo, prompt and answer take 208 tokens, more than max_length 200; "
        "raise max_length or lower photo_tokens"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_paths": ("/nowhere/a.png",)}, "photo /nowhere/a.png: No such file or directory"),
        ({"title": "Red<|end|>Scarf"}, "a value spells a control token of the model"),
        ({"title": "Red "}, "a value has line breaks, or spaces at its ends"),
        (
            {"title": "Red▁Scarf"},
            "a value contains text that the model's tokenizer cannot write",
        ),  # it takes ▁ for a space
        ({"title": "x" * 60}, "answer of 101 tokens, more than max_new_tokens 70"),
        ({"title": "x" * 201}, "title has 201 characters, more than 200"),
        (
            {"category": "WARM\nFull Price: 1"},
            "expected the lines Product, Category, Full Price, got "
            "'Product: Red\\nCategory: WARM\\nFull Price: 1\\nFull Price: 12'",
        ),
    ],
)
def test_a_row_that_would_teach_nonsense_is_dropped_with_its_reason(
    changes: dict[str, Any], reason: str, job: TinyJob
) -> None:
    bad = replace(job.products[0], product_code="bad", **changes)
    examples, dropped = job.build([bad, *job.products])
    assert [example.product for example in examples] == job.products
    assert [(row.product_code, row.reason) for row in dropped] == [("bad", reason)]


def test_a_damaged_photo_is_dropped(job: TinyJob, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(Path(job.products[0].image_paths[0]).read_bytes()[:60])
    bad = replace(job.products[0], product_code="cut", image_paths=(str(path),))
    _, (dropped,) = job.build([bad, *job.products])
    assert dropped.product_code == "cut"
    assert dropped.reason.startswith(f"photo {path}: ")


@pytest.mark.parametrize(("good", "bad"), [(1, 2), (0, 1), (0, 0)])
def test_a_catalog_that_is_mostly_unusable_is_refused(good: int, bad: int, job: TinyJob) -> None:
    rows = job.products[:good] + [replace(job.products[0], image_paths=("/nowhere/a.png",))] * bad
    first = "; the first, product P0: photo /nowhere/a.png: No such file or directory" if bad else ""
    with pytest.raises(UsageError) as raised:
        job.build(rows)
    assert str(raised.value) == (
        f"catalog: {good} of {good + bad} rows of a split can be trained on{first}; fix the catalog"
    )


def test_many_photos_are_read_in_order(job: TinyJob) -> None:
    many = [replace(job.products[number % 5], product_code=str(number)) for number in range(300)]
    seen: list[int] = []
    examples, dropped = build_examples(many, job.tiny.processor, job.prompt, job.settings(), seen.append)
    assert [example.product for example in examples] == many
    assert not dropped
    assert seen == list(range(1, 301))


def test_no_title_or_category_makes_one_of_the_tokenizers_own_tokens(job: TinyJob) -> None:
    processor = load_processor(TINY_MODEL_PATH)  # its control tokens are those of the full-size model
    added = processor.tokenizer.added_tokens_decoder
    assert len(added) > 40
    prompt = job.prompt.model_copy(update={"max_new_tokens": 200})
    for number, token in added.items():
        product = replace(job.products[0], product_code="bad")
        for bad in (replace(product, title=f"Red {token.content} Hat"), replace(product, category=f"H{token.content}")):
            (dropped,) = check_answers([bad, job.products[1]], processor, prompt)
            assert dropped.product_code == "bad", number
            assert dropped.kind == "a value spells a control token of the model"


def test_nothing_changes_a_text_into_a_control_token_after_it_was_checked(job: TinyJob) -> None:
    prompt = job.prompt.model_copy(update={"max_new_tokens": 200})
    added = set(job.tiny.processor.tokenizer.added_tokens_decoder)
    for text in (
        "<|\u200bend|>",
        "\uff1c|end|\uff1e",
        "<\uff5cend\uff5c>",
        "<| end |>",
        "<|END|>",
        "&lt;|end|&gt;",
        "<0x0A>",
    ):
        assert added.isdisjoint(job.tiny.processor.tokenizer(text, add_special_tokens=False).input_ids)
        row = replace(job.products[0], title=text)
        kinds = [one.kind for one in check_answers([row], job.tiny.processor, prompt)]
        assert kinds in (
            [],
            [CONTROL],
            [UNREAD],
        )


CONTROL = "a value spells a control token of the model"
UNREAD = "a value cannot be read back"


def test_the_longest_answer_of_the_catalog_says_how_long_answers_may_be(job: TinyJob) -> None:
    processor = load_processor(TINY_MODEL_PATH)
    prompt = make_prompt((), "JPY", language="ja")
    short, long, absurd = (replace(job.products[0], title="龘" * length) for length in (3, 60, MAX_TITLE + 1))
    tokens = len(processor.tokenizer(render_answer(prompt, long.title, long.category, long.price)).input_ids)
    assert tokens > 3 * 60  # bytes of UTF-8

    assert needed_budget([], processor, prompt) == needed_budget([short, absurd], processor, prompt) == SHORTEST_BUDGET
    budget = needed_budget([short, long], processor, prompt)
    assert tokens * 1.2 < budget <= tokens * 1.25
    assert not check_answers([short, long], processor, prompt.model_copy(update={"max_new_tokens": budget}))
    spelled = [replace(job.products[0], title="𠮷" * MAX_TITLE, category="𠮷" * 100)]  # 4 bytes each
    assert needed_budget(spelled, processor, prompt) == LONGEST_BUDGET
    (dropped,) = check_answers(spelled, processor, prompt.model_copy(update={"max_new_tokens": LONGEST_BUDGET}))
    assert dropped.kind == "answer longer than max_new_tokens 1024, raise it"
