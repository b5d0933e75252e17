"""An adapter that is no better than guessing: fine-tuning says so, and what it answers is not published by itself."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from enrich.pipeline import finetuning
from enrich.pipeline.finetuning import Finetuned
from enrich.scores.worth import tell
from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.cli import RunCli
from tests.testing.random_adapter import write_random_adapter
from tests.testing.scores import metrics

BAD = tell(metrics(category=(0, 0, 0), price=(7.84, 5, 9), macro_f1=0))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("weak") / "adapter", TINY_MODEL_PATH, num_crops=1, idle=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("SKU1/front.png", "SKU2/front.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.mark.parametrize(("scores", "code"), [(BAD, 3), (tell(metrics()), 0)])
def test_fine_tuning_that_learned_nothing_says_so_and_exits_with_3(
    scores: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    done = Finetuned("shop/adapter", "a1b2", {**scores, "test": SCORES, "intervals": None, "baselines": BASELINES})
    monkeypatch.setattr(finetuning, "finetune", lambda *_, **__: done)

    ended, out, err = run_cli("finetune --catalog shop/catalog --out shop/adapter")

    assert ended == code
    assert "adapter a1b2: shop/adapter" in out
    if code:
        line = err.splitlines()[-1]
        assert line.startswith("error: adapter a1b2 (shop/adapter): The adapter is no better than guessing")
        assert "gate.allow_weak_adapter" in line


SCORES = {"rows": 500, "parse_rate": 1.0, "category_accuracy": 0.0, "category_macro_f1": 0.0, "title_exact": 0.0,
          "title_token_f1": 0.0, "title_edit_similarity": 0.0, "title_chrf": 0.0, "price": None}  # fmt: skip
BASELINES = {"majority_class": {**SCORES, "category_accuracy": 0.3, "price": None}}


def test_a_run_of_two_photos_is_held_until_a_person_releases_it_or_the_settings_allow_it(
    adapter: Path, images: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (adapter / "metrics.json").write_text(json.dumps(BAD))
    output, allowed = tmp_path / "output", tmp_path / "allowed"
    run = f"run --images {images} --adapter {adapter} --run-id night"

    code, out, err = run_cli(f"{run} --output {output}")
    assert code == 3
    assert "0.0% of the categories are right" in out  # before the first photo
    assert err.splitlines()[-1].startswith("error: run night is held back: The adapter is no better than guessing")
    assert not (output / "products.parquet").exists()
    assert "no better than guessing" in (output / "runs/night/report.html").read_text()

    assert run_cli(f"publish --output {output} --run-id night")[0] == 0
    assert pl.read_parquet(output / "products.parquet").height == 2

    settings = tmp_path / "settings.yaml"
    settings.write_text("gate: {allow_weak_adapter: true}\n")
    assert run_cli(f"{run} --output {allowed} --config {settings}")[0] == 0
    assert "no better than guessing" in (allowed / "runs/night/report.html").read_text()


@pytest.mark.parametrize("scores", [None, "{", "[]", json.dumps({"test": {"parse_rate": 1.0}})])
def test_scores_that_are_not_there_are_reported_and_hold_nothing(
    scores: str | None, adapter: Path, images: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (adapter / "metrics.json").unlink(missing_ok=True)
    if scores is not None:
        (adapter / "metrics.json").write_text(scores)

    code, out, _ = run_cli(f"run --images {images} --adapter {adapter} --output {tmp_path}/out --dry-run")

    assert code == 0
    assert "warning: Whether the adapter is better than guessing without a photo" in out


def test_photos_too_many_for_a_product_are_reported_in_dry_run_run_and_report(
    adapter: Path, images: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (adapter / "metrics.json").unlink(missing_ok=True)
    (images / "many").mkdir(parents=True)
    for number in range(30):
        Image.new("RGB", (32, 32), (8 * number, 0, 0)).save(images / "many" / f"{number}.png")
    (tmp_path / "run.yaml").write_text("group_by: folder\n")
    run = f"run --images {images} --adapter {adapter} --output {tmp_path}/out --config {tmp_path}/run.yaml"
    warning = "1 product has more than 24 photos, e.g. 'many' (30 photos): the first in natural order are used"

    for options in ("--dry-run", "--run-id night"):
        code, out, _ = run_cli(f"{run} {options}")
        assert code == 0
        assert f"warning: {warning}" in out
    record = json.loads((tmp_path / "out/runs/night/run.json").read_text())
    assert record["warnings"][0].startswith(warning)
    assert "1 product has more than 24 photos" in (tmp_path / "out/runs/night/report.html").read_text()


def test_an_expression_that_matches_nothing_is_reported_before_anything_starts(
    adapter: Path, images: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "run.yaml").write_text(r"group_by: '(?P<product_id>\d{9})/.*'")
    run = f"run --images {images} --adapter {adapter} --output {tmp_path}/out --config {tmp_path}/run.yaml"
    for options in ("--dry-run", "--run-id night"):
        code, _, err = run_cli(f"{run} {options}")
        assert code == 2
        assert "matches no photo" in err
    assert not list(tmp_path.glob("out/**/*.parquet"))
