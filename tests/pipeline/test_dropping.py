"""Rows that a catalog loses on its way into training: told, listed, and a stop at a tenth."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from enrich.answers.prompt import Prompt
from enrich.catalog.read import read_catalog
from enrich.engines.adapter import adapter_id, read_adapter
from enrich.errors import UsageError
from enrich.pipeline import finetuning
from enrich.pipeline.finetuning import finetune, overfit
from enrich.pipeline.scoring import products_to_score
from enrich.settings.catalog import SampleSettings
from enrich.settings.training import TrainSettings
from enrich.train.record import Dropped
from flows.parameters import FINETUNE, LOOKING, FinetuneSettings, read_text
from sample.make import make_sample
from tests.testing.cli import RunCli

TINY = TrainSettings(model="phi3v-tiny", epochs=1, evaluations=1, max_new_tokens=48)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    make_sample(str(tmp_path / "catalog"), SampleSettings(products=40, bucket=1, holdout=0, seed=2))
    return tmp_path / "catalog"


def _damage(catalog: Path, rows: range, **cells: str) -> None:
    table = pl.read_csv(catalog / "catalog.csv", infer_schema=False).with_row_index("n", offset=1)
    changed = [
        pl.when(pl.col("n").is_in(list(rows))).then(pl.lit(text)).otherwise(pl.col(name)).alias(name)
        for name, text in cells.items()
    ]
    table.with_columns(changed).drop("n").write_csv(catalog / "catalog.csv")


def _listed(path: Path) -> list[tuple[str, str]]:
    table = pl.read_csv(path, infer_schema=False)
    assert table.columns == ["row", "product_code", "reason", "detail"]
    return list(zip(table["row"], table["reason"], strict=True))


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"local_image_path": "images/gone.jpg"}, "photo not found"),
        ({"title": ""}, "no title"),
        ({"full_price": "on request"}, "price cannot be used; taught without it"),
        ({"currency_code": "<|end|><|assistant|>"}, "price cannot be used; taught without it"),
        ({"title": "word " * 30}, "answer longer than max_new_tokens 48, raise it"),
        ({"title": "Hat <|end|>"}, "a value spells a control token of the model"),
        ({"title": "Hat \ue000"}, "a value contains control characters"),
        ({"title": "Hat \u2581"}, "a value cannot be read back"),
    ],
)
def test_finetuning_stops_when_more_than_a_tenth_of_the_rows_goes_and_lists_them(
    catalog: Path, tmp_path: Path, cells: dict[str, str], reason: str
) -> None:
    _damage(catalog, range(1, 6), **cells)
    with pytest.raises(UsageError) as refused:
        finetune(str(catalog), str(tmp_path / "out"), TINY)
    told = str(refused.value)
    assert told.startswith(
        f"catalog {catalog}: 5 of 40 rows cannot be used as they are, more than a tenth: 5 {reason} (row 1"
    )
    assert "--allow-dropped (allow_dropped: true)" in told
    assert f"{tmp_path}/out.dropped.csv lists them" in told
    assert _listed(tmp_path / "out.dropped.csv") == [(str(row), reason) for row in range(1, 6)]
    assert not (tmp_path / "out").exists()


def _without_training(monkeypatch: pytest.MonkeyPatch, *unlearnable: Dropped) -> list[Prompt]:
    """Fine-tuning without a model: what it decides, tells and writes around the training. Returns its prompts."""
    prompts: list[Prompt] = []

    def train(rows: object, unseen: object, prompt: Prompt, _: object, base: Path, work: Path, **more: Any) -> Any:
        prompts.append(prompt)
        more["check_dropped"](unlearnable)
        (work / "adapter").mkdir(parents=True)
        (work / "adapter/train.json").write_text("{}")
        return SimpleNamespace(rows=SimpleNamespace(dropped=unlearnable, lost_photos=()))

    monkeypatch.setattr(finetuning, "train", train)
    monkeypatch.setattr(finetuning, "_calibrate_and_score", lambda *_: ({}, []))
    monkeypatch.setattr(finetuning, "render_card", lambda *_: "")
    return prompts


def test_what_is_allowed_to_go_is_reported_and_listed_in_the_adapter(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _damage(catalog, range(1, 5), local_image_path="images/gone.jpg")
    _damage(catalog, range(5, 7), full_price="on request")
    _damage(catalog, range(7, 8), title="word " * 30)
    out = tmp_path / "out"
    with pytest.raises(UsageError):
        finetune(str(catalog), str(out), TINY)
    assert (tmp_path / "out.dropped.csv").exists()
    code = read_catalog(catalog).products[-1].product_code
    _without_training(monkeypatch, Dropped(product_code=code, reason="photo x: cut", kind="photo cannot be read"))
    told: list[str] = []
    done = finetune(str(catalog), str(out), TINY.model_copy(update={"allow_dropped": True}), on_message=told.append)
    assert [line.partition(" (row")[0] for line in told] == [
        "left out: 4 of 40 rows: 4 photo not found",
        "without price: 2 of 40 rows: 2 price cannot be used; taught without it",
        "cannot be trained on: 1 of 40 rows: 1 answer longer than max_new_tokens 48, raise it",
        "cannot be trained on: 1 of 40 rows: 1 photo cannot be read",
    ]
    assert [row for row, _ in _listed(out / "dropped.csv")] == [*map(str, range(1, 8)), "40"]
    assert not (tmp_path / "out.dropped.csv").exists()  # the refusal is over
    (out / "dropped.csv").unlink()
    assert done.adapter == adapter_id(out)  # a record changes no answer


def test_numbers_with_decimals_lose_no_row(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.read_csv(catalog / "catalog.csv", infer_schema=False)
    heel = pl.Series("heel", ["6.5", "3,25", "4", ""] * 10)
    table.with_columns(heel).write_csv(catalog / "catalog.csv")
    prompts = _without_training(monkeypatch)
    told: list[str] = []
    settings = TrainSettings.model_validate({**TINY.model_dump(), "fields": {"heel": {"kind": "number"}}})

    finetune(str(catalog), str(tmp_path / "out"), settings, on_message=told.append)

    assert told == []
    assert [(field.name, field.decimals) for field in prompts[0].further] == [("heel", 2)]


def test_a_japanese_catalog_loses_no_row_and_says_how_long_its_answers_are(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row, colour in zip(range(1, 41, 4), "赤青緑黒白灰紫桃茶黄", strict=True):
        _damage(catalog, range(row, row + 4), title=f"{colour}い絣縞柄の長袖麻襯衣風連衣裙" * 2)
    _damage(catalog, range(1, 41), category3_code="ワンピース")
    prompts = _without_training(monkeypatch)
    told: list[str] = []
    settings = TINY.model_copy(update={"max_new_tokens": None, "language": "ja", "terse": True})

    finetune(str(catalog), str(tmp_path / "out"), settings, on_message=told.append)

    assert told == []
    assert prompts[0].categories == ("ワンピース",)
    assert [field.label for field in prompts[0].fields] == ["製品", "カテゴリ", "定価"]
    assert 64 < prompts[0].max_new_tokens < 200
    assert prompts[0].terse
    with pytest.raises(UsageError, match=r"40 of 40 rows cannot be used as they are.*longer than max_new_tokens 64"):
        finetune(str(catalog), str(tmp_path / "short"), settings.model_copy(update={"max_new_tokens": 64}))


def test_photos_that_cannot_be_decoded_count_too(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = read_catalog(catalog).products[:5]
    _without_training(
        monkeypatch, *(Dropped(product_code=p.product_code, reason="x", kind="photo cannot be read") for p in products)
    )
    with pytest.raises(
        UsageError, match="5 of 40 rows cannot be used as they are, more than a tenth: 5 photo cannot be"
    ):
        finetune(str(catalog), str(tmp_path / "out"), TINY)
    assert len(_listed(tmp_path / "out.dropped.csv")) == 5


def test_scoring_tells_what_is_left_out_of_a_catalog(story: Any, catalog: Path) -> None:
    _damage(catalog, range(1, 5), local_image_path="images/gone.jpg")
    told: list[str] = []
    products, _ = products_to_score(read_adapter(story.adapter), catalog, on_message=told.append)
    assert len(products) == 36
    assert [line.partition(" (row")[0] for line in told] == ["left out: 4 of 40 rows: 4 photo not found"]


def test_overfitting_stops_and_tells_as_training_does(catalog: Path) -> None:
    _damage(catalog, range(1, 6), title="")
    with pytest.raises(UsageError, match="5 of 40 rows cannot be used as they are, more than a tenth: 5 no title"):
        overfit(str(catalog), TINY)


def test_a_category_of_rows_that_cannot_be_learned_is_not_asked_for(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _damage(catalog, range(1, 3), category3_code="word " * 30)
    prompts = _without_training(monkeypatch)
    finetune(str(catalog), str(tmp_path / "out"), TINY)
    assert [category for category in prompts[0].categories if not category.startswith("word")]
    assert not [category for category in prompts[0].categories if category.startswith("word")]


@pytest.mark.parametrize("flag", [False, True])
def test_the_command_has_a_flag_for_it(catalog: Path, tmp_path: Path, flag: bool, run_cli: RunCli) -> None:
    _damage(catalog, range(1, 6), title="")
    config = tmp_path / "settings.yaml"
    config.write_text(json.dumps({"model": "/nowhere/model"}))
    command = f"finetune --catalog={catalog} --out={tmp_path}/out --config={config}"
    code, _, said = run_cli(f"{command} --allow-dropped" if flag else command)
    assert code == 2
    assert ("--allow-dropped" in said) is not flag
    assert ("/nowhere/model" in said) is flag


def test_the_form_of_the_flows_has_it_too() -> None:
    assert read_text(FinetuneSettings, "finetune: {allow_dropped: true}", "finetune", LOOKING).finetune.allow_dropped
    assert not read_text(FinetuneSettings, FINETUNE, "finetune", LOOKING).finetune.allow_dropped
