"""Fine-tuning and scoring of a catalog whose products have two photos, from the table to the numbers."""

import json
from pathlib import Path

import polars as pl
import pytest

from enrich.engines import transformers_engine
from enrich.engines.adapter import read_adapter
from enrich.engines.base import Request
from enrich.errors import UsageError
from enrich.pipeline import calibrating
from enrich.pipeline.finetuning import finetune
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.scoring import score_adapter
from enrich.settings.catalog import SampleSettings
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.training import TrainSettings
from sample.make import make_sample

SETTINGS = TrainSettings(
    model="phi3v-tiny", epochs=1, evaluations=1, max_new_tokens=48, photos_per_product=2, more_crops=1, num_crops=2
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next product's photo is each product's second one; one of these is broken, one missing."""
    folder = tmp_path_factory.mktemp("several") / "catalog"
    make_sample(str(folder), SampleSettings(products=24, bucket=1, holdout=0, seed=2))
    table = pl.read_csv(folder / "catalog.csv", infer_schema=False)
    photos = table["local_image_path"].to_list()
    (folder / "images/broken.jpg").write_bytes(b"no photo")
    further = [*photos[1:-2], "images/missing.jpg", "images/broken.jpg", photos[0]]
    pairs = pl.Series([f"{main}|{other}" for main, other in zip(photos, further, strict=True)])
    table.with_columns(local_image_path=pairs).write_csv(folder / "catalog.csv")
    return folder


def test_a_catalog_of_two_photos_a_product(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    complete = transformers_engine.TransformersEngine.complete

    def watched(self, requests, *, grammar=False):  # type: ignore[no-untyped-def]
        def seen() -> list[Request]:
            found = list(requests)
            shown.extend(len(request.pages) for request in found)
            return found

        return complete(self, seen(), grammar=grammar)

    monkeypatch.setattr(transformers_engine.TransformersEngine, "complete", watched)
    told: list[str] = []
    made = finetune(str(catalog), str(tmp_path / "adapter"), SETTINGS, on_message=told.append)
    assert told[0] == "47 photos of 24 products"
    assert told[1].startswith("photos left out: 1 of 48 photos: 1 photo not found (row 22, product ")
    adapter = read_adapter(tmp_path / "adapter")
    assert (adapter.preparation.photos_per_product, adapter.preparation.more_crops) == (2, 1)
    assert set(shown) <= {1, 2}
    assert shown.count(2) > shown.count(1)
    assert json.loads((tmp_path / "adapter" / "train.json").read_text())["settings"]["photos_per_product"] == 2
    shown.clear()
    (scored,) = score_adapter(made.uri, str(catalog), RunSettings(engine="transformers", device="cpu"))
    assert "products of the test split" in scored.what
    assert scored.metrics["test"] == made.metrics["test"]
    assert 2 in shown


def test_sizes_that_cannot_fit_stop_before_anything_is_trained(catalog: Path, tmp_path: Path) -> None:
    large = SETTINGS.model_copy(update={"max_new_tokens": 3900, "num_crops": 16})
    with pytest.raises(UsageError, match=r"^photos_per_product 2: a prompt and its answer could take 4,\d\d\d tokens"):
        finetune(str(catalog), str(tmp_path / "adapter"), large)
    assert not (tmp_path / "adapter").exists()


def test_products_of_more_photos_than_a_prompt_shows_are_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "FOLDED_AT_LEAST", 3)
    places = {name: str(tmp_path / name) for name in ("catalog", "adapter", "bucket", "output")}
    make_sample(places["catalog"], SampleSettings(products=40, bucket=6, holdout=0, photos=4), bucket=places["bucket"])
    quick = TrainSettings(model="phi3v-tiny", epochs=0.3, evaluations=1, split={"calibration": 0.2})  # type: ignore[arg-type]
    finetune(places["catalog"], places["adapter"], quick)
    folded = read_adapter(Path(places["adapter"])).calibration.folded
    assert folded is not None
    assert folded.category.rows >= 3
    settings = RunSettings(
        engine="transformers", group_by="folder", photos_answered=3, gate=GateSettings(enabled=False)
    )
    record = run_enrichment(RunRequest(places["bucket"], places["adapter"], places["output"], settings))
    assert record.state == "published"
    rows = pl.read_parquet(Path(places["output"]) / "products.parquet").filter(pl.col("status") == "ok")
    good = rows["photos"].list.eval(pl.element().struct.field("error_kind").is_null()).list.sum()
    assert rows["photos_answered"].to_list() == good.clip(upper_bound=3).to_list()
    assert rows["photos_answered"].max() == 3
    tokens = rows.group_by("photos_answered").agg(pl.col("prompt_tokens").mean()).sort("photos_answered")
    assert tokens["prompt_tokens"].is_sorted()
    again = run_enrichment(RunRequest(places["bucket"], places["adapter"], places["output"], settings))
    assert again.state == "nothing_to_do"
    one = settings.model_copy(update={"photos_answered": None})
    refreshed = run_enrichment(RunRequest(places["bucket"], places["adapter"], places["output"], one))
    assert refreshed.by_reason["model"] == rows.height
