"""Finding, loading and merging checkpoints: safetensors only, no remote code, and no tensor silently missed."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, GenerationConfig

from .auto import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor

# Configuration, tokenizer and weights; neither code (*.py) nor pickles (*.bin, *.pt) are ever fetched.
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model"]
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # the original's, ours
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"  # in one file, or which shard holds what
_SHARD_SIZE = "5GB"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# The turn's real end, and two tokens that can only follow it. The published config.json names 2, which no chat holds.
STOP_TOKENS = ("<|end|>", "<|endoftext|>", "<|assistant|>")


class CheckpointError(ValueError):
    """A model or adapter directory that cannot be used. The message is `place` (name or directory) and `reason`."""

    def __init__(self, place: str | Path, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason = str(place), reason


def resolve(name_or_path: str, revision: str | None = None) -> Path:
    """The directory of a checkpoint: a local one, else a Hugging Face model, downloaded or from its cache.

    Raises:
        CheckpointError: no such local directory; the hub cannot deliver the model at that revision; config.json or some
            of the safetensors weights are missing; another kind of model.
        ValueError: a file is damaged.
    """
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        return _checked(local)
    if local.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(name_or_path, "no such directory; give a local checkpoint or a Hub name")
    try:
        directory = snapshot_download(name_or_path, revision=revision, allow_patterns=_HUB_FILES)
    except HFValidationError as error:
        raise CheckpointError(name_or_path, "neither a local directory nor a Hub name") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise CheckpointError(
            f"{name_or_path} at revision {revision or 'main'}",
            f"cannot be fetched ({reason}); check the name and the network, or give a local directory",
        ) from error
    return _checked(Path(directory))


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attention: str = "sdpa",
    load_in_4bit: bool = False,
) -> Phi3VForCausalLM:
    """Load a checkpoint in eval mode, every tensor from the file and every tensor of the file used.

    Args:
        attention: transformers' name of the attention kernels.
        load_in_4bit: keep the decoder layers' weights in NF4 with double quantisation (QLoRA, arXiv 2305.14314), 0.52
            bytes a weight; vision tower, projector, embeddings and head stay in `dtype`. Needs bitsandbytes.

    Raises:
        CheckpointError: missing files, or another kind of model.
        ValueError: a damaged file, or missing, unexpected or mismatched tensors.
    """
    directory = _checked(Path(path))
    model, info = Phi3VForCausalLM.from_pretrained(
        directory,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=attention,
        quantization_config=_nf4(dtype) if load_in_4bit else None,
        use_safetensors=True,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # reported below, as one error
        output_loading_info=True,
    )
    kinds = ("missing", "unexpected", "mismatched")
    problems = {kind: sorted(_key(entry) for entry in info[f"{kind}_keys"]) for kind in kinds}
    _raise_for(f"checkpoint {directory}", problems)
    # The caller decides how to decode: a temperature or penalty of the checkpoint would change greedy answers.
    model.generation_config = GenerationConfig()
    return model.eval()


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["model.vision_embed_tokens", "lm_head"],
    )


def load_processor(path: str | Path, **overrides: Any) -> Phi3VProcessor:
    """Load the processor of an original or re-saved checkpoint, or of an adapter.

    `overrides` (num_crops, fast_decode) stand for what the image processor's file says.

    Raises:
        CheckpointError: no tokenizer.json, or no image processor file.
    """
    directory = Path(path)
    _need(directory, "tokenizer.json", directory / "tokenizer.json")
    _need(directory, "preprocessor_config.json", *(directory / name for name in _IMAGE_PROCESSOR_FILES))
    return Phi3VProcessor.from_pretrained(directory, local_files_only=True, **overrides)


def load_adapted(
    base_path: str | Path, adapter_dir: str | Path, *, dtype: torch.dtype, device: str | torch.device
) -> PeftModel:
    """Load a base in `dtype` and a LoRA adapter, on any of its linears, in float32 beside it.

    Raises:
        CheckpointError: no adapter_config.json or no adapter_model.safetensors.
        ValueError: no plain LoRA adapter, or tensors that the base does not have, lacks, or has in another shape.
    """
    read = _read_adapter(Path(adapter_dir))  # before the base, which takes minutes
    return _adapt(load_model(base_path, dtype=dtype, device=device), *read, f"{adapter_dir}", f"{base_path}")


def _adapt(
    base: Phi3VForCausalLM, config: LoraConfig, weights: dict[str, torch.Tensor], adapter: str, base_path: str
) -> PeftModel:
    try:
        wrapped = get_peft_model(base, config)
    except ValueError as error:  # no module of the base has a target's name
        raise ValueError(f"adapter {adapter} does not fit base {base_path}: {error}") from error
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    shared = expected.keys() & weights.keys()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "mismatched": sorted(key for key in shared if expected[key].shape != weights[key].shape),
    }
    _raise_for(f"adapter {adapter} on base {base_path}", problems)
    set_peft_model_state_dict(wrapped, weights)
    return wrapped.eval()


def load_merged(
    base_path: str | Path,
    adapter_dir: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    quantize_on: torch.device | None = None,
) -> Phi3VForCausalLM:
    """Load a base, add a LoRA adapter into its weights in float32, and cast the sum once. Raises as `load_adapted`.

    To bfloat16 the sums are rounded stochastically. Rounding to the nearest would lose the adapter wherever it moves a
    weight by less than half a unit in the last of its 8 bits, since the base's own weights have no bits beyond these:
    after few steps at full size that is most of it.

    Args:
        quantize_on: the device of a training with `load_in_4bit`. The base's weights then go to NF4 there and back
            first, so that they are those that this training saw.
    """
    if quantize_on is None:
        adapted = load_adapted(base_path, adapter_dir, dtype=torch.float32, device=device)
    else:
        read = _read_adapter(Path(adapter_dir))
        base = load_model(base_path, dtype=dtype, device=quantize_on, load_in_4bit=True).dequantize()
        adapted = _adapt(base.to(device).float(), *read, f"{adapter_dir}", f"{base_path}")
    layers = [name for name, module in adapted.get_base_model().named_modules() if isinstance(module, LoraLayer)]
    merged = adapted.merge_and_unload()
    if dtype == torch.bfloat16:
        for name in layers:
            weight = merged.get_parameter(f"{name}.weight")
            weight.data = _rounded_to_bf16(weight.data, seed=zlib.crc32(name.encode()))
    return merged.to(dtype).eval()


def _rounded_to_bf16(values: torch.Tensor, seed: int) -> torch.Tensor:
    """Float32 values that bfloat16 holds: up or down, the nearer the likelier, so that the expectation is `values`.

    A seed gives the same on every device: engines that merge for themselves serve the same weights.
    """
    draws = np.random.SFC64(seed).random_raw(-(-values.numel() // 4)).view(np.int16)[: values.numel()]
    lower = torch.from_numpy(draws).to(values.device).to(torch.int32).bitwise_and(0xFFFF).view(values.shape)
    return ((values.contiguous().view(torch.int32) + lower) & ~0xFFFF).view(torch.float32)


def save_merged(model: Phi3VForCausalLM, adapter_dir: str | Path, directory: str | Path) -> None:
    """Write what `load_merged` made of an adapter to a new `directory`, as a checkpoint that needs no adapter.

    Weights are sharded safetensors under the original's names; the tokenizer is the adapter's, byte for byte, and so
    are the image processor's settings (the `num_crops` trained with); config.json and preprocessor_config.json say
    everything in the original's form too; generation_config.json ends an answer at its real end.

    Raises:
        FileExistsError: the directory exists.
        CheckpointError: the adapter has no tokenizer or image processor.
        ValueError: the tokenizer does not know the stop tokens.
    """
    adapter, target = Path(adapter_dir), Path(directory)
    processor = load_processor(adapter)
    known = processor.tokenizer.get_vocab()
    for token in STOP_TOKENS:
        if token not in known:
            raise CheckpointError(f"adapter {adapter}", f"its tokenizer has no {token}, where an answer ends")
    target.mkdir(parents=True)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=stop_ids(processor),
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(target, max_shard_size=_SHARD_SIZE)
    processor.image_processor.save_pretrained(target)
    for name in TOKENIZER_FILES:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, target / name)


def stop_ids(processor: Phi3VProcessor) -> list[int]:
    """Ids of `STOP_TOKENS`: `<|end|>` closes a turn; the other two end a text that forgot to."""
    return processor.tokenizer.convert_tokens_to_ids(list(STOP_TOKENS))


def weights_signature(directory: Path) -> str:
    """A hash of a checkpoint's tensors: names, shapes and 16 numbers of each, rounded to bfloat16.

    So it is the same for a copy in other files or another precision, and next to nothing is read.

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


