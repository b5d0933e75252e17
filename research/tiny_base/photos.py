"""The photos that the tiny base learns from, and what is asked about each of them."""

import argparse
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from enrich.models.phi3_vision import Phi3VImageProcessor, Phi3VProcessor
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.models.phi3_vision.processing import END, render_turn
from research.tiny_base.retailers import Asked, asked
from research.tiny_base.tokenizer import IMAGE_SIZE
from sample.dialects import BASE
from sample.draw import render as draw
from sample.products import SampleProduct, sample_product

MOST_PHOTOS = 4  # of a product
CROPS_SHARE = {4: 0.80, 1: 0.08, 9: 0.07, 16: 0.05}  # of the photos, so that the other settings are of use too
# How a photo is asked for, drawn again at every step; --japanese changes the shares.
VARIANTS = {"base": 0.20, "base again": 0.18, "en": 0.22, "ja": 0.25, "copy": 0.15}
PRICE_WEIGHT = 2.0  # in the loss, of a price's digits: a tenth of an answer's tokens, and a third of what is asked


@dataclass(frozen=True)
class Group:
    """Products of one shape, so that a batch of them is one tensor, and what is asked of each, left-padded."""

    crops: torch.Tensor  # uint8 (products, crops, S, S, 3), of the main photos
    size: tuple[int, int]  # height, width in pixels of the main photos
    further: torch.Tensor  # uint8 (products, further photos, S, S, 3), one crop each
    input_ids: torch.Tensor  # int32 (variants, products, length), image positions -1, -2 ...
    mask: torch.Tensor  # bool, as input_ids
    labels: torch.Tensor  # int32 (variants, products, answer length), -100 before the answer
    weights: torch.Tensor  # float16, as labels
    held_out: int  # products at the end that are not trained on
    cost: int  # crops that a product's photos are to the vision tower

    @property
    def trained(self) -> int:
        return len(self.crops) - self.held_out


@dataclass(frozen=True)
class Drawn:
    """A product as the model is shown it, and one question for each of VARIANTS."""

    crops: np.ndarray  # uint8 (crops, S, S, 3), of the main photo
    size: tuple[int, int]  # height, width of its page
    further: np.ndarray  # uint8 (further photos, S, S, 3)
    questions: list[Asked]


Products = tuple[list[Drawn], list[bool]]  # of one shape, and which are held out, at the end


def render(processor: Phi3VProcessor, arguments: argparse.Namespace) -> list[Group]:
    """Draws the products and spells what is asked of them."""
    one = partial(render_one, arguments.seed, arguments.retailers, arguments.several)
    return [spell_prompts(processor, *group) for group in draw_all(one, arguments)]


def draw_all(one: Callable[[int], Drawn], arguments: argparse.Namespace) -> list[Products]:
    """Products of each shape, drawn by one process a core; the last of all are held out. Prints how far it is.

    Args:
        one: draws the product of an index; it pickles.
    """
    total = arguments.photos + arguments.held_out
    found: dict[tuple[int, int, int], Products] = {}
    started, indices = time.monotonic(), range(arguments.first, arguments.first + total)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for i, drawn in enumerate(pool.map(one, indices, chunksize=32)):
            group = found.setdefault((*drawn.size, len(drawn.further)), ([], []))
            group[0].append(drawn)
            group[1].append(i >= arguments.photos)
            if (i + 1) % 10_000 == 0:
                print(f"drew {i + 1} products in {time.monotonic() - started:.0f} s", flush=True)
    return list(found.values())


