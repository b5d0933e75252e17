"""A catalog, a bucket and an adapter of the tiny base, made once for the session by the commands themselves."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from enrich.pipeline.finetuning import Finetuned, finetune
from enrich.settings import SampleSettings, TrainSettings
from sample.make import make_sample


@dataclass(frozen=True)
class Story:
    """Where the parts of a small demo lie."""

    catalog: Path
    bucket: Path
    adapter: Path
    finetuned: Finetuned
    announced: list[str]  # before the training


# Some 80 steps: enough that every answer parses and no price is absurd, which is what these tests rely on.
QUICK = TrainSettings(model="phi3v-tiny", epochs=6, evaluations=1)


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("story")
    catalog, bucket, adapter = root / "catalog", root / "bucket", root / "adapter"
    make_sample(str(catalog), SampleSettings(products=144, bucket=20, seed=1), bucket=str(bucket))
    announced: list[str] = []
    done = finetune(str(catalog), str(adapter), QUICK, announce=announced.append)
    return Story(catalog, bucket, adapter, done, announced)