def _read_adapter(adapter: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    _need(adapter, "adapter_config.json", adapter / "adapter_config.json")
    _need(adapter, _ADAPTER_WEIGHTS, adapter / _ADAPTER_WEIGHTS)
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        weights = load_file(adapter / _ADAPTER_WEIGHTS)
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"adapter {adapter}", f"cannot be read: {error}") from error
    # Initialisations other than these change the base's weights, so that the adapter alone is not the whole difference.
    if not isinstance(config, LoraConfig) or config.init_lora_weights not in (True, False, "gaussian"):
        raise CheckpointError(f"adapter {adapter}", "only plain LoRA adapters can be merged")
    return config, weights


def _checked(directory: Path) -> Path:
    _need(directory, "config.json", directory / "config.json")
    _need(directory, "*.safetensors weights (pickled *.bin ones are refused)", *directory.glob("*.safetensors"))
    model_type = _read_object(directory / "config.json").get("model_type")
    if model_type != Phi3VConfig.model_type:
        raise CheckpointError(directory, f"model_type is {model_type!r}, expected {Phi3VConfig.model_type!r}")
    for name in _weight_files(directory):
        _need(directory, name, directory / name)
        with _open_weights(directory / name):  # reads the header, which says how long the file is
            pass
    return directory


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
    _need(directory, f"{_WEIGHTS} and no {_INDEX}", directory / _INDEX)
    weight_map = _read_object(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{directory}/{_INDEX} is damaged; fetch it again")
    return sorted(set(weight_map.values()))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: not a JSON object; fetch it again")
    return found


def _need(directory: Path, what: str, *candidates: Path) -> None:
    if not any(candidate.is_file() for candidate in candidates):
        raise CheckpointError(directory, f"no {what}; give a complete checkpoint directory")


def _key(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry[0])  # mismatched: (name, shape in file, shape in model)


def _raise_for(where: str, problems: dict[str, list[str]]) -> None:
    parts = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in problems.items() if names]
    if parts:
        raise ValueError(f"{where}: tensors do not match the model: {', '.join(parts)}")
