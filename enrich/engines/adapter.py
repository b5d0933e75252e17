"""Read an adapter directory and check it before use."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from enrich.answers.calibration import CALIBRATION_FILE, Calibration
from enrich.answers.prompt import PROMPT_FILE, Prompt
from enrich.errors import UsageError
from enrich.models.base import PREPARATION_VERSION, Preparation
from enrich.models.registry import CheckpointError, family_for
from enrich.scores.assess import SCORES_FILE
from enrich.settings.run import RunSettings
from enrich.vocabulary import RECORD_FILE

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_REQUIRED = (
    CONFIG_FILE, WEIGHTS_FILE, "config.json", "tokenizer.json", PROMPT_FILE, RECORD_FILE, CALIBRATION_FILE,
)  # fmt: skip
# Configuration keys that may differ between versions or precisions of the same model.
_WRITTEN_ANEW = {"transformers_version", "dtype", "torch_dtype", "auto_map", "_name_or_path"}
METRICS_FILE = "metrics.json"
DROPPED_FILE = "dropped.csv"  # the catalog rows that were excluded from training, and why
TAUGHT_FILE = "taught.parquet"  # a hash of each row of the catalog: product_code, digest (int64)
# Files that do not affect answers, and so are not part of the id.
RECORDS = ("README.md", METRICS_FILE, SCORES_FILE, DROPPED_FILE, TAUGHT_FILE, RECORD_FILE)


@dataclass(frozen=True)
class Adapter:
    """A fine-tuned adapter: where it is stored, what it belongs to, and how reliable it is."""

    path: Path
    id: str  # 16 hex digits of a hash of everything that affects an answer
    base: str  # a hub id, a directory, or the name of the tiny base
    revision: str | None
    preparation: Preparation
    merge_only: tuple[str, ...]  # why vLLM can only serve it merged; empty if it can serve it unmerged
    prompt: Prompt
    calibration: Calibration
    base_weights: str | None = None  # `checkpoint.weights_signature` of the base, if recorded
    base_at: Path | None = None  # where the base was found, after a search for it
    catalog: str | None = None  # where that which it was made from was, if recorded; and a hash of its content
    catalog_hash: str | None = None


def read_adapter(path: Path) -> Adapter:
    """Read the adapter directory `path`.

    Raises:
        UsageError: a file is missing or damaged, or the adapter belongs to another kind of model.
    """
    if not path.is_dir():
        raise UsageError(f"adapter {path}: no such directory; make one with `enrich finetune --out {path}`")
    if not (path / CONFIG_FILE).is_file() and any(path.glob("model*.safetensors")):
        raise UsageError(f"adapter {path}: a model, not an adapter; `enrich finetune --model {path}` makes one of it")
    _check_files(path, _REQUIRED)
    try:
        family = family_for(_read_json(path / "config.json"), path)
    except CheckpointError as error:
        raise UsageError(f"adapter {path}: made for another kind of model: {error.reason}") from error
    _check_files(path, [family.photo_file])
    lora = _read_as(_Lora, path, CONFIG_FILE, "names no LoRA adapter with a base; make it with `enrich finetune`")
    try:
        preparation = family.read_preparation(path)
    except ValueError as error:
        raise UsageError(f"adapter {path}: {family.photo_file} {error}; make the adapter again") from error
    calibration = _read_as(
        Calibration, path, CALIBRATION_FILE, "is damaged or of another version; fine-tune again with this version"
    )
    record = _read_as(_Record, path, RECORD_FILE, "is damaged; make the adapter again")
    prompt = Prompt.read(path / PROMPT_FILE)
    _check_tokenizer(path)
    _check_weights(path)
    if preparation.version > PREPARATION_VERSION:
        raise UsageError(
            f"adapter {path}: its photos were prepared in a way ({preparation.version}) that this version of "
            f"enrich does not know ({PREPARATION_VERSION}); update enrich"
        )
    return Adapter(
        path=path,
        id=adapter_id(path),
        base=lora.base_model_name_or_path,
        revision=lora.revision,
        preparation=preparation,
        merge_only=record.preflight.merge_only,
        prompt=prompt,
        calibration=calibration,
        base_weights=record.base_weights,
        catalog=record.catalog,
        catalog_hash=record.data_fingerprint,
    )


def _check_files(path: Path, names: Sequence[str]) -> None:
    """UsageError for the first of these files that is not in the directory."""
    for name in names:
        if not (path / name).is_file():
            raise UsageError(
                f"adapter {path}: {name} is missing; the adapter is incomplete; make it again with `enrich finetune`"
            )


def answer_budget(adapter: Adapter, settings: RunSettings) -> int:
    """Tokens that an answer may take, the closing one included."""
    return settings.max_new_tokens or adapter.prompt.max_new_tokens


def read_metrics(path: Path) -> dict[str, Any] | None:
    """The scores of an adapter directory (metrics.json); None if missing or unreadable, because no run needs them."""
    try:
        loaded = json.loads((path / METRICS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None


class _Read(BaseModel):
    """The part of a file that this module needs."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _Lora(_Read):
    peft_type: Literal["LORA"]
    base_model_name_or_path: str = Field(min_length=1)
    revision: str | None = None
    r: int = Field(ge=1, le=4096)
    lora_alpha: float = Field(gt=0)
    target_modules: str | list[str] | None = None  # the former is a regular expression

    @field_validator("target_modules")
    @classmethod
    def _compiles(cls, found: str | list[str] | None) -> str | list[str] | None:
        try:
            re.compile(found if isinstance(found, str) else "")
        except re.error as error:
            raise ValueError(str(error)) from error
        return found


