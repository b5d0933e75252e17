"""Train the tiny base in enrich/assets/phi3v-tiny: Phi-3-vision's architecture, from scratch, 7.7 M parameters.

It learns to see on the sample generator's photos under another retailer's vocabulary and prices (the BASE dialect) and
under those of made-up retailers, so that fine-tuning on a catalog has real work to do. First it sees one photo of each
product, then several. The base that ships was made by these three commands at commit d94a4c1, one GPU:

    python -m research.tiny_base.train --out one --photos 90000 --minutes 6
    python -m research.tiny_base.train --out two --init one --photos 22000 --held-out 500 --several 0.75 \
        --first 400000 --minutes 3.2 --learning-rate 6e-4 --warmup 100
    python -m research.tiny_base.train --out tiny-base --init two --photos 45000 --held-out 500 --several 0.75 \
        --first 500000 --minutes 4.8 --learning-rate 6e-4 --warmup 100 --retailers 48

Since then the tokenizer knows Japanese, half of the made-up retailers write it, and all answer further fields. A base
of those, from the one that ships (README.md has what became of a first, short one):

    python -m research.tiny_base.train --out next --init enrich/assets/phi3v-tiny --photos 40000 --held-out 500 \
        --several 0.75 --first 600000 --minutes 10 --learning-rate 6e-4 --warmup 100 --retailers 96

Weights, training.json (seed, data, hardware, duration, curve) and the model card are written every minute and at the
end: a run that is cut short leaves its last minute's.
"""

import argparse
import copy
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from research.tiny_base.photos import VARIANTS, Group, pixel_values, render
from research.tiny_base.tokenizer import make_config, make_processor
from sample.spec import VERSION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=100_000, help="products, of one photo or, by --several, of more")
    parser.add_argument("--several", type=float, default=0.0, help="share of products that have 1 to 4 photos")
    parser.add_argument("--first", type=int, default=0, help="index of the first product")
    parser.add_argument("--init", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--held-out", type=int, default=1_000)
    parser.add_argument("--minutes", type=float, default=7.0, help="training time, rendering not counted")
    parser.add_argument("--steps", type=int, default=10**9, help="at most so many, for a try")
    parser.add_argument("--batch-size", type=int, default=256, help="photos of 4 crops a step; fewer of more")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--retailers", type=int, default=16, help="made-up ones beside BASE; 0: none")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers")
    parser.add_argument("--seed", type=int, default=7)
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
    start = time.monotonic()
    groups = render(processor, arguments)
    rendering = time.monotonic() - start
    print(f"rendered {arguments.photos + arguments.held_out} products in {rendering:.0f} s", flush=True)
    before = json.loads((arguments.init / "training.json").read_text()) if arguments.init else None
    train(processor, config, groups, arguments, {"before": before, "rendering_seconds": round(rendering)})


