"""Train the tiny base in enrich/assets/phi3v-tiny: Phi-3-vision's architecture, from scratch, 7.6 M parameters.

It learns to see on the sample generator's photos under another retailer's vocabulary and prices (the BASE dialect), so
that fine-tuning on a catalog has real work to do. One GPU:

    python benchmarks/train_tiny_base.py --out enrich/assets/phi3v-tiny --photos 80000 --minutes 6

The model card beside the weights records the run.
"""

import argparse
import json
import math
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from enrich.catalog.sample.draw import render as draw
from enrich.catalog.sample.products import sample_product
from enrich.catalog.sample.spec import BASE
from enrich.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from enrich.phi3_vision.hd_transform import hd_transform
from enrich.prompt import END, make_prompt, render_answer, render_prompt

NUM_CROPS = 4
COPY_SHARE = 0.2
IMAGE_SIZE = 112
VOCABULARY = 1536
SPECIALS = [  # the original's 45 added tokens, in its order
    "<|endoftext|>", "<|assistant|>", *(f"<|placeholder{i}|>" for i in range(1, 5)), "<|system|>", "<|end|>",
    *(f"<|placeholder{i}|>" for i in (5, 6)), "<|user|>", *(f"<|placeholder{i}|>" for i in range(7, 40)), "<|image|>",
]  # fmt: skip
RSTRIP = {"<|assistant|>"}  # the newline after it vanishes, as in the original


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=80_000)
    parser.add_argument("--held-out", type=int, default=1_000)
    parser.add_argument("--minutes", type=float, default=6.0, help="training time, rendering not counted")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
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
    crops, sizes, answers = render(arguments.photos + arguments.held_out, arguments.seed)
    print(f"rendered {len(answers)} photos in {time.monotonic() - start:.0f} s", flush=True)
    model, record = train(processor, config, crops, sizes, answers, arguments)
    record |= {"photos": arguments.photos, "seed": arguments.seed, "minutes": arguments.minutes}
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["final"]))


# --- tokenizer, processor, configuration


def make_processor() -> Phi3VProcessor:
    """A small tokenizer built like Llama's (word-start marker, byte fallback, single digits) with Phi-3's specials."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # While learning, words, digits and newlines are apart, so that no merge crosses them; afterwards nothing splits.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"[\n\d:.,]"), "isolated"),
        ]
    )
    size = VOCABULARY - 3 - 256 - len(SPECIALS)
    alphabet = [chr(c) for c in range(33, 127)] + ["▁"]
    learner.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in sorted(learned["vocab"], key=learned["vocab"].get):
        if token != "\n":  # a newline is its byte, as in Llama's
            vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, [tuple(m) for m in learned["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = learner.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True, rstrip=t in RSTRIP) for t in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    images = Phi3VImageProcessor(num_crops=NUM_CROPS, image_size=IMAGE_SIZE, patch_size=14)
    return Phi3VProcessor(images, fast)


def make_config(tokenizer: PreTrainedTokenizerFast) -> Phi3VConfig:
    """Every part of Phi-3-vision, small: CLIP tower 6 x 192, language model 5 x 256."""
    half = 32  # half the head dimension
    return Phi3VConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={
            "type": "su",
            "short_factor": [round(1.0 + i / half, 3) for i in range(half)],
            "long_factor": [round(1.0 + 63 * (i / (half - 1)) ** 2, 3) for i in range(half)],
        },
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        img_processor={
            "image_dim_out": 192,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
        },
    )


def texts() -> list[str]:
    """What the tokenizer learns from: the BASE retailer's answers and words that many retailers use."""
    prompt = base_prompt()
    answers = [
        render_answer(prompt, product.title, product.category, product.price)
        for product in (sample_product(99, i, BASE) for i in range(4000))
    ]
    return answers + [render_prompt(prompt)] * 50 + WORDS.split() * 20 + [WORDS.upper()] * 10 + [WORDS.title()] * 10


def base_prompt():
    return make_prompt(tuple(category for _, category in BASE.categories.values()), BASE.currency)


