"""Photos and a full-size checkpoint that nobody trained, for benchmarks of speed.

The checkpoint does all the work of Phi-3-vision and always answers the same three lines: layers are random, but add so
little to a token's embedding that the output layer, which is made to know each token's successor, decides alone.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PRICE = "120"
CATEGORIES = ("BAGS", "HATS")


@dataclass(frozen=True)
class Size:
    """Of a made-up Phi-3-vision: its language model, its vision tower, and the tokens of each of its answers."""

    hidden: int
    layers: int
    heads: int
    inner: int
    num_crops: int
    vision: dict[str, int] | None  # None: CLIP ViT-L/14 at 336 pixels, as in the original
    answer_tokens: int  # `<|end|>` among them
    dtype: str


FULL = Size(3072, 32, 32, 8192, 4, None, 32, "bfloat16")
# To try a script on a CPU. The stock tower takes a CPU seconds a crop.
TINY = Size(192, 2, 2, 256, 1, None, 32, "float32")
# For runs of many photos on a CPU, where everything but the model is measured.
_SMALLEST_TOWER = {
    "image_dim_out": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip
SMALLEST = Size(64, 1, 1, 64, 1, _SMALLEST_TOWER, 16, "float32")

# Tokens of their own, so that no token of the answer comes twice. The newline's comes behind the category.
_OPENINGS = ("Product:", " end\n", "Category:", "Full Price:")
_LAYER_SHARE = 0.005  # of a layer's usual output; 32 of them move a token's embedding by some 3 %


def make_photos(folder: Path, count: int, first: int = 0) -> None:
    """`count` different JPEGs of 1000x1333, named by number. Those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_make_photo, folder), range(first, first + count), chunksize=8))


def _make_photo(folder: Path, index: int) -> None:
    from PIL import Image

    from sample.dialects import DEMO
    from sample.draw import render
    from sample.products import sample_product

    path = folder / f"{index}.jpg"
    if not path.exists():
        photo = render(sample_product(0, index, DEMO), index)
        photo.resize((1000, 1333), Image.Resampling.BICUBIC).save(path, quality=85)


def make_checkpoint(path: Path, size: Size) -> None:
    """Write a checkpoint (8.3 GB where `FULL`), unless it is there. In a process of its own: it may use the GPU."""
    if not path.exists():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_make_checkpoint, path, size).result()


def _make_checkpoint(path: Path, size: Size) -> None:
    import torch

    from enrich.models.checkpoint import load_processor
    from enrich.models.phi3_vision import Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
    from enrich.settings.models import TINY_MODEL_PATH

    tokenizer = load_processor(TINY_MODEL_PATH).tokenizer
    _add_openings(tokenizer)
    crop = {"image_size": size.vision["image_size"]} if size.vision else {}
    processor = Phi3VProcessor(Phi3VImageProcessor(num_crops=size.num_crops, **crop), tokenizer)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Phi3VForCausalLM(_config(tokenizer, size)).to(getattr(torch, size.dtype))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= _LAYER_SHARE
            layer.mlp.down_proj.weight *= _LAYER_SHARE
        embeddings, output = model.model.embed_tokens.weight.normal_(), model.lm_head.weight
        chain = [_prompt_ids(processor)[-1], *_answer_ids(tokenizer, size.answer_tokens)]
        for token, successor in pairwise(chain):
            output[successor] += embeddings[token] * (30 / embeddings[token].square().sum())  # a logit of 30
    model.save_pretrained(path)
    processor.save_pretrained(path)


def make_adapter(path: Path, base: Path) -> None:
    """Write an adapter that changes nothing of the checkpoint `base`."""
    import torch
    from peft import LoraConfig, get_peft_model

    from enrich.answers.calibration import CALIBRATION_FILE, Calibration
    from enrich.models.checkpoint import load_model, load_processor
    from enrich.train.export import write_adapter
    from enrich.vocabulary import RECORD_FILE

    model = load_model(base, dtype=torch.float32, device="cpu")
    model = get_peft_model(model, LoraConfig(r=1, target_modules=["o_proj"]))
    write_adapter(path, model, load_processor(base), prompt(), base)
    (path / CALIBRATION_FILE).write_text(Calibration.uncalibrated().model_dump_json())
    (path / RECORD_FILE).write_text("{}")


