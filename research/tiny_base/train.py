"""Train the tiny base in enrich/assets/phi3v-tiny: Phi-3-vision's architecture, from scratch, 7.7 M parameters.

It learns to see on the sample generator's photos under another retailer's vocabulary and prices (the BASE dialect) and
under those of made-up retailers, so that fine-tuning on a catalog has real work to do. One GPU:

    python -m research.tiny_base.train --out tiny-base --photos 100000 --minutes 7

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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from enrich.answers.prompt import END, render_prompt
from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from enrich.models.phi3_vision.hd_transform import hd_transform
from research.tiny_base.vocabulary import IMAGE_SIZE, Asked, asked, base_prompt, make_config, make_processor
from sample.dialects import BASE
from sample.draw import render as draw
from sample.products import sample_product
from sample.spec import VERSION

CROPS_SHARE = {4: 0.80, 1: 0.08, 9: 0.07, 16: 0.05}  # of the photos, so that the other settings are of use too
# How a photo is asked for, drawn anew at every step.
VARIANTS = {"base": 0.25, "base again": 0.25, "retailer": 0.30, "copy": 0.20}
PRICE_WEIGHT = 2.0  # in the loss, of a price's digits: a tenth of an answer's tokens, and a third of what is asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=100_000)
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
    print(f"rendered {arguments.photos + arguments.held_out} photos in {rendering:.0f} s", flush=True)
    train(processor, config, groups, arguments, {"rendering_seconds": round(rendering)})


# --- photos


@dataclass(frozen=True)
class Group:
    """Photos of one grid of crops, so that a batch of them is one tensor, and what is asked of each, left-padded."""

    crops: torch.Tensor  # uint8 (photos, rows * columns, S, S, 3)
    size: tuple[int, int]  # height, width in pixels
    input_ids: torch.Tensor  # int32 (variants, photos, length), image positions -1
    mask: torch.Tensor  # bool, as input_ids
    labels: torch.Tensor  # int32 (variants, photos, answer length), -100 before the answer
    weights: torch.Tensor  # float16, as labels
    held_out: int  # photos at the end that are not trained on

    @property
    def trained(self) -> int:
        return len(self.crops) - self.held_out


def render(processor: Phi3VProcessor, arguments: argparse.Namespace) -> list[Group]:
    """Draws the photos, the last of them held out, and spells what is asked of them. Prints how far it is."""
    total = arguments.photos + arguments.held_out
    found: dict[tuple[int, int], tuple[list[np.ndarray], list[list[Asked]], list[bool]]] = {}
    one, started = partial(render_one, arguments.seed, arguments.retailers), time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for i, (crops, size, questions) in enumerate(pool.map(one, range(total), chunksize=32)):
            group = found.setdefault(size, ([], [], []))
            for column, value in zip(group, (crops, questions, i >= arguments.photos), strict=True):
                column.append(value)
            if (i + 1) % 10_000 == 0:
                print(f"drew {i + 1} photos in {time.monotonic() - started:.0f} s", flush=True)
    return [spell(processor, size, *columns) for size, columns in found.items()]


def render_one(seed: int, retailers: int, index: int) -> tuple[np.ndarray, tuple[int, int], list[Asked]]:
    """Crops uint8 (rows * columns, S, S, 3), the page's height and width, and one question for each of VARIANTS."""
    rng = np.random.default_rng((17, seed, index))
    num_crops = int(rng.choice(list(CROPS_SHARE), p=list(CROPS_SHARE.values())))
    # A photo is drawn at about the size that the crops keep: larger costs time, and only part of them are that small.
    side = int(rng.integers(224, 480)) if num_crops <= 4 else int(rng.integers(360, 640))
    product = sample_product(seed, index, BASE)
    pixels = hd_transform(draw(product, index, side), num_crops, IMAGE_SIZE)
    rows, columns = pixels.shape[0] // IMAGE_SIZE, pixels.shape[1] // IMAGE_SIZE
    split = pixels.reshape(rows, IMAGE_SIZE, columns, IMAGE_SIZE, 3).transpose(0, 2, 1, 3, 4)
    questions = [asked(variant, product.kind, product.attributes, retailers, rng) for variant in VARIANTS]
    return split.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3), pixels.shape[:2], questions