def train(
    processor: Phi3VProcessor,
    config: Phi3VConfig,
    groups: list[Group],
    arguments: argparse.Namespace,
    record: dict[str, Any],
) -> None:
    """AdamW, cosine, bf16 autocast; all parameters. Stops at the time given, the schedule stretched to it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    groups = moved(groups, device)
    model = grown(arguments.init, processor, config) if arguments.init else Phi3VForCausalLM(config)
    model = model.to(device)
    if arguments.compile:
        for layer in [*model.model.layers, *model.model.vision_embed_tokens.tower_layers]:
            layer.compile(dynamic=False)
    optimizer = make_optimizer(model, arguments.learning_rate)
    curve: list[dict[str, float]] = []
    record |= facts(model, arguments) | {
        "curve": curve,
        "steps": 0,
        "steps_skipped": 0,
        "seconds": 0,
        "photos_shown": 0,
    }
    draw, running = batches(groups, arguments, device), list[torch.Tensor]()
    seconds, start, step, skipped, photos = arguments.minutes * 60, time.monotonic(), 0, 0, 0
    evaluated = saved = start
    while (elapsed := time.monotonic() - start) < seconds and step < arguments.steps:
        progress = max(elapsed / seconds, step / arguments.steps)
        warm = min(1, (step + 1) / arguments.warmup)
        for entry in optimizer.param_groups:
            entry["lr"] = arguments.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        group, rows, variants = next(draw)
        loss = training_step(model, optimizer, group, rows, variants)
        if loss is not None:
            running.append(loss)
        else:
            skipped += 1
            print(f"step {step}: skipped, its gradients were not finite", flush=True)
            if skipped > 20:
                raise SystemExit("more than 20 steps were not finite; what was saved last stays")
        step, photos = step + 1, photos + len(rows)
        now = time.monotonic()
        record |= {"steps": step, "steps_skipped": skipped, "seconds": round(now - start), "photos_shown": photos}
        if now - evaluated > 15 or step == arguments.steps:
            evaluated = now
            curve.append(curve_point(model, groups, running, record))
            running.clear()
        if now - saved > 60:
            saved = now
            save(model, arguments.out, record)
    if not curve or curve[-1]["step"] != step:
        curve.append(curve_point(model, groups, running, record))
    save(model, arguments.out, record)


def moved(groups: list[Group], device: torch.device) -> list[Group]:
    """`groups` on `device`: a whole run's photos fit on a GPU (0.15 MB each), so nothing is copied while it trains."""
    return [
        replace(group, **{name: value.to(device) for name, value in vars(group).items() if torch.is_tensor(value)})
        for group in groups
    ]


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


def make_optimizer(model: Phi3VForCausalLM, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over all parameters; weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
        fused=model.device.type == "cuda",
    )


def facts(model: Phi3VForCausalLM, arguments: argparse.Namespace) -> dict[str, Any]:
    """What training.json says about a run before its first step."""
    numbers = {name: value for name, value in vars(arguments).items() if isinstance(value, (int, float))}
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "hardware": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "sample_version": VERSION,
        **numbers,
        **dict.fromkeys(("steps", "steps_skipped", "seconds", "photos_shown"), 0),
    }


