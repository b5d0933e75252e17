"""The mean of the tiny base's weights before and after a training (Wortsman et al. 2022, "Model soups").

What a last stage of new words took from the old ones comes back, and the new ones stay: see README.md.
"""

import argparse
import json
from pathlib import Path

import torch

from enrich.models.phi3_vision import Phi3VForCausalLM
from research.tiny_base.loop import find_device, held_out_losses, moved, save
from research.tiny_base.photos import render
from research.tiny_base.tokenizer import make_config, make_processor
from research.tiny_base.train import grown, make_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="the checkpoint that the training began with")
    parser.add_argument("--after", type=Path, required=True, help="the one that it wrote")
    parser.add_argument("--share", type=float, default=0.5, help="of the weights after it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    processor = make_processor()
    record = json.loads((arguments.after / "training.json").read_text())
    device = find_device()
    base = make_base(averaged(arguments.before, arguments.after, arguments.share).to(device))
    # The training's own held-out products, which come after those that it learned from.
    seen = argparse.Namespace(**{**record, "photos": 0, "first": record["first"] + record["photos"]})
    groups = moved(render(processor, seen), device)
    point = {"step": record["steps"], "share": arguments.share, **held_out_losses(base, groups)}
    print(json.dumps(point))
    arguments.out.mkdir(parents=True, exist_ok=True)
    processor.image_processor.save_pretrained(arguments.out)
    processor.tokenizer.save_pretrained(arguments.out)
    save(base, arguments.out, record | {"averaged": arguments.share, "curve": [*record["curve"], point]})


def averaged(before: Path, after: Path, share: float) -> Phi3VForCausalLM:
    """`share` of the weights after a training, the rest of those before it; tokens that it added are taken from it."""
    processor = make_processor()
    config = make_config(processor.tokenizer)
    new = Phi3VForCausalLM.from_pretrained(after, dtype=torch.float32).state_dict()
    old = grown(before, processor, config).state_dict()
    known = json.loads((before / "tokenizer.json").read_text())
    had = {*known["model"]["vocab"], *(token["content"] for token in known["added_tokens"])}
    vocabulary = processor.tokenizer.get_vocab()
    added = torch.tensor([token not in had for token in sorted(vocabulary, key=vocabulary.__getitem__)])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old[name][added] = new[name][added]
    model = Phi3VForCausalLM(config)
    model.load_state_dict({name: torch.lerp(old[name], weight, share) for name, weight in new.items()})
    return model


if __name__ == "__main__":
    main()
