"""Two adapters on products that neither learned from, the frozen slice of people's decisions among them."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enrich.answers.parse import Answer
from enrich.catalog.split import Splits
from enrich.pipeline import challenging
from enrich.pipeline.challenging import FEWEST, Challenge, challenge
from enrich.settings.run import RunSettings
from enrich.vocabulary import Product


def products(name: str, count: int) -> tuple[Product, ...]:
    return tuple(Product(f"{name}{n}", f"{name} {n}", "HATS", 100.0, (f"/{name}{n}.jpg",)) for n in range(count))


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compares adapters, of which the new one answers each product of `missed` with another category and title."""

    def run(splits: Splits, missed: Sequence[Product]) -> Challenge:
        wrong = {one.product_code for one in missed}
        labelled = SimpleNamespace(products=(*splits.train, *splits.test, *splits.frozen))

        def answers(adapter: Any, asked: Sequence[Product], *_: object) -> dict[str, Answer]:
            assert not {one.product_code for one in asked} & {one.product_code for one in splits.train}
            return {
                one.product_code: Answer("Else", "BAGS", 100.0)
                if adapter.id == "new" and one.product_code in wrong
                else Answer(one.title, one.category, one.price)
                for one in asked
            }

        monkeypatch.setattr(challenging, "open_adapter", lambda path, _: SimpleNamespace(id=path.name, path=path))
        monkeypatch.setattr(challenging, "catalog_to_score", lambda *_: (labelled, splits))
        monkeypatch.setattr(challenging, "_answers", answers)
        for name in ("new", "old"):
            (tmp_path / name).mkdir(exist_ok=True)
        return challenge(tmp_path / "new", tmp_path / "old", str(tmp_path), RunSettings())

    return run


def splits(frozen: int) -> Splits:
    return Splits(products("train", 50), (), (), products("test", 40), products("frozen", frozen))


def test_an_adapter_that_is_worse_on_peoples_decisions_loses(compare: Any) -> None:
    parts = splits(FEWEST)
    found = compare(parts, parts.frozen[:15])
    assert not found.won
    assert [one.labels for one in found.contests if one.lost] == ["people's decisions"]
    assert [one.measure for one in found.contests[-1].differences] == ["category", "price"]
    assert found.decided == FEWEST
    assert "by people's decisions" in found.text


def test_few_decisions_decide_nothing(compare: Any) -> None:
    parts = splits(FEWEST - 1)
    found = compare(parts, parts.frozen[:15])
    assert found.won
    assert [one.labels for one in found.contests] == ["today's labels"]
