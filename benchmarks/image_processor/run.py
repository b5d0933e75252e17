"""Photos a second and core, from the bytes of a JPEG to what goes to the model: float32, uint8, and reduced decoding.

Times are CPU time, so that a busy machine disturbs them little; the three ways take turns photo by photo.

    taskset -c 1 python -m benchmarks.image_processor.run
    taskset -c 1 python -m benchmarks.image_processor.run --photos DIR
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.results import record
from enrich.answers.prompt import make_prompt
from enrich.models.checkpoint import load_model, load_processor, stop_ids
from enrich.models.generation import Generated, generate_answers
from enrich.models.phi3_vision import Phi3VImageProcessor, Phi3VProcessor
from enrich.models.phi3_vision.hd_transform import hd_transform, resized_size
from enrich.models.phi3_vision.image_processing import normalize_crops
from enrich.models.phi3_vision.processing import render_turn
from enrich.photos.decode import decode
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.photos import PhotoLimits
from sample.dialects import BASE
from sample.draw import render
from sample.products import sample_product

LIMITS = PhotoLimits()
STAGES = ("decode", "resize and crop", "normalise")
# Halves that lack 4.8 and 0.8 % of 504x672, one that fits exactly, and larger ones.
SIZES = [(960, 1280), (1000, 1333), (1008, 1344), (1200, 1600), (1500, 2000)]

Way = Callable[[bytes], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a directory of JPEGs; without it they are generated")
    parser.add_argument("--num-crops", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--answers", type=int, default=96, help="photos that the tiny base answers; 0: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.photos:
        photos = [path.read_bytes() for path in sorted(arguments.photos.glob("*.jp*g"))]
    else:
        scenes = [scene(seed) for seed in range(6)]
        photos = [jpeg(picture, (1000, 1333)) for picture in scenes]
    print(f"{len(photos)} photos of {sum(map(len, photos)) / len(photos) / 1000:.0f} kB\n")
    processor = Phi3VImageProcessor(num_crops=arguments.num_crops)
    times = measure_times(photos, processor, arguments.rounds)
    if arguments.photos:
        differences = [compare("these photos", photos, processor)]
    else:
        differences = [
            compare(f"{size[0]}x{size[1]}", [jpeg(picture, size) for picture in scenes], processor) for size in SIZES
        ]
    record("image_processor", {"Times": times, "Reduced decoding against exact": differences})
    if arguments.answers:
        print_answers(arguments.answers)


# --- photos


def scene(seed: int) -> Image.Image:
    """2016x2688 pixels that are to a JPEG and a resize what a photo is: amplitudes that fall with frequency as in
    nature, shapes with edges, and a woven thing before a studio's quiet background."""
    rng = np.random.default_rng(seed)
    height, width = 2688, 2016
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / width) ** -1.2
    channels = []
    for _ in range(2):
        field = np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), s=(height, width))
        channels.append(field / field.std())
    light, tint = channels
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    covered = np.hypot((x - width / 2) / 800, (y - height / 2) / 1200) < 1
    light *= np.where(covered, 1, 0.15)[..., 0]
    pixels = 140 + 35 * light[..., None] + 8 * tint[..., None] * np.array([1.0, 0.1, -0.9])
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        left, top, size = rng.integers(0, width), rng.integers(0, height), int(rng.integers(60, 500))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw.ellipse((left, top, left + size, top + size * 1.4), outline=colour, width=int(rng.integers(2, 20)))
        draw.line((left, top, width - left, top + size), fill=colour, width=int(rng.integers(1, 8)))
    weave = 5 * covered * np.sin(x * 0.5) * np.sin(y * 0.5)
    return Image.fromarray((np.asarray(picture) + weave).clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, size: tuple[int, int], quality: int = 85) -> bytes:
    file = BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=quality)
    return file.getvalue()


# --- times


def measure_times(photos: Sequence[bytes], processor: Phi3VImageProcessor, rounds: int) -> list[dict[str, str | float]]:
    """Median milliseconds a photo by way and stage."""
    ways: dict[str, Way] = {
        "float32": partial(float_path, processor),
        "uint8, exact": partial(byte_path, processor),
        "uint8, reduced decoding": partial(reduced_path, processor),
    }
    taken: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for data in photos:
            for name, way in ways.items():
                times = way(data)
                if number:  # the first round fills caches
                    taken[name].append(times)
    base = median(sum(times) for times in taken["float32"])
    rows: list[dict[str, str | float]] = []
    for name, all_times in taken.items():
        stages = [median(column) * 1000 for column in zip(*all_times, strict=True)]
        whole = median(sum(times) for times in all_times)
        rows.append(
            {
                "way": name,
                **{f"{stage}, ms": value for stage, value in zip(STAGES, stages, strict=True)},
                "all, ms": whole * 1000,
                "photos/s and core": 1 / whole,
                "to float32": base / whole,
            }
        )
    return rows


def float_path(processor: Phi3VImageProcessor, data: bytes) -> list[float]:
    marks = [process_time()]
    image = decode(data, LIMITS)
    marks.append(process_time())
    outputs = processor(image, do_normalize=False)
    marks.append(process_time())
    normalize_crops(outputs["pixel_values"], outputs["image_sizes"])
    marks.append(process_time())
    return [end - start for start, end in pairwise(marks)]


