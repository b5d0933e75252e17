"""The functions of `import enrich`: paths and settings in, frozen results out."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import enrich
from enrich.errors import UsageError
from enrich.settings.run import RunSettings
from enrich.storage import open_store

LENIENT = {"gate": {"allow_weak_adapter": True}}  # 80 steps do not teach it 32 categories


def test_importing_enrich_loads_the_standard_library_only_and_no_module_hides_a_function() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import enrich; ours = set(sys.modules) - before;"
        "import importlib, pkgutil; names = [found.name for found in pkgutil.iter_modules(enrich.__path__)];"
        "print(json.dumps([sorted(ours), names]))"
    )
    loaded, submodules = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))

    assert {name.partition(".")[0] for name in loaded} <= {"enrich", *sys.stdlib_module_names}
    assert not set(submodules) & set(enrich.__all__)


def test_a_catalog_becomes_a_table(story: Any, tmp_path: Path) -> None:
    seen: list[str] = []

    record = enrich.run(
        story.bucket, story.adapter, tmp_path / "out", LENIENT, limit=8, deadline=timedelta(hours=1),
        progress=lambda what, done, total: seen.append(what),
    )  # fmt: skip
    products = enrich.read_products(tmp_path / "out")

    assert record.state == "published"
    assert {"starting the engine", "products", "publishing"} <= set(seen)
    assert products.filter(status="ok").select(pl.len()).collect().item() == record.counts["ok"] > 0


def test_an_adapter_is_scored_on_its_test_split(story: Any) -> None:
    (scored, *_) = enrich.score(story.adapter, story.catalog)

    assert scored.table.height == scored.metrics["test"]["rows"] > 0
    assert scored.what == f"{scored.table.height} products of the test split"
    assert scored.metrics["test"] == story.finetuned.metrics["test"]


@pytest.mark.parametrize("form", ["mapping", "file", "object"])
def test_settings_are_a_mapping_a_file_or_an_object(story: Any, tmp_path: Path, form: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("run: {engine: transformers, shard_size: 7}\n")
    settings: Any = {
        "mapping": {"engine": "transformers", "shard_size": 7},
        "file": file,
        "object": RunSettings(engine="transformers", shard_size=7),
    }[form]

    record = enrich.run(story.bucket, story.adapter, tmp_path / "out", settings, limit=1)

    assert record.run.shard_size == 7


def test_wrong_settings_and_places_are_usage_errors(story: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown key 'epoch'; known keys: "):
        enrich.finetune(story.catalog, tmp_path / "adapter", {"epoch": 3})
    with pytest.raises(UsageError, match=r"no products.parquet yet; publish a run with `enrich run`"):
        enrich.read_products(tmp_path)
    assert os.listdir(tmp_path) == []


def test_products_are_read_from_s3(s3_bucket: str, tmp_path: Path) -> None:
    pl.DataFrame({"title": ["Coat"]}).write_parquet(tmp_path / "products.parquet")
    open_store(s3_bucket).put("out/products.parquet", (tmp_path / "products.parquet").read_bytes())

    assert enrich.read_products(f"{s3_bucket}/out").collect().to_dicts() == [{"title": "Coat"}]
