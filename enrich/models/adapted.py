"""A LoRA adapter on its base, and merged into it."""

import shutil
import zlib
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedModel

from enrich.models.checkpoint import TOKENIZER_FILES, load_model, load_processor, need, raise_for, stop_ids
from enrich.models.registry import CheckpointError

_WEIGHTS = "adapter_model.safetensors"
_SHARD_SIZE = "5GB"


def load_adapted(
    base_path: str | Path, adapter_dir: str | Path, *, dtype: torch.dtype, device: str | torch.device
) -> PeftModel:
    """Load a base in `dtype`, and a LoRA adapter on any of its linears in float32.

    Raises:
        CheckpointError: no adapter_config.json or no adapter_model.safetensors.
        ValueError: no plain LoRA adapter, or tensors that the base does not have, lacks, or has in another shape.
    """
    read = _read_adapter(Path(adapter_dir))  # before the base, which takes minutes
    return _adapt(load_model(base_path, dtype=dtype, device=device), *read, f"{adapter_dir}", f"{base_path}")


def _adapt(
    base: PreTrainedModel, config: LoraConfig, weights: dict[str, torch.Tensor], adapter: str, base_path: str
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
    raise_for(f"adapter {adapter} on base {base_path}", problems)
    set_peft_model_state_dict(wrapped, weights)
    return wrapped.eval()


def load_merged(
    base_path: str | Path,
    adapter_dir: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    quantize_on: torch.device | None = None,
) -> PreTrainedModel:
    """Load a base, add a LoRA adapter into its weights in float32, and cast the sum once. Raises as `load_adapted`.

    The sums are rounded to bfloat16 stochastically. Rounding to nearest would lose the adapter wherever it changes a
    weight by less than half a unit in the last of its 8 bits, because the base's own weights have no further bits:
    after a few steps at full size that is most of the adapter.

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
    """Round stochastically to bfloat16 values (returned as float32), so that the expectation is `values`.

    A seed gives the same on every device: engines that merge for themselves serve the same weights.
    """
    lower = _hashes(values.shape, seed, values.device).bitwise_and_(0xFFFF)
    return ((values.contiguous().view(torch.int32) + lower) & ~0xFFFF).view(torch.float32)


def _hashes(shape: torch.Size, seed: int, device: torch.device) -> torch.Tensor:
    """32 random bits for each element, as int32: lowbias32 (Wellons 2018, "Prospecting for hash functions") of its
    number. These operations of torch give the same on every device, with all threads of a CPU or on a GPU; NumPy draws
    on one thread, 0.2 s for 30 million weights of the 4 billion.
    """
    bits = torch.arange(shape.numel(), dtype=torch.int32, device=device).bitwise_xor_(_as_int32(seed))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits ^= _shifted(bits, shift)
        bits *= _as_int32(factor)
    return (bits ^ _shifted(bits, 16)).view(shape)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift; torch's own shift repeats the sign."""
    return (bits >> by).bitwise_and_((1 << (32 - by)) - 1)


def _as_int32(unsigned: int) -> int:
    return unsigned - (1 << 32) if unsigned >> 31 else unsigned


def save_merged(model: PreTrainedModel, adapter_dir: str | Path, directory: str | Path) -> None:
    """Write what `load_merged` made of an adapter to a new `directory`, as a checkpoint that needs no adapter.

    Weights are sharded safetensors under the original's names; the tokenizer is the adapter's, byte for byte, and so
    are the settings of photos (the `num_crops` trained with); config.json says everything in the original's form too;
    generation_config.json ends an answer at its real end.

    Raises:
        FileExistsError: the directory exists.
        CheckpointError: the adapter has no tokenizer or settings of photos.
    """
    adapter, target = Path(adapter_dir), Path(directory)
    processor = load_processor(adapter)
    target.mkdir(parents=True)
    text = model.config.get_text_config()
    model.generation_config = GenerationConfig(
        bos_token_id=getattr(text, "bos_token_id", None),
        eos_token_id=stop_ids(processor),
        pad_token_id=getattr(text, "pad_token_id", None),
    )
    model.save_pretrained(target, max_shard_size=_SHARD_SIZE)
    processor.save(target)
    for name in TOKENIZER_FILES:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, target / name)


def _read_adapter(adapter: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    need(adapter, "adapter_config.json", adapter / "adapter_config.json")
    need(adapter, _WEIGHTS, adapter / _WEIGHTS)
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        weights = load_file(adapter / _WEIGHTS)
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"adapter {adapter}", f"cannot be read: {error}") from error
    # Initialisations other than these change the base's weights, so that the adapter alone is not the whole difference.
    if not isinstance(config, LoraConfig) or config.init_lora_weights not in (True, False, "gaussian"):
        raise CheckpointError(f"adapter {adapter}", "only plain LoRA adapters can be merged")
    return config, weights
