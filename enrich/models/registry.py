"""Find the family of a model. This reads config.json and loads neither torch nor transformers."""

import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from enrich import models
from enrich.models.base import Family, Layout
from enrich.models.protocols import VisionModel

# Modules of this package that are not a family's.
_SHARED = {"adapted", "auto", "base", "checkpoint", "device", "generation", "hub", "protocols", "registry"}
# What the configurations of models that see photos have, by one of these beginnings ("vision_config", "img_processor").
_SEES = ("vision", "visual", "img", "image", "vit", "mm_", "perception")


class CheckpointError(ValueError):
    """A model or adapter directory that cannot be used. The message is `place` (name or directory) and `reason`.

    `away`: only because the hub did not answer, which may pass.
    """

    def __init__(self, place: str | Path, reason: str, *, away: bool = False) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason, self.away = str(place), reason, away


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of their modules' names."""
    names = sorted(name for _, name, _ in iter_modules(models.__path__) if name not in _SHARED)
    return tuple(import_module(f"{models.__name__}.{name}").FAMILY for name in names)


def supported() -> str:
    """The families and their model types, for people."""
    return ", ".join(f"{family.title} ({', '.join(family.model_types)})" for family in families())


def family_of(directory: Path) -> Family:
    """The family of the checkpoint or adapter in `directory`.

    Raises:
        CheckpointError: no config.json, or another kind of model; says which are supported.
        ValueError: config.json is damaged.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError(directory, "no config.json; give a complete checkpoint directory")
    return family_for(read_object(directory / "config.json"), directory)


def family_for(config: Mapping[str, Any], place: str | Path) -> Family:
    """The family of a model with this config.json, which was read from `place`. Raises CheckpointError."""
    model_type = config.get("model_type")
    found = _by_type().get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise CheckpointError(place, f"{_unknown(config)}; choose one of {supported()}")
    return found


def vision_model(model_type: str) -> VisionModel:
    """The half of the family of a loaded model (`model.config.model_type`) that loads, adapts and serves it."""
    return _by_type()[model_type].load()


@cache
def layouts() -> Mapping[str, Layout]:
    """The families' layouts by the names that a `Preparation` has for them."""
    return {family.layout.name: family.layout for family in families()}


def register_with_vllm() -> None:
    """Teach vLLM the families' own model classes; may run any number of times."""
    for family in families():
        family.register_with_vllm()


def local_directory(name: str) -> Path | None:
    """The directory that a `model:` names, None if it names something else, whatever characters it has.

    Pathlib raises where the name is too long, or starts with the home of a user whom nobody knows.
    """
    place = os.path.expanduser(name)
    return Path(place) if os.path.isdir(place) else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint. ValueError if it holds no object."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: not a JSON object; fetch it again")
    return found


@cache
def _by_type() -> Mapping[str, Family]:
    return {model_type: family for family in families() for model_type in family.model_types}


def _unknown(config: Mapping[str, Any]) -> str:
    """Why no family takes a model with this configuration."""
    if not config.get("model_type"):
        return "config.json names no model_type"
    model_type = repr(config["model_type"])[:60]
    if config.get("auto_map"):
        return f"model_type {model_type} needs code from its own repository (auto_map), which is never run"
    if not any(name.startswith(_SEES) for name in config):
        return f"model_type {model_type} reads text only, and products are photos"
    return f"model_type {model_type} is not supported"