def batches(
    groups: list[Group], arguments: argparse.Namespace, device: torch.device
) -> Iterator[tuple[Group, torch.Tensor, torch.Tensor]]:
    """Batches without end: a group, and the photos of it and the variants that are drawn, int64 (batch,) each.

    Groups are drawn by their photos; photos of more crops come in smaller batches.
    """
    rng = np.random.default_rng(arguments.seed)
    crops = [1 + group.crops.shape[1] + 2 * group.further.shape[1] for group in groups]
    sizes = [max(8, arguments.batch_size * 5 // each) for each in crops]
    turns = np.array([group.trained / size for group, size in zip(groups, sizes, strict=True)])
    while True:
        which = int(rng.choice(len(groups), p=turns / turns.sum()))
        rows = rng.integers(0, max(1, groups[which].trained), sizes[which])
        variants = rng.choice(len(VARIANTS), sizes[which], p=list(VARIANTS.values()))
        yield groups[which], torch.from_numpy(rows).to(device), torch.from_numpy(variants).to(device)


def training_step(
    model: Phi3VForCausalLM,
    optimizer: torch.optim.Optimizer,
    group: Group,
    rows: torch.Tensor,
    variants: torch.Tensor,
) -> torch.Tensor | None:
    """One step of `optimizer`; the loss, or None where gradients were not finite and the weights were left alone."""
    loss, _ = losses(model, group, rows, variants)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if not torch.isfinite(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)):
        return None
    optimizer.step()
    return loss.detach()


def curve_point(
    model: Phi3VForCausalLM, groups: list[Group], running: list[torch.Tensor], record: Mapping[str, Any]
) -> dict[str, float]:
    """A point of training.json's curve; prints it."""
    point = {
        "step": record["steps"],
        "seconds": record["seconds"],
        "photos_per_second": round(record["photos_shown"] / max(1, record["seconds"]), 1),
        "loss": round(torch.stack(running).mean().item(), 4) if running else math.nan,
        **held_out_losses(model, groups),
    }
    print(json.dumps(point), flush=True)
    return point


def losses(
    model: Phi3VForCausalLM, group: Group, rows: torch.Tensor, variants: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean loss of an answer token, and of a price digit alone."""
    device = rows.device
    pixels, sizes = pixel_values(group.crops[rows], group.size, group.further[rows])
    # Padding is on the left: what none of these rows needs is cut off.
    mask, labels = group.mask[variants, rows], group.labels[variants, rows]
    first, answers = (int(one.any(0).int().argmax()) for one in (mask, labels >= 0))
    mask, labels = mask[:, first:], labels[:, answers:].long()
    weights = group.weights[variants, rows, answers:].float()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(
            input_ids=group.input_ids[variants, rows, first:].long(),
            attention_mask=causal_mask(mask),
            position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=labels.shape[1] + 1,
            pixel_values=pixels,
            image_sizes=sizes,
        ).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
    ).view_as(labels)
    digits = weights > 1
    return (each * weights).sum() / weights.sum(), (each * digits).sum() / digits.sum().clamp(min=1)


def causal_mask(mask: torch.Tensor) -> torch.Tensor:
    """A causal mask (rows, 1, length, length), bool, in which a left-padded position attends to itself.

    Stock masks let it attend to nothing. With them (H200, torch 2.11, batches of 256) all of 21 steps had NaN gradients
    at a finite loss; with this mask none of 3,566 had. What padding computes is never read.
    """
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    return (causal & mask[:, None, None]) | itself


@torch.no_grad()
def held_out_losses(model: Phi3VForCausalLM, groups: list[Group]) -> dict[str, float]:
    """Of BASE's answers to the held-out photos and of those in Japanese, weighted by the photos of each grid."""
    model.eval()
    base, japanese = (list(VARIANTS).index(variant) for variant in ("base", "ja"))
    found = []
    for group in groups:
        for first in range(group.trained, len(group.crops), 128):
            rows = torch.arange(first, min(first + 128, len(group.crops)), device=group.labels.device)
            total, price = losses(model, group, rows, torch.full_like(rows, base))
            other, _ = losses(model, group, rows, torch.full_like(rows, japanese))
            found.append((total.item(), price.item(), other.item(), len(rows)))
    model.train()
    *columns, count = np.array(found).T if found else np.full((4, 1), np.nan)
    names = ("held_out_loss", "held_out_price_digit_loss", "held_out_japanese_loss")
    return {
        name: round(float(np.average(column, weights=count)), 4) for name, column in zip(names, columns, strict=True)
    }


def save(model: Phi3VForCausalLM, out: Path, record: dict[str, Any]) -> None:
    """Weights in bf16, the record and the card."""
    copy.deepcopy(model).to(torch.bfloat16).cpu().save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    card = (Path(__file__).parent / "card.md").read_text()
    (out / "README.md").write_text(card.format(**record, stages="\n".join(stages(record)), final=record["curve"][-1]))


def stages(record: Mapping[str, Any]) -> list[str]:
    """A paragraph of the card for each training that made the weights, the first one first."""
    before = stages(record["before"]) if record.get("before") else []
    mean = (
        f" Then the mean of its weights, {record['averaged']:.0%}, and those before it." if "averaged" in record else ""
    )
    several = f", {record['several']:.0%} of them with 1 to 4 photos," if record.get("several") else ""
    return [
        *before,
        f"{len(before) + 1}. {record['photos']:,} products{several} in {record['steps']:,} steps of "
        f"{record['batch_size']} photos of 4 crops, AdamW, peak\n   learning rate {record['learning_rate']}, bf16 "
        f"autocast, {record['seconds'] / 60:.1f} minutes on one {record['hardware']}, torch {record['torch']}, seed "
        f"{record['seed']}.{mean}",
    ]


if __name__ == "__main__":
    main()
