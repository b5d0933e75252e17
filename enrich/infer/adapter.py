"""An adapter directory, read and checked before anything relies on it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from enrich.errors import UsageError
from enrich.images import Preparation
from enrich.price import CALIBRATION_FILE, Calibration
from enrich.prompt import PROMPT_FILE, Prompt
from enrich.schema import DROPPED_FILE
from enrich.scores import SCORES_FILE
from enrich.settings import TINY_MODEL, TINY_MODEL_PATH

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
RECORD_FILE = "train.json"  # written last: an adapter without it is not whole
REQUIRED = (CONFIG_FILE, WEIGHTS_FILE, "config.json", "preprocessor_config.json", "tokenizer.json", PROMPT_FILE)
# Of a configuration, what another version or precision of the same model may say otherwise.
_WRITTEN_ANEW = {"transformers_version", "dtype", "torch_dtype", "auto_map", "_name_or_path"}
METRICS_FILE = "metrics.json"
# What changes no answer and so does not enter the id.
RECORDS = ("README.md", METRICS_FILE, SCORES_FILE, DROPPED_FILE, RECORD_FILE)


@dataclass(frozen=True)
class Adapter:
    """A fine-tuned adapter: where it lies, what it belongs to, and how far it can be trusted."""

    path: Path
    id: str  # 16 hex digits of a hash of everything that shapes an answer
    base: str  # a hub id, a directory, or the name of the tiny base
    revision: str | None
    preparation: Preparation
    merge_only: tuple[str, ...]  # why vLLM could serve it merged only; empty where it could beside its base
    prompt: Prompt
    calibration: Calibration


def read_adapter(path: Path) -> Adapter:
    """Read the adapter directory `path`.

    Raises:
        UsageError: a file is missing or damaged, or the adapter belongs to another kind of model.
    """
    if not path.is_dir():
        raise UsageError(f"adapter {path}: no such directory; make one with `enrich finetune --out {path}`")
    for name in (*REQUIRED, RECORD_FILE, CALIBRATION_FILE):
        if not (path / name).is_file():
            raise UsageError(
                f"adapter {path}: {name} is missing; it is not whole, make it again with `enrich finetune`"
            )
    model_type = _read_json(path / "config.json").get("model_type")
    if model_type != "phi3_v":
        raise UsageError(
            f"adapter {path}: made for a {model_type} model, not Phi-3-vision; fine-tune one with `enrich`"
        )
    lora = _read_json(path / CONFIG_FILE)
    base, revision = lora.get("base_model_name_or_path"), lora.get("revision")
    if lora.get("peft_type") != "LORA" or not isinstance(base, str) or not base:
        raise UsageError(
            f"adapter {path}: {CONFIG_FILE} names no LoRA adapter with a base; make it with `enrich finetune`"
        )
    try:
        calibration = Calibration.model_validate_json((path / CALIBRATION_FILE).read_bytes())
    except ValidationError as error:
        raise UsageError(f"adapter {path}: {CALIBRATION_FILE} is damaged; make the adapter again") from error
    crops = _read_json(path / "preprocessor_config.json")
    preparation = Preparation(
        num_crops=crops.get("num_crops", 0),
        image_size=crops.get("image_size", 336),  # the original's, whose file does not say it
        fast_decode=crops.get("fast_decode", False),
    )
    if not isinstance(preparation.num_crops, int) or preparation.num_crops < 1:
        raise UsageError(f"adapter {path}: preprocessor_config.json names no num_crops; make the adapter again")
    return Adapter(
        path=path,
        id=adapter_id(path),
        base=base,
        revision=revision,
        preparation=preparation,
        merge_only=tuple(_read_json(path / RECORD_FILE).get("preflight", {}).get("merge_only", ())),
        prompt=Prompt.read(path / PROMPT_FILE),
        calibration=calibration,
    )


def read_metrics(path: Path) -> dict[str, Any] | None:
    """The scores of an adapter directory (metrics.json); None where it has none that can be read: no run needs them."""
    try:
        loaded = json.loads((path / METRICS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None


def check_base(adapter: Adapter, base: Path) -> None:
    """UsageError if the model in `base` is not the one the adapter was made from, as far as its configuration tells."""
    mine, theirs = (_with_positions(_read_json(path / "config.json")) for path in (adapter.path, base))
    odd = [key for key in sorted({*mine, *theirs} - _WRITTEN_ANEW) if mine.get(key) != theirs.get(key)]
    if odd:
        raise UsageError(
            f"adapter {adapter.path}: it does not fit its base {adapter.base}: {odd[0]} differs; "
            "fine-tune on this base, or name the base it was made from"
        )


def _with_positions(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with its rotary positions in one form: files have the original's, transformers 5's, or both."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return config
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    others = {
        key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling", "rope_theta")
    }
    return {**others, "rope_parameters": (theta, rope.get("short_factor"), rope.get("long_factor"))}


def adapter_id(path: Path) -> str:
    """Hash of the names and contents of all files but the records about it."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name not in RECORDS:
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def base_source(model: str) -> str:
    """Where the base `model` is loaded from: the tiny base lies in the package, others name a directory or a hub id."""
    return str(TINY_MODEL_PATH) if model == TINY_MODEL else model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); make the adapter again") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"{path}: holds no JSON object; make the adapter again")
    return loaded
