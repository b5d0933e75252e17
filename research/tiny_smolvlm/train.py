"""Train a SmolVLM2 of the tiny base's size from scratch: the same photos and retailers, by transformers' own classes.

One photo of each product, most in 2 x 2 tiles and the whole, 80 image tokens. In thirteen minutes with everything, one
GPU and 16 cores; in English only, as the base that ships was trained:

    python -m research.tiny_smolvlm.train --out tiny-smolvlm --photos 50000 --held-out 500 --minutes 12.5 \
        --whole-minutes 12.5 --japanese 0

Ten minutes more, on other products:

    python -m research.tiny_smolvlm.train --out more --init tiny-smolvlm --photos 50000 --held-out 500 --first 100000 \
        --minutes 9 --whole-minutes 9 --japanese 0 --retailers 48 --learning-rate 6e-4 --warmup 100

What it can see in its own words, and what it is worth when it is fine-tuned:

    python -m research.tiny_base.quality --base tiny-smolvlm
    make demo MODEL=tiny-smolvlm
"""

import argparse
import json
import os
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from enrich.models.auto.model import AutoModel
from enrich.models.auto.processor import PhotoProcessor, load_processor
from enrich.models.smolvlm import FACTS, FAMILY
from research.tiny_base.loop import Base, find_device, make_parser, train
from research.tiny_base.photos import CROPS_SHARE, Drawn, Group, Products, ask, draw_all, draw_size, spell
from research.tiny_smolvlm.checkpoint import TILE, write_files
from sample.dialects import BASE
from sample.draw import render as draw
from sample.products import sample_product

QUESTION = "What product is this?"  # any one, to see where questions stand in a prompt


def main() -> None:
    start = time.monotonic()
    arguments = make_parser(__doc__).parse_args()
    torch.manual_seed(arguments.seed)
    write_files(arguments.out)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the renderers, one to a core
    groups = render(arguments)
    rendering = time.monotonic() - start
    print(f"rendered {arguments.photos + arguments.held_out} products in {rendering:.0f} s", flush=True)
    model, before = AutoModel(FACTS).empty_model(arguments.out), None
    if arguments.init:
        model.load_state_dict(load_file(arguments.init / "model.safetensors"))
        before = json.loads((arguments.init / "training.json").read_text())
    base = Base(model.to(find_device()), shown, Path(__file__).parent / "card.md")
    train(base, groups, arguments, {"before": before, "rendering_seconds": round(rendering)}, start)


def render(arguments: argparse.Namespace) -> list[Group]:
    """Draws the products and spells what is asked of them."""
    one = partial(render_one, arguments.out, arguments.seed, arguments.retailers)
    return [spell_prompts(open_processor(arguments.out), group) for group in draw_all(one, arguments)]


@cache
def open_processor(out: Path) -> PhotoProcessor:
    """The checkpoint's, for pages of any size that is drawn."""
    return load_processor(FACTS, out, num_crops=max(CROPS_SHARE))


def render_one(out: Path, seed: int, retailers: int, index: int) -> Drawn:
    """Product `index`: its photo's tiles, then the whole, as the processor makes them before it normalises."""
    rng = np.random.default_rng((17, seed, index))
    squares, side = draw_size(rng)
    product = sample_product(seed, index, BASE, 1)
    page = FAMILY.layout.page(draw(product, index, side), squares, TILE)
    tiles = open_processor(out).preprocess(page, dtype=torch.uint8)["pixel_values"][0]
    return Drawn(
        tiles.permute(0, 2, 3, 1).contiguous().numpy(),
        page.shape[:2],
        np.empty((0, TILE, TILE, 3), np.uint8),
        ask(product, retailers, rng),
    )


def spell_prompts(processor: PhotoProcessor, group: Products) -> Group:
    """See `spell`; as `enrich` spells a prompt."""
    first, tokenizer = group[0][0], processor.tokenizer
    photo = processor.page_tokens(np.empty((*first.size, 3), np.uint8))
    ids = processor.prompt_ids(QUESTION, [photo])
    opening = len(ids) - ids[::-1].index(-1) + 1  # a mark ends a photo
    after = tokenizer.decode(ids[opening:]).replace(QUESTION, "{}")
    end = tokenizer.convert_tokens_to_ids(FACTS.stop_tokens[0])
    spelled = spell(tokenizer, group, ids[:opening], after, end, len(first.crops))
    for variant, (question, answer) in enumerate(first.questions):
        whole = processor.whole_ids(question, [photo], answer)
        if spelled.input_ids[variant, 0, spelled.mask[variant, 0]].tolist() != whole:
            raise SystemExit(f"{question!r} and {answer!r} are spelled in another way than enrich spells them")
    return spelled


def shown(group: Group, rows: torch.Tensor) -> dict[str, Any]:
    """See `Base`; normalised as the image processor does it, by a mean and a deviation of a half."""
    return {"pixel_values": group.crops[rows].permute(0, 1, 4, 2, 3).float() / 127.5 - 1}


if __name__ == "__main__":
    main()
