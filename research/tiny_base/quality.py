"""What a tiny base knows in its own words: BASE's products that it never saw, photographed three ways.

    python -m research.tiny_base.quality --base enrich/assets/phi3v-tiny --photos 600

Small drawings are what it was pretrained on; photos of a catalog's size, and those as JPEGs, are what fine-tuning shows
it. What it gets right here, fine-tuning need not teach it to see. Results: see README.md.
"""

import argparse
import io
from collections import defaultdict
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from enrich.answers.parse import Answer, AnswerMalformed, parse_answer
from enrich.models.checkpoint import load_model, load_processor, stop_ids
from enrich.models.generation import generate_answers
from enrich.models.registry import family_of
from research.tiny_base.retailers import base_prompt
from sample.dialects import BASE
from sample.draw import render
from sample.encode import encode
from sample.products import sample_product

SEED, FIRST = 7, 200_000  # the base's own catalog, behind the photos it was trained on
WAYS: dict[str, tuple[int, int] | None] = {
    "small, as in pretraining": (224, 480),
    "as in a catalog, 400 to 2,000 px": None,
    "the same as JPEG": None,
}
BATCH = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=600)
    arguments = parser.parse_args()
    print("| photos | category | title exact | price off the noiseless one, median | missed most: titles of |")
    print("| --- " * 5 + "|")
    for way in WAYS:
        with Pool() as pool:
            photos = pool.map(partial(draw, way), range(arguments.photos), chunksize=8)
        print(row(way, answers(arguments.base, photos)), flush=True)


def draw(way: str, index: int) -> Image.Image:
    """Photo `index`, drawn in one of WAYS."""
    rng = np.random.default_rng((5, index))
    sides = WAYS[way]
    side = int(rng.integers(*sides)) if sides else None
    image = render(sample_product(SEED, FIRST + index, BASE), FIRST + index, side)
    return Image.open(io.BytesIO(encode(image, "jpg", rng))) if "JPEG" in way else image


def answers(base: Path, photos: list[Image.Image]) -> list[Answer | None]:
    """The base's greedy answers under its own prompt; None where one cannot be read."""
    processor, model = load_processor(base), load_model(base, dtype=torch.float32, device="cpu").eval()
    layout, how = family_of(base).layout, processor.preparation
    found: dict[int, Answer | None] = {}
    by_size = sorted(range(len(photos)), key=lambda index: photos[index].size)
    for first in range(0, len(photos), BATCH):
        rows = by_size[first : first + BATCH]
        pages = [layout.page(photos[index].convert("RGB"), how.num_crops, how.image_size) for index in rows]
        inputs = processor.inputs(base_prompt().instruction, [[page] for page in pages])
        with torch.no_grad():
            generated = generate_answers(model, inputs, max_new_tokens=48, stop_ids=stop_ids(processor))
        for index, one in zip(rows, generated, strict=True):
            try:
                found[index] = parse_answer(
                    processor.tokenizer.decode(one.token_ids, skip_special_tokens=True), base_prompt()
                )
            except AnswerMalformed:
                found[index] = None
    return [found[index] for index in range(len(photos))]


def row(way: str, found: list[Answer | None]) -> str:
    """A line of the table."""
    products = [sample_product(SEED, FIRST + index, BASE) for index in range(len(found))]
    pairs = list(zip(products, found, strict=True))
    titles = [bool(answer and answer.title == product.title) for product, answer in pairs]
    off = [abs(np.log(a.price / p.noiseless_price)) for p, a in pairs if a and a.price]
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for product, right in zip(products, titles, strict=True):
        by_kind[product.kind].append(right)
    worst = sorted(by_kind, key=lambda kind: np.mean(by_kind[kind]))[:3]
    category = np.mean([bool(answer and answer.category == product.category) for product, answer in pairs])
    missed = ", ".join(f"{kind} {1 - np.mean(by_kind[kind]):.0%}" for kind in worst)
    return f"| {way} | {category:.1%} | {np.mean(titles):.1%} | {np.median(off):.1%} | {missed} |"


if __name__ == "__main__":
    main()
