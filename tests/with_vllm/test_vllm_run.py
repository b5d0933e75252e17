"""A whole run over a bucket with hostile files: the rows are the transformers engine's."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL_PATH
from sample.make import make_sample
from tests.testing.random_adapter import write_random_adapter
from tests.testing.vllm.serving import settings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

# What tells of the run and the moment, and what is compared with a tolerance.
OF_THE_RUN = ("engine", "run_id", "processed_at")
NUMBERS = ("category_confidence", "price_low", "price_high")


def test_a_bucket(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    make_sample(str(tmp_path / "catalog"), SampleSettings(products=8, bucket=16, seed=2), bucket=str(bucket))
    adapter = write_random_adapter(tmp_path / "adapter", TINY_MODEL_PATH, num_crops=4)

    def run(engine: str) -> pl.DataFrame:
        output = tmp_path / engine
        chosen = settings(engine=engine, shard_size=20, gate={"enabled": False})
        record = run_enrichment(RunRequest(str(bucket), str(adapter), str(output), chosen))
        assert (record.state, record.engine) == ("published", engine)
        return pl.read_parquet(output / "products.parquet").sort("product_id")

    ours, theirs = run("vllm"), run("transformers")

    assert ours.height > 16  # the hostile files too
    assert {"ok", "failed"} == set(ours["status"])
    different: list[Any] = [
        (name, ours[name].to_list(), theirs[name].to_list())
        for name in ours.columns
        if name not in (*OF_THE_RUN, *NUMBERS, "category_alternatives", "last_run_id")
        and ours[name].to_list() != theirs[name].to_list()
    ]
    assert different == []
    for name in NUMBERS:
        assert ours[name].is_null().to_list() == theirs[name].is_null().to_list()
        assert ours[name].drop_nulls().to_list() == pytest.approx(theirs[name].drop_nulls().to_list(), rel=0.01)
