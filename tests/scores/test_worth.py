"""An adapter compared with guessing without a photo."""

import json
import math
from typing import Any

import pytest

from enrich.answers.parse import Answer
from enrich.scores.metrics import baselines, score
from enrich.scores.worth import ENOUGH_ROWS, WORTH_KEY, judge_worth, tell
from enrich.vocabulary import Product
from tests.testing.scores import metrics


def test_an_adapter_that_learned_its_catalog_beats_its_baselines() -> None:
    assert judge_worth(metrics()).state == "beats"


def test_an_adapter_below_every_baseline_is_weak_and_the_line_has_the_numbers() -> None:
    worth = judge_worth(metrics(category=(0, 0, 0), price=(7.84, 5, 9), title=(0.02, 0.01, 0.03), macro_f1=0))

    assert worth.state == "weak"
    assert worth.text == (
        "The adapter is no better than guessing without a photo: "
        "0.0% of the categories are right, 30.0% if it is always the most frequent one; "
        "prices are off by 784% (median), by 50% if it is always the median price; "
        "titles score 0.02 (chrF), 0.10 if it is always the most frequent title"
    )


@pytest.mark.parametrize(
    "lost",
    [
        {"category": (0.1, 0.05, 0.15)},
        {"price": (0.9, 0.8, 1.0)},
        {"price": (1.0, 1.0, 1.0)},  # no price was answered
        {"title": (0.05, 0.03, 0.07)},
    ],
)
def test_one_field_that_is_clearly_worse_than_a_guess_is_enough(lost: dict[str, Any]) -> None:
    worth = judge_worth(metrics(**lost))

    assert worth.state == "weak"
    assert len(worth.reasons) == 1


def test_an_adapter_that_always_says_the_most_frequent_category_is_weak() -> None:
    assert judge_worth(metrics(category=(0.3, 0.26, 0.34), macro_f1=0.05)).state == "weak"


def test_where_one_category_has_nearly_all_products_finding_the_others_counts() -> None:
    nearly_all: dict[str, Any] = {"category": (0.949, 0.93, 0.968), "guessed": 0.95}

    assert judge_worth(metrics(**nearly_all, macro_f1=0.6)).state == "beats"
    assert judge_worth(metrics(**nearly_all, macro_f1=0.05)).state == "weak"


def test_a_catalog_of_one_category_and_no_prices_is_judged_by_its_titles() -> None:
    alone: dict[str, Any] = {"category": (1.0, 1.0, 1.0), "guessed": 1.0, "price": None, "guessed_price": None}

    assert judge_worth(metrics(**alone)).state == "beats"
    assert judge_worth(metrics(**alone, title=(0.1, 0.05, 0.2))).state == "weak"


def test_prices_that_no_photo_shows_do_not_make_good_categories_worthless() -> None:
    assert judge_worth(metrics(price=(0.51, 0.45, 0.57))).state == "beats"


def test_few_test_rows_are_noise_and_many_are_not() -> None:
    ahead: dict[str, Any] = {"category": (0.4, 0.25, 0.55), "price": (0.52, 0.4, 0.8), "macro_f1": 0.2}

    assert judge_worth(metrics(**ahead, rows=ENOUGH_ROWS - 1)).state == "beats"
    assert judge_worth(metrics(**ahead, rows=ENOUGH_ROWS)).state == "weak"


@pytest.mark.parametrize(
    "unread",
    [None, {}, {"test": 1}, {"test": {"rows": 5}, "baselines": {}}, {"test": [], "estimates": "x", "baselines": None}],
)
def test_scores_that_are_missing_or_of_another_version_are_unknown_and_not_bad(unread: Any) -> None:
    assert judge_worth(unread).state == "unknown"


def test_numbers_that_are_none_count_for_nothing() -> None:
    assert judge_worth(metrics(category=(math.nan, 0, 1), price=None, title=None)).state == "unknown"


def test_an_adapter_scored_before_titles_were_is_still_judged() -> None:
    older = metrics(category=(0, 0, 0), macro_f1=0)
    del older["baselines"]["majority_class"]["title_chrf"]

    assert judge_worth(older).state == "weak"


def test_the_verdict_is_kept_with_the_metrics_in_numbers_and_in_words() -> None:
    bad = tell(metrics(category=(0, 0, 0), macro_f1=0))
    good = tell(metrics() | {"verdicts": [{"ok": True, "text": "x"}]})

    assert bad[WORTH_KEY]["state"] == "weak"
    assert not bad["verdicts"][0]["ok"]
    assert bad["verdicts"][0]["text"].startswith("The adapter is no better than guessing")
    assert (good[WORTH_KEY], good["verdicts"]) == ({"state": "beats", "reasons": []}, [{"ok": True, "text": "x"}])
    assert judge_worth(json.loads(json.dumps(bad))).state == "weak"


def test_guesses_and_answers_are_measured_in_the_form_that_is_judged() -> None:
    products = [Product(str(n), f"Coat {n}", "Coats" if n % 3 else "Bags", 10.0 + n, ()) for n in range(60)]
    said = [Answer(product.title, product.category, round(product.price or 0)) for product in products]

    found = metrics() | {"test": score(products, said), "baselines": baselines(products, products)}

    assert judge_worth(found).state == "beats"
