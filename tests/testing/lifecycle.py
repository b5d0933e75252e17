"""A family's whole way on a tiny random member: fine-tuned on 200 sample products, merged, and served both ways."""

import re
from dataclasses import dataclass
from pathlib import Path

from enrich.engines.parity import ParityRecord
from enrich.pipeline.comparing import measure_parity
from enrich.pipeline.finetuning import finetune, overfit
from enrich.settings.catalog import SampleSettings
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from sample.make import make_sample
from tests.testing.tiny_families import write_member

PRODUCTS, OTHERS = 200, 100  # that are taught, and that are answered


@dataclass(frozen=True)
class Lifecycle:
    """What was learned, and how vLLM's answers compare with those of transformers, which has the merged weights.

    by_heart: losses of one batch, step by step.
    losses: of the training.
    merged, lora: vLLM with the merged weights, and with the adapter unmerged, on OTHERS products.
    """

    by_heart: tuple[float, ...]
    losses: tuple[float, ...]
    merged: ParityRecord
    lora: ParityRecord


def write_catalogs(folder: Path) -> None:
    """One to learn from, and one of other products."""
    for name, products, seed in (("taught", PRODUCTS, 1), ("others", OTHERS, 99)):
        make_sample(str(folder / name), SampleSettings(products=products, bucket=1, seed=seed))


def live(family: str, catalogs: Path, folder: Path, *, epochs: float) -> Lifecycle:
    """Take a member of `family` all the way, in a new folder."""
    base = write_member(family, folder / "base", vocabulary=0.2)
    taught, others, adapter = (str(place) for place in (catalogs / "taught", catalogs / "others", folder / "adapter"))
    settings = TrainSettings(
        model=str(base), photo_tokens=64, learning_rate=1e-2, epochs=epochs, evaluations=1, device="cpu"
    )
    by_heart = overfit(taught, settings)
    told: list[str] = []
    finetune(taught, adapter, settings, lambda what, *_: told.append(what))
    losses = [float(found[1]) for what in told if (found := re.match(r"training, loss ([\d.]+)", what))]

    def served(how: str) -> ParityRecord:
        run = RunSettings.model_validate({"served": how, "device": "cpu", "vllm": {"max_num_seqs": 16}})
        return measure_parity(adapter, others, run, OTHERS, None)

    return Lifecycle(by_heart, tuple(losses), served("merged"), served("lora"))
