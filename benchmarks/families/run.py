"""Does a model of each family learn, merge, and answer in vLLM as in transformers?

    python -m benchmarks.families.run                # all families that come from transformers
    python -m benchmarks.families.run qwen3_vl       # one

A random member of a million parameters, made from its family's own configuration classes, memorises one batch,
then 200 products of the sample catalog, in float32 on a CPU. vLLM answers 100 other products with the merged weights
and with the adapter unmerged, transformers with the merged weights. Results of a run: see README.md.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import record
from enrich.engines.parity import ParityRecord
from tests.testing.lifecycle import Lifecycle, live, write_catalogs
from tests.testing.tiny_families import MAKERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=sorted(MAKERS))
    parser.add_argument("--epochs", type=float, default=12)
    options = parser.parse_args()
    learned, served = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ENRICH_CACHE"] = f"{folder}/cache"
        write_catalogs(folder)
        for family in options.families:
            (folder / family).mkdir()
            found = live(family, folder, folder / family, epochs=options.epochs)
            learned.append(_learned(family, found))
            served += [_served(family, found.merged), _served(family, found.lora)]
            print(learned[-1], *served[-2:], sep="\n", file=sys.stderr)
    record("families", {"Learned": learned, "vLLM compared with transformers with the merged weights": served})


def _learned(family: str, found: Lifecycle) -> dict[str, Any]:
    return {
        "family": family,
        "loss of one batch": f"{found.by_heart[0]:.2f} to {found.by_heart[-1]:.4f} in {len(found.by_heart)} steps",
        "loss of 200 products": f"{found.losses[0]:.2f} to {found.losses[-1]:.2f} in {len(found.losses)} steps",
    }


def _served(family: str, found: ParityRecord) -> dict[str, Any]:
    return {
        "family": family,
        "served": found.served,
        "products": found.rows,
        "same prompts": found.same_prompts,
        "same answers": found.same_answers,
        "largest log-prob difference": found.largest_difference,
        "mean": found.mean_difference,
    }


if __name__ == "__main__":
    main()
