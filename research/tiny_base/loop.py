"""Training a small base on products that are all in the GPU's memory: what no architecture differs in.

Photos are bytes there and are normalised there, so that a step waits for nothing. Weights, training.json (seed, data,
hardware, duration, curve) and the model card are written every minute and at the end: a run that is cut short leaves
its last minute's.
"""

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from enrich.models.registry import vision_model
from research.tiny_base.photos import VARIANTS, Group
from sample.spec import VERSION


@dataclass(frozen=True)
class Base:
    """What is trained.

    model: on its device; image positions of input_ids are -1, -2 ... .
    shown: the image arguments of its forward for some rows of a group.
    card: template of the model card, with fields of training.json.
    """

    model: PreTrainedModel
    shown: Callable[[Group, torch.Tensor], dict[str, Any]]
    card: Path


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=100_000, help="products to learn from")
    parser.add_argument("--first", type=int, default=0, help="index of the first product")
    parser.add_argument("--init", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--held-out", type=int, default=1_000)
    parser.add_argument("--minutes", type=float, default=7.0, help="training time, rendering not counted")
    parser.add_argument("--whole-minutes", type=float, help="of everything: training gets what rendering leaves")
    parser.add_argument("--steps", type=int, default=10**9, help="at most so many, for a try")
    parser.add_argument("--batch-size", type=int, default=256, help="photos of 4 crops a step; fewer of more")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--retailers", type=int, default=16, help="made-up ones in addition to BASE; 0: none")
    parser.add_argument("--japanese", type=float, default=VARIANTS["ja"], help="share of the examples; 0: English only")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers")
    parser.add_argument("--seed", type=int, default=7)
    return parser


def find_device() -> torch.device:
    """The GPU where there is one, its float32 products in TF32."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def train(base: Base, groups: list[Group], arguments: argparse.Namespace, record: dict[str, Any], start: float) -> None:
    """AdamW, cosine, bf16 autocast; all parameters. Stops at the time given, the schedule stretched to it.

    `start` is when the process started, on time.monotonic's clock.
    """
    model = base.model.train()
    groups = moved(groups, model.device)
    if arguments.compile:
        vision_model(model.config.model_type).compile_layers(model)
    optimizer = make_optimizer(model, arguments.learning_rate)
    curve: list[dict[str, float]] = []
    record |= facts(model, arguments) | {"curve": curve}
    draw, running = batches(groups, arguments, model.device), list[torch.Tensor]()
    seconds, rendered = arguments.minutes * 60, time.monotonic() - start
    if arguments.whole_minutes:
        seconds = min(seconds, arguments.whole_minutes * 60 - rendered)
    start, step, skipped, photos = time.monotonic(), 0, 0, 0
    evaluated = saved = start
    while (elapsed := time.monotonic() - start) < seconds and step < arguments.steps:
        progress = max(elapsed / seconds, step / arguments.steps)
        warm = min(1, (step + 1) / arguments.warmup)
        for entry in optimizer.param_groups:
            entry["lr"] = arguments.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        group, rows, variants = next(draw)
        loss = training_step(base, optimizer, group, rows, variants)
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
            curve.append(curve_point(base, groups, running, record))
            running.clear()
        if now - saved > 60:
            saved = now
            save(base, arguments.out, record)
    if not curve or curve[-1]["step"] != step:
        curve.append(curve_point(base, groups, running, record))
    save(base, arguments.out, record)


def moved(groups: list[Group], device: torch.device) -> list[Group]:
    """`groups` on `device`: a whole run's photos fit on a GPU (0.15 MB each), so nothing is copied while it trains."""

    def there(group: Group) -> Group:
        changed: dict[str, Any] = {name: one.to(device) for name, one in vars(group).items() if torch.is_tensor(one)}
        return replace(group, **changed)

    return [there(group) for group in groups]


def make_optimizer(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
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


def facts(model: PreTrainedModel, arguments: argparse.Namespace) -> dict[str, Any]:
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
    sizes = [max(8, arguments.batch_size * 5 // group.cost) for group in groups]
    turns = np.array([group.trained / size for group, size in zip(groups, sizes, strict=True)])
    others = (1 - arguments.japanese) / (1 - VARIANTS["ja"])
    shares = [arguments.japanese if name == "ja" else share * others for name, share in VARIANTS.items()]
    while True:
        which = int(rng.choice(len(groups), p=turns / turns.sum()))
        rows = rng.integers(0, max(1, groups[which].trained), sizes[which])
        variants = rng.choice(len(VARIANTS), sizes[which], p=shares)
        yield groups[which], torch.from_numpy(rows).to(device), torch.from_numpy(variants).to(device)


def training_step(
    base: Base,
    optimizer: torch.optim.Optimizer,
    group: Group,
    rows: torch.Tensor,
    variants: torch.Tensor,
) -> torch.Tensor | None:
    """One step of `optimizer`; the loss, or None where gradients were not finite and the weights were left alone."""
    loss, _ = losses(base, group, rows, variants)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if not torch.isfinite(torch.nn.utils.clip_grad_norm_(base.model.parameters(), 1.0)):
        return None
    optimizer.step()
    return loss.detach()


def curve_point(
    base: Base, groups: list[Group], running: list[torch.Tensor], record: Mapping[str, Any]
) -> dict[str, float]:
    """A point of training.json's curve; prints it."""
    point = {
        "step": record["steps"],
        "seconds": record["seconds"],
        "photos_per_second": round(record["photos_shown"] / max(1, record["seconds"]), 1),
        "loss": round(torch.stack(running).mean().item(), 4) if running else math.nan,
        **held_out_losses(base, groups),
    }
    print(json.dumps(point), flush=True)
    return point


def losses(base: Base, group: Group, rows: torch.Tensor, variants: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean loss of an answer token, and of a price digit alone."""
    device = rows.device
    # Padding is on the left: what none of these rows needs is cut off.
    mask, labels = group.mask[variants, rows], group.labels[variants, rows]
    first, answers = (int(one.any(0).int().argmax()) for one in (mask, labels >= 0))
    mask, labels = mask[:, first:], labels[:, answers:].long()
    weights = group.weights[variants, rows, answers:].float()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = base.model(
            input_ids=group.input_ids[variants, rows, first:].long(),
            attention_mask=causal_mask(mask),
            position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=labels.shape[1] + 1,
            **base.shown(group, rows),
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
def held_out_losses(base: Base, groups: list[Group]) -> dict[str, float]:
    """Of BASE's answers to the held-out photos and of those in Japanese, weighted by the photos of each grid."""
    base.model.eval()
    english, japanese = (list(VARIANTS).index(variant) for variant in ("base", "ja"))
    found = []
    for group in groups:
        for first in range(group.trained, len(group.crops), 128):
            rows = torch.arange(first, min(first + 128, len(group.crops)), device=group.labels.device)
            total, price = losses(base, group, rows, torch.full_like(rows, english))
            other, _ = losses(base, group, rows, torch.full_like(rows, japanese))
            found.append((total.item(), price.item(), other.item(), len(rows)))
    base.model.train()
    *columns, count = np.array(found).T if found else np.full((4, 1), np.nan)
    names = ("held_out_loss", "held_out_price_digit_loss", "held_out_japanese_loss")
    return {
        name: round(float(np.average(column, weights=count)), 4) for name, column in zip(names, columns, strict=True)
    }


def save(base: Base, out: Path, record: dict[str, Any]) -> None:
    """Weights in bf16, the record and the card."""
    copy.deepcopy(base.model).to(torch.bfloat16).cpu().save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    card = base.card.read_text().format(**record, stages="\n".join(stages(record)), final=record["curve"][-1])
    (out / "README.md").write_text(card)


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