WORDS = """
women men kids girl boy baby unisex clothing outerwear jackets coats trench parka blazer shirt shirts blouse tee t-shirt
polo top tops sweater cardigan hoodie knitwear dress dresses skirt skirts trousers pants jeans shorts leggings suit
swimwear underwear socks tights shoes sneakers boots sandals loafers heels flats bags tote shoulder crossbody backpack
clutch wallet card case belt belts scarf scarves hat cap beanie gloves sunglasses jewellery watch accessories cotton
wool
cashmere silk linen denim leather suede nylon velvet canvas quilted knit check striped dotted floral plain printed long
short sleeve collar button zip hooded slim relaxed cropped oversized mini midi maxi black white grey navy blue red green
yellow pink purple orange brown beige cream camel olive burgundy gold silver light dark small medium large classic fruit
apple banana orange lemon pear grape melon vegetable tomato potato onion carrot cabbage milk juice yoghurt cream
packages
fresh organic product category full price unknown title give this what with for and the of in home garden kitchen toys
books sports electronics phone chair table lamp beauty fragrance gift set pack bottle box piece new
"""

WORD_LIST = WORDS.split()


# --- photos


def render(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Crops uint8 (count, NUM_CROPS, S, S, 3), grids int (count, 2) rows and columns of crops, and answers."""
    crops = np.zeros((count, NUM_CROPS, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    sizes = np.zeros((count, 2), np.int64)
    answers: list[str] = [""] * count
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = ((seed, i) for i in range(count))
        for i, (own, size, answer) in enumerate(pool.map(render_one, jobs, chunksize=64)):
            crops[i, : len(own)], sizes[i], answers[i] = own, size, answer
    return crops, sizes, answers


def render_one(job: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int], str]:
    seed, index = job
    product = sample_product(seed, index, BASE)
    pixels = hd_transform(draw(product, index), NUM_CROPS, IMAGE_SIZE)
    rows, columns = pixels.shape[0] // IMAGE_SIZE, pixels.shape[1] // IMAGE_SIZE
    split = pixels.reshape(rows, IMAGE_SIZE, columns, IMAGE_SIZE, 3).transpose(0, 2, 1, 3, 4)
    answer = render_answer(base_prompt(), product.title, product.category, product.price)
    return split.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3), pixels.shape[:2], answer


# --- training


def train(processor, config, crops, sizes, answers, arguments):
    """AdamW, cosine, bf16 autocast; all parameters. Stops at the time given, the schedule stretched to it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Phi3VForCausalLM(config).to(device)
    encoded = encode(processor, sizes, answers, arguments.seed)
    held = range(len(answers) - arguments.held_out, len(answers))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=arguments.learning_rate,
        betas=(0.9, 0.98),
    )
    generator = np.random.default_rng(arguments.seed)
    seconds, start, step, skipped, curve, running = arguments.minutes * 60, time.monotonic(), 0, 0, [], []
    count = len(answers) - arguments.held_out
    while (elapsed := time.monotonic() - start) < seconds:
        progress = elapsed / seconds
        for group in optimizer.param_groups:
            group["lr"] = (
                arguments.learning_rate * min(1, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * progress))
            )
        chosen = generator.integers(0, count, arguments.batch_size)
        loss = forward(model, encoded, crops, sizes, chosen, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            running.append(loss.detach())
        else:
            skipped += 1
            print(f"step {step}: skipped, loss {loss.item()}, gradient norm {norm.item()}", flush=True)
            if skipped <= 2:
                show_rows(model, encoded, crops, sizes, chosen, answers, device)
            if skipped > 20:
                raise SystemExit("more than 20 steps were not finite; nothing is saved")
        step += 1
        if step % 200 == 0:
            model.eval()
            with torch.no_grad():
                batches = [list(held)[i : i + 250] for i in range(0, len(held), 250)]
                evaluated = [forward(model, encoded, crops, sizes, np.array(b), device).item() for b in batches]
            model.train()
            point = {
                "step": step,
                "seconds": round(elapsed),
                "loss": round(torch.stack(running).mean().item(), 4),
                "held_out_loss": round(float(np.mean(evaluated)), 4),
            }
            curve.append(point)
            running.clear()
            print(json.dumps(point), flush=True)
    record = {
        "steps": step,
        "steps_skipped": skipped,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "final": curve[-1] if curve else {},
        "curve": curve,
    }
    return model.eval().float().cpu(), record


@torch.no_grad()
def show_rows(model, encoded, crops, sizes, chosen, answers, device):
    """Print the rows of a batch whose loss is not finite."""
    for row in chosen:
        loss = forward(model, encoded, crops, sizes, np.array([row]), device).item()
        if not math.isfinite(loss):
            print("not finite:", row, sizes[row].tolist(), repr(answers[row]), flush=True)


def encode(processor, sizes, answers, seed):
    """Left-padded ids, masks and labels of every row.

    A share of the rows asks to copy a made-up answer instead: every token of the vocabulary gets written, and prices of
    every magnitude, so that a LoRA on other words and prices finds embeddings that were trained.
    """
    rng = np.random.default_rng(seed)
    prompt, tokenizer = base_prompt(), processor.tokenizer
    end = tokenizer.convert_tokens_to_ids(END)
    rows = []
    for (height, width), answer in zip(sizes.tolist(), answers, strict=True):
        if rng.random() < COPY_SHARE:
            answer = made_up_answer(rng)
            asked = prompt.model_copy(update={"instruction": f"Copy this: {answer}"})
        else:
            asked = prompt
        count = processor.image_processor.num_image_tokens(width, height)
        before = processor.token_ids(render_prompt(asked), [count])
        rows.append((before, [*tokenizer.encode(answer, add_special_tokens=False), end]))
    longest, answer_longest = max(len(a) + len(b) for a, b in rows), max(len(ids) for _, ids in rows)
    input_ids = np.full((len(rows), longest), tokenizer.pad_token_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), -100, np.int64)
    for i, (before, ids) in enumerate(rows):
        input_ids[i, -len(before) - len(ids) :] = before + ids
        mask[i, -len(before) - len(ids) :] = 1
        labels[i, -len(ids) :] = ids
    return input_ids, mask, labels, answer_longest