def spell(
    processor: Phi3VProcessor,
    size: tuple[int, int],
    crops: list[np.ndarray],
    questions: list[list[Asked]],
    held_out: list[bool],
) -> Group:
    """Ids, masks, labels and weights of a group. Held-out photos come last."""
    tokenizer = processor.tokenizer
    end = tokenizer.convert_tokens_to_ids(END)
    # As the image processor counts them at the photo's own num_crops: page, its row ends, a separator, global view.
    side, rows, columns = IMAGE_SIZE // 14 // 2, size[0] // IMAGE_SIZE, size[1] // IMAGE_SIZE
    image = [-1] * (rows * side * (columns * side + 1) + 1 + side * (side + 1))
    template = render_prompt(base_prompt().model_copy(update={"instruction": "{}"}))
    before, after = template.split("<|image_1|>")
    flat = [
        question for variant in range(len(VARIANTS)) for own in questions for question in own[variant : variant + 1]
    ]
    opening = [*tokenizer(before).input_ids, *image]
    prompts = tokenizer([after.replace("{}", instruction) for instruction, _ in flat]).input_ids
    answers = tokenizer([answer for _, answer in flat], add_special_tokens=False).input_ids
    longest = max(map(len, prompts)) + max(map(len, answers)) + 1
    answer_longest = max(map(len, answers)) + 1
    input_ids = np.full((len(flat), len(opening) + longest), tokenizer.pad_token_id, np.int32)
    mask = np.zeros(input_ids.shape, bool)
    labels = np.full((len(flat), answer_longest), -100, np.int32)
    weights = np.zeros(labels.shape, np.float16)
    for i, (prompt, ids, (_, answer)) in enumerate(zip(prompts, answers, flat, strict=True)):
        row = [*opening, *prompt, *ids, end]
        input_ids[i, -len(row) :], mask[i, -len(row) :] = row, True
        labels[i, -len(ids) - 1 :], weights[i, -len(ids) - 1 :] = [*ids, end], 1.0
        digits = len(answer.rpartition(" ")[2])
        if answer[-1].isdigit():  # digits are single tokens
            weights[i, -digits - 1 : -1] = PRICE_WEIGHT
    shape = (len(VARIANTS), len(questions), -1)
    return Group(
        crops=torch.from_numpy(np.stack(crops)),
        size=size,
        input_ids=torch.from_numpy(input_ids.reshape(shape)),
        mask=torch.from_numpy(mask.reshape(shape)),
        labels=torch.from_numpy(labels.reshape(shape)),
        weights=torch.from_numpy(weights.reshape(shape)),
        held_out=sum(held_out),
    )


# --- training


