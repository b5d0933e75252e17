"""Do the three ways of serving an adapter say the same? Merged and unmerged in vLLM, and merged in transformers.

    python -m benchmarks.vllm_parity.run                       # fine-tunes the tiny base for a minute first
    python -m benchmarks.vllm_parity.run --adapter DIRECTORY   # any adapter
    python -m benchmarks.vllm_parity.run --fp8                  # fp8 in LoRA's place; on a CPU keys and values only
    python -m benchmarks.vllm_parity.run --grammar              # the second pass in LoRA's place

In float32 on a CPU, on photos of the sample generator that the adapter was not trained on, several of a product where
its prompts show several, greedy answers are compared token for token, and their log-probabilities. Where tokens differ,
the gap between the best two says whether rounding explains it. Results of a run: see README.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import record
from enrich.answers.completion import Completion
from enrich.engines.adapter import Adapter, read_adapter
from enrich.engines.base import Request
from enrich.engines.start import start_engine
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.pipeline.finetuning import finetune
from enrich.settings.catalog import SampleSettings
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from sample.dialects import DEMO
from sample.draw import render
from sample.make import make_sample
from sample.products import sample_product

SHOWN = 5  # answers that differ
SEED = 99  # of the photos; the catalog's is 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="by default one is made")
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--lora-photos", type=int, default=200, help="of them, how many are served unmerged too")
    parser.add_argument("--fp8", action="store_true", help="compare fp8 with merged, in place of LoRA")
    parser.add_argument("--grammar", action="store_true", help="compare answers under the grammar, in place of LoRA")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ENRICH_CACHE"] = folder
        adapter = read_adapter(options.adapter or make_adapter(Path(folder)))
        requests = list(pages(adapter, options.photos))
        merged = {"engine": "vllm"}
        ways = {"transformers, merged": {"engine": "transformers"}, "vLLM, merged": merged}
        if options.fp8:
            ways["vLLM, fp8 cache"] = {**merged, "kv_cache_dtype": "fp8"}
            if torch.cuda.is_available():
                ways["vLLM, fp8 weights and cache"] = {**ways["vLLM, fp8 cache"], "quantization": "fp8"}
                ways["vLLM, fp8 weights"] = {**merged, "quantization": "fp8"}
        elif not options.grammar:
            ways["vLLM, LoRA"] = {"engine": "vllm", "served": "lora"}
        answers: dict[str, dict[str, Completion]] = {}
        rows = []
        fields = [field.name for field in adapter.prompt.fields]
        for what, way in ways.items():
            shown = requests[: options.lora_photos] if "LoRA" in what else requests
            answers |= answer(adapter, what, way, shown, grammar=options.grammar)
            other = "transformers, merged" if what == "vLLM, merged" else "vLLM, merged"
            rows += [
                compare(f"{what}{pass_}", f"{other}{pass_}", answers, fields)
                for pass_ in ("", GRAMMAR)
                if f"{other}{pass_}" in answers and f"{what}{pass_}" in answers
            ]
    record("vllm_parity", {"": rows})


def make_adapter(folder: Path) -> Path:
    make_sample(str(folder / "catalog"), SampleSettings(products=144, bucket=1, seed=1))
    settings = TrainSettings(model="phi3v-tiny", epochs=6, evaluations=1)
    finetune(str(folder / "catalog"), str(folder / "adapter"), settings)
    return folder / "adapter"


def pages(adapter: Adapter, count: int) -> Iterator[Request]:
    """Prompts of one photo or, where the adapter's show more, of products with 2 to 4 photos."""
    how = adapter.preparation
    most = 4 if how.photos_per_product > 1 else 1
    drawn = (sample_product(SEED, index, DEMO, most) for index in range(10 * count))
    shown = (product for product in drawn if most == 1 or len(product.views) > 1)
    for index, product in enumerate(islice(shown, count)):
        made = []
        for view in product.views[: how.photos_per_product]:
            photo = render(product, index, view=view)
            sizes = ((photo.width, photo.height), (photo.height, photo.width), (600, 600), (300, 1500))
            crops = how.more_crops if made else how.num_crops
            made.append(hd_transform(photo.resize(sizes[index % 4]), crops, how.image_size))
        yield Request(f"{index}", tuple(made))


def answer(
    adapter: Adapter, what: str, way: dict[str, Any], requests: list[Request], *, grammar: bool
) -> dict[str, dict[str, Completion]]:
    """Completions by request, of the free pass and, with `grammar`, of one under the grammar too."""
    engine = start_engine(adapter, RunSettings(vllm={"max_num_seqs": 16, "gpu_memory_utilization": 0.5}, **way))
    found = {}
    for pass_ in ("", GRAMMAR) if grammar else ("",):
        started = time.perf_counter()
        found[f"{what}{pass_}"] = {one.id: one for one in engine.complete(requests, grammar=bool(pass_))}
        print(f"{what}{pass_}: {len(requests) / (time.perf_counter() - started):.1f} photos/s", file=sys.stderr)
    engine.close()
    return found


GRAMMAR = ", under the grammar"


def compare(one: str, other: str, answers: dict[str, dict[str, Completion]], fields: Sequence[str]) -> dict[str, Any]:
    """A row of the table: how many answers are the same, each of the `fields`, and how far log-probabilities differ.

    Prints the first answers that differ.
    """
    pairs = [(answers[one][id], answers[other][id]) for id in answers[one] if id in answers[other]]
    same = [(a, b) for a, b in pairs if a.token_ids == b.token_ids and a.token_ids]
    lines = [(a.text.splitlines(), b.text.splitlines()) for a, b in pairs]
    shares = {
        f"same {field}": f"{np.mean([a[line : line + 1] == b[line : line + 1] for a, b in lines]):.1%}"
        for line, field in enumerate(fields)
    }
    chosen = np.concatenate([np.abs(a.logprobs - b.logprobs) for a, b in same])
    # Under the grammar a step may have fewer than 8 permitted tokens, and -inf in the places of the others.
    tops = [np.stack([a.top_logprobs, b.top_logprobs]) for a, b in same]
    top = max(float(np.abs(np.subtract(*np.where(np.isfinite(found).all(0), found, 0.0))).max()) for found in tops)
    for a, b in [(a, b) for a, b in pairs if a.token_ids != b.token_ids][:SHOWN]:
        step = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), 0)
        gap = a.top_logprobs[step, 0] - a.top_logprobs[step, 1]
        print(f"photo {a.id}: differs at token {step}, where the best two are {gap:.1e} apart: {a.text!r}, {b.text!r}")
    return {
        "compared": f"{one} and {other}",
        "photos": len(pairs),
        "same tokens": len(same),
        **shares,
        "largest log-prob difference": float(chosen.max()),
        "mean": float(chosen.mean()),
        "largest of a step's top 8": top,
    }


if __name__ == "__main__":
    main()
