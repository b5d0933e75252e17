"""Fine-tuning, scoring and a run of an adapter that looks twice, from the catalog to the table."""

import json
import math
from pathlib import Path
from statistics import median_low

import polars as pl
import pytest

from enrich.answers.looks import doubt
from enrich.console import console, print_scores
from enrich.engines.adapter import read_adapter
from enrich.engines.transformers_engine import open_adapter
from enrich.pipeline import looking
from enrich.pipeline.finetuning import finetune
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.scoring import score_adapter
from enrich.settings.catalog import SampleSettings
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.training import TrainSettings
from sample.make import make_sample

SETTINGS = TrainSettings(model="phi3v-tiny", epochs=3, evaluations=1, looks=(1, 4))


def test_an_adapter_of_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An adapter that learned for seconds doubts everything alike: a threshold in the middle shows both looks.
    monkeypatch.setattr(
        looking, "choose_least_doubt", lambda _, first, __: median_low(filter(math.isfinite, map(doubt, first)))
    )
    catalog, adapter = str(tmp_path / "catalog"), str(tmp_path / "adapter")
    bucket, output = str(tmp_path / "bucket"), str(tmp_path / "out")
    make_sample(catalog, SampleSettings(products=60, bucket=12, holdout=0, seed=1), bucket=bucket)
    made = finetune(catalog, adapter, SETTINGS)

    loaded = read_adapter(Path(adapter))
    first = loaded.calibration.first
    assert first is not None
    assert (first.squares, loaded.preparation.num_crops) == (1, 4)
    assert first.calibration.category != loaded.calibration.category  # each look is calibrated by itself
    assert first.calibration.category.review_below == loaded.calibration.category.review_below

    quick, close, both = made.metrics["looks"]
    assert [way["looks"] for way in (quick, close, both)] == [[1], [4], [1, 4]]
    assert quick["prompt_tokens"] < close["prompt_tokens"]
    expected = quick["prompt_tokens"] + both["second_looks"] * close["prompt_tokens"]
    assert both["prompt_tokens"] == pytest.approx(expected, rel=0.05)
    with console.capture() as told:
        print_scores(made.metrics)
    assert "1 then 4" in told.get()
    assert "| 1 then 4 |" in (Path(adapter) / "README.md").read_text()

    settings = RunSettings(engine="transformers", shard_size=5, gate=GateSettings(enabled=False))
    (scored,) = score_adapter(adapter, catalog, settings)  # the served way: first looks, then second ones
    assert scored.metrics["test"] == made.metrics["test"]
    assert scored.metrics["second_looks"] == both["second_looks"]

    run_enrichment(RunRequest(bucket, adapter, output, settings, run_id="r"))
    rows = pl.read_parquet(f"{output}/products.parquet").filter(pl.col("status") == "ok")
    assert set(rows["looks"]) == {1, 2}
    tokens = dict(rows.group_by("looks").agg(pl.col("prompt_tokens").median()).iter_rows())
    assert tokens[1] == quick["prompt_tokens"] < tokens[2]
    assert "second looks" in Path(f"{output}/runs/r/report.html").read_text()
    assert json.loads((Path(adapter) / "train.json").read_text())["settings"]["looks"] == [1, 4]
    assert open_adapter(Path(adapter)).id == made.adapter