class _Preflight(_Read):
    merge_only: tuple[str, ...] = Field(default=(), strict=False)


class _Record(_Read):
    preflight: _Preflight = _Preflight()
    base_weights: str | None = None
    data_fingerprint: str | None = None
    catalog: str | None = None


M = TypeVar("M", bound=BaseModel)


def _read_as(cls: type[M], path: Path, name: str, complaint: str) -> M:
    try:
        return cls.model_validate_json((path / name).read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"adapter {path}: {name} {complaint}") from error


def _check_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # it raises nothing more specific
        raise UsageError(f"adapter {path}: tokenizer.json is damaged ({error}); make the adapter again") from error
    if (path / "tokenizer_config.json").is_file():
        _read_json(path / "tokenizer_config.json")


def _check_weights(path: Path) -> None:
    """UsageError if the weights are unreadable or contain NaN or infinity, which would make every answer nonsense."""
    import torch  # takes a second, which commands that do not read an adapter need not spend
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / WEIGHTS_FILE, framework="pt") as file:
            names = list(file.keys())
            broken = next((name for name in names if not torch.isfinite(file.get_tensor(name)).all()), None)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"adapter {path}: {WEIGHTS_FILE} is damaged ({error}); make the adapter again") from error
    if not names:
        raise UsageError(f"adapter {path}: {WEIGHTS_FILE} contains no weights; make the adapter again")
    if broken:
        raise UsageError(
            f"adapter {path}: {WEIGHTS_FILE} has values that are not numbers (NaN or infinite) in {broken}; make the "
            "adapter again with a lower learning_rate"
        )


def check_base(adapter: Adapter, base: Path) -> None:
    """UsageError if, by its configuration, the model in `base` is not the one that the adapter was made from."""
    mine, theirs = (_with_positions(_read_json(path / "config.json")) for path in (adapter.path, base))
    odd = [key for key in sorted({*mine, *theirs} - _WRITTEN_ANEW) if mine.get(key) != theirs.get(key)]
    if odd:
        raise UsageError(
            f"adapter {adapter.path}: it does not fit its base {adapter.base}: {odd[0]} differs; "
            "fine-tune on this base, or name the base it was made from"
        )


def _with_positions(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with normalized rotary positions: files have the original form, that of transformers 5, or both."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return config
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    others = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    return {**others, "rope_parameters": (theta, rope.get("short_factor"), rope.get("long_factor"))}


def adapter_id(path: Path) -> str:
    """Hash of the names and contents of all files except RECORDS."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name not in RECORDS:
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); make the adapter again") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"{path}: is not a JSON object; make the adapter again")
    return loaded