def _config(tokenizer: Any, size: Size) -> Any:
    from enrich.models.phi3_vision import Phi3VConfig
    from enrich.models.phi3_vision.processing import END

    half = size.hidden // size.heads // 2
    vision = {"img_processor": size.vision} if size.vision else {}
    return Phi3VConfig(
        architectures=["Phi3VForCausalLM"], vocab_size=32064, hidden_size=size.hidden, intermediate_size=size.inner,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.heads,
        rope_scaling={"type": "su", "short_factor": [1.1] * half, "long_factor": [2.0] * half},
        original_max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END), dtype=size.dtype, **vision,
    )  # fmt: skip


def _add_openings(tokenizer: Any) -> None:
    """Words instead of four others. Added tokens would do if answers might hold them."""
    from tokenizers import Tokenizer

    made = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = made["model"]["vocab"], [tuple(pair) for pair in made["model"]["merges"]]
    parts = {part for pair in merges for part in pair}
    spare = [word for word in ("".join(pair) for pair in reversed(merges)) if word not in parts][: len(_OPENINGS)]
    for word, opening in zip(spare, _OPENINGS, strict=True):
        vocabulary[_spelled(opening)] = vocabulary.pop(word)
    made["model"]["merges"] = [pair for pair in merges if "".join(pair) not in spare]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(made))


def _spelled(text: str) -> str:
    return text.replace(" ", "▁")


def _answer_ids(tokenizer: Any, length: int) -> list[int]:
    """An answer of `length` tokens, `<|end|>` among them, each a different one."""
    from enrich.models.phi3_vision.processing import END

    product, title_end, category, price = tokenizer.convert_tokens_to_ids([_spelled(text) for text in _OPENINGS])
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    end = tokenizer.convert_tokens_to_ids(END)
    label, digits = (tokenizer.encode(text, add_special_tokens=False) for text in (CATEGORIES[0], PRICE))
    rest = [title_end, category, *label, newline, price, *digits, end]
    words = sorted(id for token, id in tokenizer.get_vocab().items() if token[0] == "▁" and token[1:].isalpha())
    title = [id for id in words if id not in rest][: length - len(rest) - 1]
    chain = [product, *title, *rest]
    if len(set(chain)) != length or tokenizer.unk_token_id in chain:
        raise ValueError(f"this tokenizer writes no answer of {length} different tokens")
    return chain


def prompt() -> Any:
    """The prompt that the checkpoint answers."""
    from enrich.answers.prompt import make_prompt

    return make_prompt(CATEGORIES, "EUR")


def _prompt_ids(processor: Any) -> list[int]:
    from enrich.models.phi3_vision.processing import render_turn

    return processor.token_ids(render_turn(prompt().instruction), [1])


def preparation(model: Path) -> Any:
    """How photos are made ready for the checkpoint in `model`."""
    from enrich.models.checkpoint import load_processor
    from enrich.photos.decode import Preparation

    images = load_processor(model).image_processor
    return Preparation(num_crops=images.num_crops, image_size=images.image_size)


def begin_run(source: Any, target: Any, model: Path, settings: Any, how: Any = None) -> Any:
    """A run over the photos of one store that commits to another, with the checkpoint instead of an adapter.

    Args:
        how: photos are prepared; None: as the checkpoint says.
    """
    from datetime import UTC, datetime

    from enrich.answers.calibration import Calibration
    from enrich.engines.adapter import Adapter
    from enrich.output.run_record import RunInfo
    from enrich.pipeline.run.planning import plan_run
    from enrich.pipeline.run.request import RunRequest
    from enrich.pipeline.run.state import Run

    how, calibration = how or preparation(model), Calibration.uncalibrated()
    adapter = Adapter(model, "0" * 16, str(model), None, how, (), prompt(), calibration)
    now = datetime.now(UTC)
    info = RunInfo("benchmark", now, source.uri, "0" * 16, adapter.base, adapter.id, "1", settings.shard_size)
    request = RunRequest(source.uri, str(model), target.uri, settings)
    manifest = plan_run(source, target, info, request, lambda *told: None)
    return Run(request, source, target, adapter, manifest, now)
