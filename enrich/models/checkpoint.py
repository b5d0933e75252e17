"""Checking and loading checkpoints: safetensors only, no remote code, and no tensor silently missed."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from enrich.models.base import PhotoTokens
from enrich.models.protocols import Processor
from enrich.models.registry import CheckpointError, family_of, layouts, read_object

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"  # in one file, or which shard holds what
_QUANTIZED = {"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8"}  # safetensors' types
_FULL_PRECISION = "give the model in full precision (load_in_4bit: true makes 4 bits of it)"
USABLE = "give the directory of a checkpoint with config.json and *.safetensors"
_OWN = "give it its own tokenizer.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attention: str = "sdpa",
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint of any family; see `VisionModel.load_model`.

    Raises:
        CheckpointError: missing files, another kind of model, or a config.json that does not go with the weights.
        ValueError: a damaged file, or missing, unexpected or mismatched tensors.
    """
    directory = checked(Path(path))
    empty_model(directory)
    family = family_of(directory).load()
    model = family.load_model(directory, dtype=dtype, device=device, attention=attention, load_in_4bit=load_in_4bit)
    if load_in_4bit:
        _keep_gradients(model)
    return model


def empty_model(directory: Path) -> PreTrainedModel:
    """The model of a checkpoint in shapes without storage: 60 ms for 4 B parameters; see `VisionModel.empty_model`.

    Raises:
        CheckpointError: config.json describes no model, or one of more than twice its weights: what they lack would be
            made up and take memory, before `load_whole` could name it.
    """
    try:
        with torch.device("meta"):
            model = family_of(directory).load().empty_model(directory)
    except CheckpointError:
        raise
    except Exception as error:  # transformers reports impossible sizes by whatever its code happens to raise
        raise CheckpointError(directory, f"config.json describes no model ({_told(error)}); fetch it again") from error
    described, found = sum(one.numel() for one in model.parameters()), _count_weights(directory)
    if described > 2 * found:
        reason = f"config.json describes a model of {described:,} parameters, and the weights are {found:,} numbers"
        raise CheckpointError(directory, f"{reason}; give all files of one model")
    return model


def _count_weights(directory: Path) -> int:
    count = 0
    for name in _weight_files(directory):
        with _open_weights(directory / name) as file:
            count += sum(math.prod(file.get_slice(tensor).get_shape()) for tensor in file.keys())  # noqa: SIM118
    return count


def _keep_gradients(model: Any) -> None:
    """Keep bitsandbytes (0.50) from packing weights for AVX512-BF16 the first time that a CPU generates.

    Packed weights are multiplied by a kernel without a gradient: training would learn next to nothing from then on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_whole(model_class: Any, directory: Path, **arguments: Any) -> Any:
    """`model_class.from_pretrained` in eval mode, every tensor from the file and every tensor of the file used.

    Args:
        arguments: for from_pretrained.

    Raises:
        ValueError: missing, unexpected or mismatched tensors.
    """
    model, info = model_class.from_pretrained(
        directory,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # reported below, as one error
        output_loading_info=True,
        **arguments,
    )
    kinds = ("missing", "unexpected", "mismatched")
    problems = {kind: sorted(_key(entry) for entry in info[f"{kind}_keys"]) for kind in kinds}
    raise_for(f"checkpoint {directory}", problems)
    # The caller decides how to decode: a temperature or penalty of the checkpoint would change greedy answers.
    model.generation_config = GenerationConfig()
    return model.eval()


def nf4(dtype: torch.dtype, skipped: Sequence[str]) -> BitsAndBytesConfig:
    """Weights in NF4 with double quantisation (QLoRA, arXiv 2305.14314), 0.52 bytes each, but those of the modules
    `skipped`, which stay in `dtype`. Needs bitsandbytes."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skipped),
    )


def load_processor(path: str | Path, **changes: Any) -> Processor:
    """Load the processor of a checkpoint of any family, or of an adapter; see `VisionModel.load_processor`.

    `changes` (num_crops, fast_decode) stand for what its files say.

    Raises:
        CheckpointError: no tokenizer.json, no settings of photos, files that cannot be read or belong to another model,
            a missing package, or another kind of model.
    """
    directory = Path(path)
    model = family_of(directory).load()
    need(directory, "tokenizer.json", directory / "tokenizer.json")
    try:
        processor = model.load_processor(directory, **changes)
        used = processor.prompt_ids("Product", [PhotoTokens(0)])
        pixels = _try_photo(processor)
        side = model.square_side(AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False))
    except CheckpointError:
        raise
    except Exception as error:  # transformers reports a damaged file by whatever its code happens to raise
        what = "its configuration, tokenizer or settings of photos cannot be used"
        raise CheckpointError(directory, f"{what} ({_told(error)}); fetch it again") from error
    if side != processor.preparation.image_size:
        cut = f"its settings of photos cut squares of {processor.preparation.image_size} pixels, and the model takes"
        raise CheckpointError(directory, f"{cut} {side}; give it the settings that came with it")
    if not all(one.isfinite().all() for one in pixels.values()):
        raise CheckpointError(directory, "its settings of photos make no finite numbers of pixels; fetch it again")
    vocabulary = processor.tokenizer.get_vocab()
    if unknown := [token for token in processor.stop_tokens if token not in vocabulary]:
        raise CheckpointError(directory, f"its tokenizer has no {unknown[0]}, where an answer ends; {_OWN}")
    config = read_object(directory / "config.json")
    size, highest = {**config, **(config.get("text_config") or {})}.get("vocab_size"), max(*used, *stop_ids(processor))
    if isinstance(size, int) and highest >= size:
        raise CheckpointError(directory, f"its tokenizer writes the id {highest}, its vocabulary has {size}; {_OWN}")
    return processor


