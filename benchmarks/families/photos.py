"""CPU time from a photo's page to a model's input, by family: with transformers' image processor alone, and as `enrich`
does it (a table of a byte's 256 values; patches and tiles cut here) in training, which takes float32, and for vLLM's
process, which takes bfloat16 or bytes; the latter on one thread and on as many as torch would use.

Image processors have the published sizes, and a photo has 1000 x 1333 pixels. The ways take turns.

    python -m benchmarks.families.photos
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time, sleep
from typing import Any

import numpy as np
import torch

from benchmarks.families.members import PHI, SIZES, full_maker
from benchmarks.families.parts import PHOTO_TOKENS
from benchmarks.results import record
from enrich.models.checkpoint import load_processor
from enrich.models.registry import family_of
from tests.testing.tiny_families import write_processor
from tests.testing.tiny_phi3v import pattern_image

THREADS = torch.get_num_threads()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    record("families", {"Photos to inputs": [measure(name, arguments.rounds) for name in SIZES if name != PHI]})


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Median milliseconds of CPU time; inputs are equal."""
    with tempfile.TemporaryDirectory() as folder:
        processor, family = processor_of(name, Path(folder)), family_of(Path(folder))
    prepared = processor.preparation
    page = family.layout.page(pattern_image(1000, 1333), prepared.num_crops, prepared.image_size)
    settings = processor.facts.settings(prepared.num_crops, prepared.image_size)

    def stock() -> Any:
        return processor.images(
            page, do_resize=False, input_data_format="channels_last", return_tensors="pt", **settings
        )["pixel_values"]

    def here() -> Any:
        return processor.preprocess(page)["pixel_values"]

    def sent() -> Any:
        return processor.preprocess(page, dtype=torch.uint8 if processor.facts.bytes_for_vllm else torch.bfloat16)

    assert torch.equal(stock(), here())
    ways = ((stock, 1), (here, 1), (sent, 1), (sent, THREADS))
    times = np.array([[seconds(*way) for way in ways] for _ in range(rounds)])
    before, after, served, shared = (median(column) * 1000 for column in times.T)
    return {
        "model": SIZES[name].published,
        "image tokens": processor.page_tokens(page).total,
        "transformers, ms": before,
        "here in training, ms": after,
        "times": before / after,
        "for vLLM, ms": served,
        f"on {THREADS} threads, ms": shared,
    }


def processor_of(name: str, path: Path) -> Any:
    """From files without weights."""
    maker = full_maker(name)
    tokenizer = maker.tokenizer()
    maker.config(len(tokenizer), tokenizer.convert_tokens_to_ids).save_pretrained(path)
    write_processor(maker, tokenizer, path)
    return load_processor(path, photo_tokens=PHOTO_TOKENS)


def seconds(work: Callable[[], Any], threads: int) -> float:
    """CPU time of all threads, of which those without work spin for a while."""
    torch.set_num_threads(threads)
    started = process_time()
    work()
    sleep(0.02)  # until they sleep
    return process_time() - started


if __name__ == "__main__":
    main()