def render_one(seed: int, retailers: int, several: float, index: int) -> Drawn:
    """Product `index`; with the probability `several` it is one of those with 1 to 4 photos, the others have one."""
    rng = np.random.default_rng((17, seed, index))
    num_crops, side = draw_size(rng)
    product = sample_product(seed, index, BASE, MOST_PHOTOS if rng.random() < several else 1)
    pixels = hd_transform(draw(product, index, side), num_crops, IMAGE_SIZE)
    views = [str(view) for view in rng.permutation(product.views[1:])]
    further = [hd_transform(draw(product, index, side, view), 1, IMAGE_SIZE) for view in views]
    rows, columns = pixels.shape[0] // IMAGE_SIZE, pixels.shape[1] // IMAGE_SIZE
    split = pixels.reshape(rows, IMAGE_SIZE, columns, IMAGE_SIZE, 3).transpose(0, 2, 1, 3, 4)
    return Drawn(
        split.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3),
        pixels.shape[:2],
        np.stack(further) if further else np.empty((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
        ask(product, retailers, rng),
    )


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """How many crops a photo is shown in at most, and the pixels of its longer side: about what the crops keep, for
    drawing it larger costs time. Only part of them are that small."""
    num_crops = int(rng.choice(list(CROPS_SHARE), p=list(CROPS_SHARE.values())))
    return num_crops, int(rng.integers(224, 480)) if num_crops <= 4 else int(rng.integers(360, 640))


def ask(product: SampleProduct, retailers: int, rng: np.random.Generator) -> list[Asked]:
    """One question for each of VARIANTS."""
    return [asked(variant, product, retailers, rng) for variant in VARIANTS]


def spell_prompts(processor: Phi3VProcessor, products: list[Drawn], held_out: list[bool]) -> Group:
    """See `spell`; as the processor spells a prompt."""
    size, further = products[0].size, len(products[0].further)
    tokenizer = processor.tokenizer
    # As the image processor counts them at the photo's own num_crops: page, its row ends, a separator, global view.
    side, rows, columns = IMAGE_SIZE // 14 // 2, size[0] // IMAGE_SIZE, size[1] // IMAGE_SIZE
    image, one_crop = rows * side * (columns * side + 1) + 1 + side * (side + 1), 2 * side * (side + 1) + 1
    template = render_turn("{}", 1 + further)
    *openings, after = re.split(r"<\|image_\d\|>", template)
    opening: list[int] = []
    for number, text in enumerate(openings, start=1):
        opening += [*tokenizer(text).input_ids, *[-number] * (one_crop if number > 1 else image)]
    cost = 1 + rows * columns + 2 * further
    return spell(tokenizer, (products, held_out), opening, after, tokenizer.convert_tokens_to_ids(END), cost)


def spell(
    tokenizer: PreTrainedTokenizerBase, group: Products, opening: list[int], after: str, end: int, cost: int
) -> Group:
    """Ids, masks, labels and weights of products of one shape. Held-out ones come last.

    Args:
        opening: ids of a prompt up to its question, -k at positions of the k-th photo.
        after: the rest of the prompt, with {} for the question.
        end: the token after an answer.
        cost: see `Group`.
    """
    products, held_out = group
    flat = [product.questions[variant] for variant in range(len(VARIANTS)) for product in products]
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
        digits = len(answer) - len(answer.rstrip("0123456789"))  # single tokens
        weights[i, -digits - 1 : -1] = PRICE_WEIGHT if digits else 1.0
    shape = (len(VARIANTS), len(products), -1)
    return Group(
        crops=torch.from_numpy(np.stack([product.crops for product in products])),
        size=products[0].size,
        further=torch.from_numpy(np.stack([product.further for product in products])),
        input_ids=torch.from_numpy(input_ids.reshape(shape)),
        mask=torch.from_numpy(mask.reshape(shape)),
        labels=torch.from_numpy(labels.reshape(shape)),
        weights=torch.from_numpy(weights.reshape(shape)),
        held_out=sum(held_out),
        cost=cost,
    )


def pixel_values(
    crops: torch.Tensor, size: tuple[int, int], further: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's pixel_values and image_sizes for products of one shape: each one's main photo, then the others."""
    main = normalise(crops, *size)[:, None]
    products, count = further.shape[:2]
    sizes = torch.tensor([size, *[(IMAGE_SIZE, IMAGE_SIZE)] * count] * products)
    if not count:
        return main.flatten(0, 1), sizes
    others = normalise(further.flatten(0, 1)[:, None], IMAGE_SIZE, IMAGE_SIZE).unflatten(0, (products, count))
    others = torch.nn.functional.pad(others, (0, 0, 0, 0, 0, 0, 0, main.shape[2] - others.shape[2]))
    return torch.cat([main, others], dim=1).flatten(0, 1), sizes


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