def byte_path(processor: Phi3VImageProcessor, data: bytes) -> list[float]:
    marks = [process_time()]
    image = decode(data, LIMITS)
    marks.append(process_time())
    processor(image, do_normalize=False)
    marks.append(process_time())
    return [*(end - start for start, end in pairwise(marks)), 0.0]


def reduced_path(processor: Phi3VImageProcessor, data: bytes) -> list[float]:
    """Its resize to the grid is counted with the decoding, where it happens."""
    marks = [process_time()]
    image = decode(data, LIMITS, wanted_by(processor))
    marks.append(process_time())
    with Image.open(BytesIO(data)) as whole:
        size = whole.size
    padded = hd_transform(image, processor.num_crops, processor.image_size, size)
    processor(padded, do_hd_transform=False, do_normalize=False)
    marks.append(process_time())
    return [*(end - start for start, end in pairwise(marks)), 0.0]


def wanted_by(processor: Phi3VImageProcessor) -> Callable[[int, int], tuple[int, int]]:
    return partial(resized_size, num_crops=processor.num_crops, image_size=processor.image_size)


# --- pixels


def compare(name: str, photos: Sequence[bytes], processor: Phi3VImageProcessor) -> dict[str, str | float]:
    """Reduced against exact decoding, both resized to the grid, padding left out; differences of 255."""
    differences, reduced = [], 0
    for data in photos:
        whole = decode(data, LIMITS)
        image, size = decode(data, LIMITS, wanted_by(processor)), whole.size
        reduced += image.size != whole.size
        exact = inside(hd_transform(whole, processor.num_crops, processor.image_size), size, processor)
        fast = inside(hd_transform(image, processor.num_crops, processor.image_size, size), size, processor)
        differences.append(np.abs(exact.astype(np.int16) - fast).ravel())
    found = np.concatenate(differences).astype(np.float64)
    psnr = 10 * np.log10(255**2 / (found**2).mean()) if found.any() else np.inf
    return {
        "photo": name,
        "reduced": f"{reduced} of {len(photos)}",
        "mean": float(found.mean()),
        "99.9th percentile": float(np.percentile(found, 99.9)),
        "PSNR, dB": float(psnr),
    }


def inside(padded: np.ndarray, size: tuple[int, int], processor: Phi3VImageProcessor) -> np.ndarray:
    width, height = wanted_by(processor)(*size)
    top, left = (padded.shape[0] - height) // 2, (padded.shape[1] - width) // 2
    return padded[top : top + height, left : left + width]


# --- answers


def print_answers(count: int) -> None:
    """Greedy answers of the tiny base to sample photos at least twice its grid, and how far they move.

    The same photos encoded once more, at quality 85, are the yardstick: no one would notice that change.
    """
    processor, model = load_processor(TINY_MODEL_PATH), load_model(TINY_MODEL_PATH, dtype=torch.float32, device="cpu")
    ways: dict[str, list[np.ndarray]] = {"exact": [], "reduced": [], "encoded again": []}
    for data in sample_photos(count, processor.image_processor):
        crops, side = processor.image_processor.num_crops, processor.image_processor.image_size
        whole = decode(data, LIMITS)
        image, size = decode(data, LIMITS, wanted_by(processor.image_processor)), whole.size
        again = decode(jpeg(whole, whole.size), LIMITS)
        ways["exact"].append(hd_transform(whole, crops, side))
        ways["reduced"].append(hd_transform(image, crops, side, size))
        ways["encoded again"].append(hd_transform(again, crops, side))
    answers = {name: answer(model.eval(), processor, images) for name, images in ways.items()}
    print()
    for name in ("reduced", "encoded again"):
        pairs = list(zip(answers["exact"], answers[name], strict=True))
        same = sum(a.token_ids == b.token_ids for a, b in pairs)
        moved = np.concatenate([log_prob_differences(a, b) for a, b in pairs])
        print(
            f"{name}: {same} of {count} greedy answers identical; log-probabilities of their tokens up to the first "
            f"difference move by {moved.mean():.1g} on average, {np.percentile(moved, 99):.1g} at the 99th percentile, "
            f"{moved.max():.2f} at most"
        )


def sample_photos(count: int, processor: Phi3VImageProcessor) -> Iterator[bytes]:
    index = 0
    while count:
        photo = render(sample_product(1, index, BASE), index)
        index += 1
        wanted = wanted_by(processor)(*photo.size)
        if photo.width >= 2 * wanted[0] and photo.height >= 2 * wanted[1]:
            count -= 1
            yield jpeg(photo, photo.size, 90)


@torch.inference_mode()
def answer(model: torch.nn.Module, processor: Phi3VProcessor, images: list[np.ndarray]) -> list[Generated]:
    prompt = render_turn(make_prompt(tuple(label for _, label in BASE.categories.values()), BASE.currency).instruction)
    answers: list[Generated] = []
    for start in range(0, len(images), 16):
        batch = images[start : start + 16]
        inputs = processor([prompt] * len(batch), [[image] for image in batch], do_hd_transform=False)
        answers += generate_answers(model, inputs, max_new_tokens=64, stop_ids=stop_ids(processor))
    return answers


def log_prob_differences(a: Generated, b: Generated) -> np.ndarray:
    """Of the tokens that both wrote after the same beginning."""
    shared = 0
    while shared < min(len(a.token_ids), len(b.token_ids)) and a.token_ids[shared] == b.token_ids[shared]:
        shared += 1
    return np.abs(a.logprobs[:shared] - b.logprobs[:shared])


if __name__ == "__main__":
    main()