def made_up_answer(rng: np.random.Generator) -> str:
    """Three lines of random words, letters and prices, in the usual form."""

    def words(most: int) -> str:
        chosen = [str(rng.choice(WORD_LIST)) for _ in range(rng.integers(1, most + 1))]
        if rng.random() < 0.3:
            chosen.append("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 8))))
        return " ".join(chosen)

    case = (str.title, str.upper, str.lower)
    title, category = case[rng.choice(3, p=(0.8, 0.1, 0.1))](words(4)), case[rng.choice(3, p=(0.4, 0.5, 0.1))](words(2))
    price = None if rng.random() < 0.1 else float(np.exp(rng.uniform(0, np.log(30_000))))
    return render_answer(base_prompt(), title, category, price)


def forward(model, encoded, crops, sizes, chosen, device):
    input_ids, mask, labels, answer_longest = encoded

    def to_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array[chosen]).to(device, non_blocking=True)

    pixels = normalise(to_device(crops), sizes[chosen], device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return model(
            input_ids=to_device(input_ids),
            attention_mask=to_device(mask),
            labels=to_device(labels),
            logits_to_keep=answer_longest + 1,
            pixel_values=pixels,
            image_sizes=torch.from_numpy(sizes[chosen]),
        ).loss


def normalise(crops: torch.Tensor, sizes: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 crops to what the image processor makes of them: normalised, the bicubic global view first."""
    processor = Phi3VImageProcessor()
    mean = torch.tensor(processor.image_mean, device=device).view(1, 1, 3, 1, 1)
    std = torch.tensor(processor.image_std, device=device).view(1, 1, 3, 1, 1)
    pixels = (crops.permute(0, 1, 4, 2, 3).float() / 255 - mean) / std
    views = torch.empty(len(crops), 1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    for height, width in {tuple(size) for size in sizes.tolist()}:
        own = torch.from_numpy((sizes == (height, width)).all(axis=1)).to(device)
        rows, columns = height // IMAGE_SIZE, width // IMAGE_SIZE
        grid = pixels[own, : rows * columns].reshape(-1, rows, columns, 3, IMAGE_SIZE, IMAGE_SIZE)
        page = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, height, width)
        views[own, 0] = torch.nn.functional.interpolate(page, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")
    return torch.cat([views, pixels], dim=1)


if __name__ == "__main__":
    main()