def train(
    processor: Phi3VProcessor,
    config: Phi3VConfig,
    groups: list[Group],
    arguments: argparse.Namespace,
    record: dict[str, object],
) -> None:
    """AdamW, cosine, bf16 autocast; all parameters. Stops at the time given, the schedule stretched to it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        # Photos of a whole run fit on a GPU (0.15 MB each): nothing is copied while it trains.
        groups = [
            replace(group, **{n: t.to(device) for n, t in vars(group).items() if torch.is_tensor(t)})
            for group in groups
        ]
    model = Phi3VForCausalLM(config).to(device)
    if arguments.compile:
        for layer in [*model.model.layers, *model.model.vision_embed_tokens.tower_layers]:
            layer.compile(dynamic=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=arguments.learning_rate,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    rng = np.random.default_rng(arguments.seed)
    batch_sizes = [max(8, arguments.batch_size * 5 // (1 + group.crops.shape[1])) for group in groups]
    turns = np.array([group.trained / size for group, size in zip(groups, batch_sizes, strict=True)])
    seconds, start, step, skipped, running = arguments.minutes * 60, time.monotonic(), 0, 0, []
    curve: list[dict[str, float]] = []
    evaluated = saved = start
    record |= {
        "parameters": sum(p.numel() for p in parameters),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "sample_version": VERSION,
        "steps_skipped": 0,
        "curve": curve,
        **{
            name: value
            for name, value in vars(arguments).items()
            if isinstance(value, (int, float)) and name != "steps"
        },
    }
    photos = 0
    while (elapsed := time.monotonic() - start) < seconds and step < arguments.steps:
        progress = max(elapsed / seconds, step / arguments.steps)
        for entry in optimizer.param_groups:
            warm = min(1, (step + 1) / arguments.warmup)
            entry["lr"] = arguments.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        which = int(rng.choice(len(groups), p=turns / turns.sum()))
        rows = torch.from_numpy(rng.integers(0, max(1, groups[which].trained), batch_sizes[which])).to(device)
        variants = torch.from_numpy(rng.choice(len(VARIANTS), batch_sizes[which], p=list(VARIANTS.values()))).to(device)
        loss, _ = losses(model, groups[which], rows, variants)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            running.append(loss.detach())
        else:
            skipped += 1
            print(f"step {step}: skipped, loss {loss.item()}, gradient norm {norm.item()}", flush=True)
            if skipped > 20:
                raise SystemExit("more than 20 steps were not finite; what was saved last stays")
        step, photos = step + 1, photos + len(rows)
        now = time.monotonic()
        if now - evaluated > 15 or step == arguments.steps:
            evaluated = now
            point = {
                "step": step,
                "seconds": round(now - start),
                "photos_per_second": round(photos / (now - start), 1),
                "loss": round(torch.stack(running).mean().item(), 4) if running else math.nan,
                **held_out_losses(model, groups),
            }
            curve.append(point)
            running.clear()
            print(json.dumps(point), flush=True)
        if now - saved > 60:
            saved = now
            save(
                model, arguments.out, record | {"steps": step, "steps_skipped": skipped, "seconds": round(now - start)}
            )
    if not curve or curve[-1]["step"] != step:
        curve.append({"step": step, "seconds": round(time.monotonic() - start), **held_out_losses(model, groups)})
    took = round(time.monotonic() - start)
    save(
        model,
        arguments.out,
        record | {"steps": step, "steps_skipped": skipped, "seconds": took, "photos_shown": photos},
    )
    print(json.dumps(curve[-1]), flush=True)


def losses(
    model: Phi3VForCausalLM, group: Group, rows: torch.Tensor, variants: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean loss of an answer token, and of a price digit alone."""
    device = rows.device
    height, width = group.size
    labels, weights = group.labels[variants, rows].long(), group.weights[variants, rows].float()
    mask = group.mask[variants, rows].bool()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(
            input_ids=group.input_ids[variants, rows].long(),
            attention_mask=causal_mask(mask),
            position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=labels.shape[1] + 1,
            pixel_values=normalise(group.crops[rows], height, width),
            image_sizes=torch.tensor([(height, width)] * len(rows)),
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
    """Of BASE's answers to the held-out photos, weighted by the photos of each grid."""
    model.eval()
    found = []
    for group in groups:
        for first in range(group.trained, len(group.crops), 128):
            rows = torch.arange(first, min(first + 128, len(group.crops)), device=group.labels.device)
            total, price = losses(model, group, rows, torch.zeros_like(rows))
            found.append((total.item(), price.item(), len(rows)))
    model.train()
    every, digits, count = np.array(found).T if found else np.full((3, 1), np.nan)
    return {
        "held_out_loss": round(float(np.average(every, weights=count)), 4),
        "held_out_price_digit_loss": round(float(np.average(digits, weights=count)), 4),
    }


def normalise(crops: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 crops of one grid to what the image processor makes of them: normalised, the bicubic global view first."""
    processor = Phi3VImageProcessor()
    mean = torch.tensor(processor.image_mean, device=crops.device).view(1, 1, 3, 1, 1)
    std = torch.tensor(processor.image_std, device=crops.device).view(1, 1, 3, 1, 1)
    pixels = (crops.permute(0, 1, 4, 2, 3).float() / 255 - mean) / std
    rows, columns = height // IMAGE_SIZE, width // IMAGE_SIZE
    page = pixels.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, height, width)
    view = torch.nn.functional.interpolate(page, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")
    return torch.cat([view[:, None], pixels], dim=1)


def save(model: Phi3VForCausalLM, out: Path, record: dict[str, object]) -> None:
    """Weights in bf16, the record and the card."""
    copy.deepcopy(model).to(torch.bfloat16).cpu().save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "README.md").write_text(
        CARD.format(**record, minutes_taken=record["seconds"] / 60, final=record["curve"][-1])
    )


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# phi3v-tiny

Phi-3-vision's architecture with {parameters:,} parameters: a CLIP tower of 6 x 192 (112-pixel crops, 14-pixel patches),
HD crops with separators, the two-layer projector, a Phi-3 language model of 5 x 256 with LongRoPE settings, and a small
tokenizer with the original's special tokens. It ships with `enrich` so that everything runs without GPU or network.

**Training.** From scratch on {photos:,} generated photos (version {sample_version} of `sample`) of one
made-up retailer, the BASE dialect, told in its words or in those of {retailers} more; a fifth of the rows asks to copy
a made-up answer instead. 80 % of the photos in 4 crops, the others in 1, 9 and 16. Colour x fabric x kind of the
sample's hold-out never occur. {steps:,} steps of {batch_size} photos, AdamW, peak learning rate {learning_rate},
bf16 autocast, {minutes_taken:.1f} minutes on one {hardware}, torch {torch}, seed {seed}:

    python -m research.tiny_base.train --out enrich/assets/phi3v-tiny --photos {photos} --minutes {minutes}

Loss on {held_out:,} held-out photos {final[held_out_loss]} a token, {final[held_out_price_digit_loss]} a price digit
(curve in `training.json`).

**What it can do.** Name that retailer's products from drawn photos, in that retailer's words and prices: 32 kinds of
clothing, shoes, bags and accessories in 12 colours and 14 fabrics.

**What it cannot.** It has never seen a real photo, knows no real retailer's words, and answers in one form only.
Fine-tune it before use; on real photos expect little.
"""


if __name__ == "__main__":
    main()
