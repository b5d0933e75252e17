"""A catalog, a bucket and an adapter of the tiny base, made once for the session by the commands themselves."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock

from enrich.pages import report
from enrich.pipeline.finetuning import Finetuned, finetune
from enrich.settings.catalog import SampleSettings
from enrich.settings.training import TrainSettings
from sample.make import make_sample


@dataclass(frozen=True)
class Story:
    """Where the parts of a small demo are."""

    catalog: Path
    bucket: Path
    adapter: Path
    finetuned: Finetuned
    announced: list[str]  # before the training


# Some 80 steps: enough that every answer parses and no price is absurd, which is what these tests rely on.
QUICK = TrainSettings(model="phi3v-tiny", epochs=6, evaluations=1)


@pytest.fixture(scope="session", autouse=True)
def _figures_are_drawn_once() -> Iterator[None]:
    """Every run's report shows the figures of its adapter's scores: 2 s each, and the adapter is the same."""
    drawn: dict[bytes, list[tuple[str, str]]] = {}
    draw = report._figures

    def draw_once(scores: pl.DataFrame) -> list[tuple[str, str]]:
        key = scores.serialize()
        if key not in drawn:
            drawn[key] = draw(scores)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_figures", draw_once)
        yield


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Story:
    """The first of pytest-xdist's workers makes it; the others wait and read it."""
    own = tmp_path_factory.getbasetemp()
    root = (own if worker_id == "master" else own.parent) / "story"
    root.mkdir(exist_ok=True)
    catalog, bucket, adapter = root / "catalog", root / "bucket", root / "adapter"
    with FileLock(root / "lock"):
        told = root / "told.pickle"
        if not told.exists():
            make_sample(str(catalog), SampleSettings(products=144, bucket=20, seed=1), bucket=str(bucket))
            announced: list[str] = []
            done = finetune(str(catalog), str(adapter), QUICK, on_message=announced.append)
            told.write_bytes(pickle.dumps((done, announced)))
    return Story(catalog, bucket, adapter, *pickle.loads(told.read_bytes()))
