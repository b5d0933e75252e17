"""Train the tiny base in enrich/assets/phi3v-tiny: Phi-3-vision's architecture, from scratch, 8.2 M parameters.

It learns to see on the sample generator's photos under another retailer's vocabulary and prices (the BASE dialect) and
under those of made-up retailers, so that fine-tuning on a catalog has real work to do. First it sees one photo of each
product, then several, at last also answers in Japanese and with further fields. One GPU; the first three at commit
d94a4c1, where the tokenizer had no Japanese, the others at d30fc86:

    python -m research.tiny_base.train --out one --photos 90000 --minutes 6
    python -m research.tiny_base.train --out two --init one --photos 22000 --held-out 500 --several 0.75 \
        --first 400000 --minutes 3.2 --learning-rate 6e-4 --warmup 100
    python -m research.tiny_base.train --out three --init two --photos 45000 --held-out 500 --several 0.75 \
        --first 500000 --minutes 4.8 --learning-rate 6e-4 --warmup 100 --retailers 48
    python -m research.tiny_base.train --out four --init three --photos 40000 --held-out 500 --several 0.75 \
        --first 600000 --minutes 10 --learning-rate 6e-4 --warmup 100 --retailers 96
    python -m research.tiny_base.average --before three --after four --share 0.5 --out tiny-base
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from research.tiny_base.loop import Base, find_device, make_parser, train
from research.tiny_base.photos import Group, pixel_values, render
from research.tiny_base.tokenizer import make_config, make_processor


def main() -> None:
    start = time.monotonic()
    parser = make_parser(__doc__)
    parser.add_argument("--several", type=float, default=0.0, help="share of products that have 1 to 4 photos")
    parser.add_argument("--tokenizer-only", action="store_true", help="write tokenizer, processor and config, and stop")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    processor = make_processor()
    config = make_config(processor.tokenizer)
    arguments.out.mkdir(parents=True, exist_ok=True)
    processor.image_processor.save_pretrained(arguments.out)
    processor.tokenizer.save_pretrained(arguments.out)
    config.save_pretrained(arguments.out)
    if arguments.tokenizer_only:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the renderers, one to a core
    groups = render(processor, arguments)
    rendering = time.monotonic() - start
    print(f"rendered {arguments.photos + arguments.held_out} products in {rendering:.0f} s", flush=True)
    before = json.loads((arguments.init / "training.json").read_text()) if arguments.init else None
    model = grown(arguments.init, processor, config) if arguments.init else Phi3VForCausalLM(config)
    record = {"before": before, "rendering_seconds": round(rendering)}
    train(make_base(model.to(find_device())), groups, arguments, record, start)


def make_base(model: Phi3VForCausalLM) -> Base:
    return Base(model, shown, Path(__file__).parent / "card.md")


def shown(group: Group, rows: torch.Tensor) -> dict[str, Any]:
    """See `Base`."""
    pixels, sizes = pixel_values(group.crops[rows], group.size, group.further[rows])
    return {"pixel_values": pixels, "image_sizes": sizes}


def grown(init: Path, processor: Phi3VProcessor, config: Phi3VConfig) -> Phi3VForCausalLM:
    """The checkpoint `init` under today's tokenizer: a new token starts as the mean of those that spelled it before."""
    before = Phi3VForCausalLM.from_pretrained(init, dtype=torch.float32)
    old, tokens = Tokenizer.from_file(str(init / "tokenizer.json")), processor.tokenizer.get_vocab()
    known, weights = old.get_vocab(), before.state_dict()
    rows = [
        [known[token]] if token in known else old.encode(token).ids[2:]  # behind <s> and the mark of a word's start
        for token in sorted(tokens, key=tokens.__getitem__)
    ]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.stack([weights[name][row].mean(dim=0) for row in rows])
    model = Phi3VForCausalLM(config)
    model.load_state_dict(weights)
    return model


if __name__ == "__main__":
    main()