def _try_photo(processor: Processor) -> dict[str, torch.Tensor]:
    """What the processor makes of a small black photo."""
    how = processor.preparation
    page = layouts()[how.layout].page(Image.new("RGB", (64, 64)), how.most(0), how.image_size)
    joined = processor.join([processor.preprocess(page)])
    return processor.pixels(joined, torch.device("cpu"), torch.float32)


def stop_ids(processor: Processor) -> list[int]:
    """Ids that end an answer, the turn's end first."""
    return processor.tokenizer.convert_tokens_to_ids(list(processor.stop_tokens))


def weights_signature(directory: Path) -> str:
    """A hash of a checkpoint's tensors: names, shapes and 16 numbers of each, rounded to bfloat16.

    It is therefore the same for a copy in other files or another precision, and reads almost nothing.

    Raises:
        ValueError: a file of weights is damaged.
    """
    found = []
    for name in _weight_files(directory):
        with _open_weights(directory / name) as file:
            for tensor in file.keys():  # noqa: SIM118
                part = file.get_slice(tensor)
                shape = part.get_shape()
                row = part[shape[0] // 2 : shape[0] // 2 + 1] if shape else file.get_tensor(tensor)
                few = row.flatten()[:16].to(torch.bfloat16).float().tolist()
                found.append([tensor, shape, few])
    return hashlib.sha256(json.dumps(sorted(found, key=lambda entry: entry[0])).encode()).hexdigest()[:16]


def checked(directory: Path) -> Path:
    """The directory, if it holds a whole checkpoint of a family, in full precision.

    Raises:
        CheckpointError: config.json or some of the safetensors weights are missing; another kind of model, an adapter,
            or quantized weights.
        ValueError: a file is damaged.
    """
    if not any(directory.glob("*.safetensors")) and (other := [*directory.glob("*.gguf"), *directory.glob("*.bin")]):
        raise CheckpointError(directory, f"weights as {other[0].name}, which are not read; {USABLE}")
    check_kind(directory)
    need(directory, "*.safetensors weights", *directory.glob("*.safetensors"))
    for name in _weight_files(directory):
        need(directory, name, directory / name)
        with _open_weights(directory / name) as file:  # reads the header, which says how long the file is
            types = {file.get_slice(tensor).get_dtype() for tensor in file.keys()}  # noqa: SIM118
        if found := types & _QUANTIZED:
            raise CheckpointError(directory, f"{name} holds weights in {min(found)}; {_FULL_PRECISION}")
    return directory


def check_kind(directory: Path) -> None:
    """Refuse all but a model of a family in full precision, as far as the small files say. Raises CheckpointError."""
    if (directory / "adapter_config.json").is_file():
        base = read_object(directory / "adapter_config.json").get("base_model_name_or_path")
        raise CheckpointError(
            directory,
            f"a LoRA adapter, not a model; give its base ({base}), or what `enrich merge` makes of the two",
        )
    family_of(directory)
    if quantized := read_object(directory / "config.json").get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise CheckpointError(directory, f"quantized weights ({method or 'quantization_config'}); {_FULL_PRECISION}")


@contextmanager
def _open_weights(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; fetch it again") from error


def _weight_files(directory: Path) -> list[str]:
    """Names of the files that hold the weights, as transformers chooses them."""
    if (directory / _WEIGHTS).is_file():
        return [_WEIGHTS]
    need(directory, f"{_WEIGHTS} and no {_INDEX}", directory / _INDEX)
    index = read_object(directory / _INDEX)
    weight_map = index.get("weight_map")
    names: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    if not isinstance(index.get("metadata"), dict) or not all(map(_is_file_name, names)):
        raise ValueError(f"{directory}/{_INDEX} is damaged; fetch it again")
    return sorted(set(names))


def _is_file_name(name: Any) -> bool:
    """Whether it names a file of this directory. An index from outside could name any other file of the machine."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def need(directory: Path, what: str, *candidates: Path) -> None:
    """Refuse a directory that has none of these files. Raises CheckpointError."""
    if not any(candidate.is_file() for candidate in candidates):
        raise CheckpointError(directory, f"no {what}; give a complete checkpoint directory")


def _told(error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    line = line if len(line) <= 500 else f"{line[:500]} [...]"  # some list all that they know
    return f"{type(error).__name__}: {line}"


def _key(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry[0])  # mismatched: (name, shape in file, shape in model)


def raise_for(where: str, problems: dict[str, list[str]]) -> None:
    """Report names of tensors, by what is wrong with them, as one ValueError."""
    parts = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in problems.items() if names]
    if parts:
        raise ValueError(f"{where}: tensors do not match the model: {', '.join(parts)}")
