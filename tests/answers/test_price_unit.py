"""Prices in cents: taught, asked for, parsed, calibrated and shown as amounts of the currency."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from enrich.answers.calibration import Calibration, CategoryCalibration, PriceCalibration
from enrich.answers.fold import fold
from enrich.answers.parse import parse_answer
from enrich.answers.postprocess import Prediction, postprocess
from enrich.answers.prompt import make_prompt, render_answer, taught_answer
from enrich.answers.token_evidence import AnswerTokens
from enrich.catalog.read import Catalog
from enrich.catalog.taught import read_taught, taught_prompt
from enrich.errors import UsageError
from enrich.models.phi3_vision.processing import END
from enrich.pages.units import amount
from enrich.settings.review import ReviewSettings
from enrich.settings.training import TrainSettings
from enrich.vocabulary import ErrorKind
from tests.testing.fake_engine import write_completion

PROMPT = make_prompt(("BREAD", "MILK"), "EUR", price_unit="cents")
CALIBRATION = Calibration(
    price=PriceCalibration(
        quantiles={"0.8": 1.0, "0.9": 2.0}, floor=0.1, lowest=0.29, highest=1.72, rows=50, designs=9
    ),
    category=CategoryCalibration(slope=1.0, intercept=0.0, rows=50),
)


@pytest.mark.parametrize(
    ("price", "written", "read"),
    [
        (0.79, "79", 0.79),
        (0.29, "29", 0.29),
        (12.99, "1299", 12.99),
        (0.004, "1", 0.01),
        (3, "300", 3.0),
        (None, "unknown", None),
    ],
)
def test_cents_are_written_as_whole_numbers_and_read_as_amounts(
    price: float | None, written: str, read: float | None
) -> None:
    text = render_answer(PROMPT, "Rolls", "BREAD", price)
    assert text == f"Product: Rolls\nCategory: BREAD\nFull Price: {written}"
    assert parse_answer(text, PROMPT).price == read


@pytest.mark.parametrize(
    ("language", "currency", "asked"),
    [
        ("en", "EUR", "category and full price in EUR cents."),
        ("en", None, "category and full price in cents."),
        ("de", "CHF", "Kategorie und Originalpreis in CHF Cent."),
        ("fr", "EUR", "catégorie et prix d'origine en EUR centimes."),
        ("es", "MXN", "categoría y precio original en MXN céntimos."),
        ("ja", "USD", "カテゴリ、定価（USD セント）を答えてください。"),
        ("zh", "CNY", "类别和原价（CNY 分）。"),
    ],
)
def test_the_question_names_the_unit(language: str, currency: str | None, asked: str) -> None:
    prompt = make_prompt(("BREAD",), currency, language=language, price_unit="cents")  # type: ignore[arg-type]
    assert prompt.instruction.endswith(asked)


def _predict(tokenizer: PreTrainedTokenizerBase, price: int, rivals: dict[int, float] | None = None) -> Prediction:
    text = f"Product: Rolls\nCategory: BREAD\nFull Price: {price}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    first = len(ids) - len(str(price))  # the tiny base writes each digit as a token
    sure = 1 - sum((rivals or {}).values())
    completion = write_completion(
        tokenizer, text, probabilities={first: sure},
        rivals={first: {tokenizer.encode(f"\n{digit}", add_special_tokens=False)[-1]: share
                        for digit, share in (rivals or {}).items()}},
    )  # fmt: skip
    return postprocess(completion, AnswerTokens(tokenizer, PROMPT, END), CALIBRATION, ReviewSettings())


def test_estimates_and_intervals_are_amounts(tokenizer: PreTrainedTokenizerBase) -> None:
    sure = _predict(tokenizer, 79)
    assert sure.answer
    assert sure.answer.price == 0.79
    assert sure.price_low is not None
    assert sure.price_high is not None
    assert 0.6 < sure.price_low < 0.79 < sure.price_high < 1.0

    unsure = _predict(tokenizer, 79, {4: 0.4})  # 40 to 49 cents as well
    assert unsure.answer
    assert unsure.answer.price == 0.63
    both = fold([sure, unsure], {"category": 2}, CALIBRATION, ReviewSettings())
    assert both.answer
    assert both.answer.price == 0.71


def test_a_price_far_outside_is_reported_as_an_amount(tokenizer: PreTrainedTokenizerBase) -> None:
    found = _predict(tokenizer, 9999)
    assert found.error_kind == ErrorKind.PRICE_OUT_OF_RANGE
    assert found.error_message == "99.99 is far outside the catalog's prices"


def _catalog(
    folder: Path, prices: list[str], currency: str = "EUR", **settings: object
) -> tuple[Catalog, TrainSettings]:
    (folder / "a.jpg").write_bytes(b"a photo")
    rows = [f"{n},Thing {n},THINGS,{price},{currency},a.jpg" for n, price in enumerate(prices)]
    header = "product_code,title,category3_code,full_price,currency_code,local_image_path"
    (folder / "catalog.csv").write_text("\n".join([header, *rows]) + "\n")
    asked = TrainSettings.model_validate(settings)
    return read_taught(folder, asked), asked


@pytest.mark.parametrize(
    ("prices", "currency", "setting", "unit", "note"),
    [
        (["0.29", "0.55", "1.72"], "EUR", "auto", "cents",
         "prices are taught in cents: whole units would change 3 of 3 by over 5 % (the first, 0.29 in row 1, to 1)"),
        (["12.99", "129", "4.95", "89.90"], "EUR", "auto", "whole", None),
        (["0.79", *(["40"] * 30)], "EUR", "auto", "whole",
         "prices are taught in whole units, which changes 1 of 31 by over 5 % (the first, 0.79 in row 1, to 1); "
         "set price_unit: cents to keep them"),
        (["0.79", *(["40"] * 30)], "EUR", "cents", "cents",
         "prices are taught in cents: whole units would change 1 of 31 by over 5 % (the first, 0.79 in row 1, to 1)"),
        (["0.29", "0.55"], "EUR", "whole", "whole",
         "prices are taught in whole units, which changes 2 of 2 by over 5 % (the first, 0.29 in row 1, to 1); "
         "set price_unit: cents to keep them"),
        (["10", "20"], "JPY", "auto", "whole", None),
        ([""], "EUR", "auto", "whole", None),
    ],
)  # fmt: skip
def test_small_prices_are_taught_in_cents_by_themselves(
    tmp_path: Path, prices: list[str], currency: str, setting: str, unit: str, note: str | None
) -> None:
    catalog, settings = _catalog(tmp_path, prices, currency, price_unit=setting)
    prompt = taught_prompt(settings, catalog, catalog.products)
    assert prompt.price_unit == unit
    assert [line for line in catalog.notes if "taught in" in line] == ([note] if note else [])
    answers = [parse_answer(taught_answer(prompt, one), prompt).price for one in catalog.products]
    if unit == "cents":
        assert answers == [one.price for one in catalog.products]


def test_prices_too_large_for_cents_are_refused(tmp_path: Path) -> None:
    catalog, settings = _catalog(tmp_path, ["12000000", "9000000"], price_unit="cents")
    with pytest.raises(UsageError, match=r"a price of 12,000,000 has too many digits in cents; set price_unit: whole"):
        taught_prompt(settings, catalog, catalog.products)


def test_cents_of_yen_are_refused_in_one_line(tmp_path: Path) -> None:
    catalog, settings = _catalog(tmp_path, ["120"], "JPY", price_unit="cents")
    with pytest.raises(UsageError, match="JPY has none; set price_unit: whole"):
        taught_prompt(settings, catalog, catalog.products)


@pytest.mark.parametrize(
    ("value", "currency", "like", "shown"),
    [
        (0.79, None, None, "0.79"),
        (1290.0, "EUR", None, "1,290"),
        (0.612, "EUR", 0.79, "0.61"),
        (103.7, "EUR", 129.0, "104"),
        (12.5, None, None, "12.50"),
        (1234.5, "JPY", None, "1,234"),
        (1234.5, "JPY", 1200.5, "1,234"),
        (1.2345, "KWD", None, "1.234"),
    ],
)
def test_amounts_are_shown_with_the_decimals_of_their_price_and_currency(
    value: float, currency: str | None, like: float | None, shown: str
) -> None:
    assert amount(value, currency, like) == shown
