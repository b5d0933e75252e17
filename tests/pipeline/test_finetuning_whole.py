"""Fine-tuning end to end: the adapter directory, its records, and its scores on a catalog."""

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from enrich.catalog.split import Splits
from enrich.engines.adapter import adapter_id, read_adapter
from enrich.errors import UsageError
from enrich.pipeline import finetuning
from enrich.pipeline.finetuning import finetune
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.scoring import score_adapter
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.training import TrainSettings

FILES = {
    "adapter_config.json", "adapter_model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "prompt.json", "calibration.json", "metrics.json", "scores.parquet", "train.json",
    "README.md", "dropped.csv", "taught.parquet",
}  # fmt: skip


def test_the_adapter_directory_is_whole(story: Any) -> None:
    assert {path.name for path in story.adapter.iterdir()} == FILES
    adapter = read_adapter(story.adapter)
    assert adapter.id == story.finetuned.adapter == adapter_id(story.adapter)
    assert (adapter.base, adapter.preparation.num_crops, adapter.prompt.currency) == ("phi3v-tiny", 4, "EUR")
    assert "T-SHIRTS" in adapter.prompt.categories
    assert adapter.calibration.price is not None
    assert not list(story.adapter.parent.glob(".adapter.*"))  # no training state is left behind


def test_what_is_ahead_is_announced_and_recorded(story: Any) -> None:
    record = json.loads((story.adapter / "train.json").read_text())
    *ahead, took = story.announced
    learned = f"learned of product {record['preflight']['product_code']}"
    assert [line.partition(":")[0] for line in ahead] == ["trained", learned, "photos", "memory"]
    assert took.startswith(f"training time: {record['seconds']:.0f} s: ")
    assert record["preflight"]["steps"] == record["planned_steps"] == record["steps"]
    assert record["preflight"]["learned"].endswith("<|end|>")


def test_a_label_leak_is_refused_before_anything_is_read(
    story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(products: Any, settings: Any) -> Splits:
        return Splits(train=tuple(products), validation=(), calibration=(), test=tuple(products[:1]))

    monkeypatch.setattr(finetuning, "split_catalog", leaky)
    with pytest.raises(UsageError, match=r"^label leak: product .* of the train split and product .* of the test "):
        finetune(str(story.catalog), str(tmp_path / "out"), TrainSettings(model="phi3v-tiny"))
    assert list(tmp_path.iterdir()) == []


def test_metrics_stand_next_to_base_and_baselines(story: Any) -> None:
    metrics = json.loads((story.adapter / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(story.finetuned.metrics))
    assert set(metrics["baselines"]) == {"majority_class", "category_median"}
    assert metrics["test"]["rows"] == metrics["base"]["rows"] == metrics["rows"]["test"]
    assert metrics["base"]["category_accuracy"] == 0  # its categories are another retailer's
    assert 0 <= metrics["intervals"]["coverage"] <= 1
    card = (story.adapter / "README.md").read_text()
    assert "| adapter |" in card
    assert "| base without adapter |" in card


def test_scores_on_the_same_catalog_are_those_of_the_test_split(story: Any) -> None:
    scored = score_adapter(str(story.adapter), str(story.catalog), RunSettings())[0]
    assert scored.what == f"{scored.metrics['test']['rows']} products of the test split"
    assert scored.metrics["test"] == story.finetuned.metrics["test"]
    for name, one in scored.metrics["estimates"].items():  # batches differ, so the last digits of sums do
        assert one == pytest.approx(story.finetuned.metrics["estimates"][name], rel=1e-4, abs=1e-4), name


def test_scores_are_written_with_plots_and_the_optimum(story: Any, tmp_path: Path) -> None:
    [scored, *_] = score_adapter(str(story.adapter), str(story.catalog), RunSettings(), out=str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} >= {"metrics.json", "scores.parquet", "scores.html"}
    table = pl.read_parquet(tmp_path / "scores.parquet")
    assert table.drop("review_reasons").equals(scored.table.drop("review_reasons"))
    assert table["best_price"].is_not_null().all()  # truth.json is next to the catalog
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    right = (table["category"] == table["answered_category"]).sum() / table.height
    assert metrics["estimates"]["category_accuracy"]["value"] == pytest.approx(right)
    assert metrics["ideal"]["price_mdape"] < metrics["estimates"]["price_mdape"]["value"]
    assert metrics["category_by_level"]["3"]["accuracy"] == pytest.approx(right)
    assert metrics["category_by_level"]["1"]["accuracy"] >= right
    assert metrics["estimates"]["category_hierarchical_f1"]["value"] >= right
    page = (tmp_path / "scores.html").read_text()
    assert page.count("data:image/svg+xml") == 5


def test_a_run_reports_how_far_its_adapter_is_trusted(story: Any, tmp_path: Path) -> None:
    settings = RunSettings(machine_price_per_hour=0.5, gate=GateSettings(enabled=False))
    output = tmp_path / "output"
    first = run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(output), settings, limit=6))
    again = run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(output), settings))
    assert first.changes is None
    assert again.changes is not None
    assert (again.changes.compared, again.changes.gone) == (0, 0)
    assert again.cost is not None
    assert again.cost.per_1000_photos == pytest.approx(0.5 * again.seconds / 3600 / again.counts["rows"] * 1000)
    page = (output / "runs" / again.run.run_id / "report.html").read_text()
    assert page.count("data:image/svg+xml") == 5
    history = f"read_parquet('{output}/history/**/*.parquet', hive_partitioning = false)"
    rows = duckdb.execute(
        f"SELECT status, count(*) FROM {history} WHERE run_id = '{again.run.run_id}' GROUP BY status"
    ).fetchall()
    for status, count in rows:
        assert f'data-figure="{status}"' in page
        assert re.search(rf'data-figure="{status}"[^>]*>{count}<', page)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/model", "model /nowhere/model: "),
        ("not a model", "model not a model: "),
    ],
)
def test_an_unknown_model_is_a_usage_error(story: Any, tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        finetune(str(story.catalog), str(tmp_path / "out"), TrainSettings(model=model))
    assert str(error.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_out_may_not_be_a_file(story: Any, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    out.write_text("mine")
    with pytest.raises(UsageError, match="is a file; name a directory"):
        finetune(str(story.catalog), str(out), TrainSettings(model="phi3v-tiny"))
    assert out.read_text() == "mine"
