"""Weights that are read before they are needed."""

import os
from pathlib import Path

import pytest

from enrich.storage.read_ahead import read_ahead


def test_the_kernel_is_asked_for_the_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.safetensors", "a.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    asked: list[str] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *_: asked.append(os.read(file, 20).decode()))

    read_ahead(tmp_path).join(10)
    read_ahead(tmp_path / "not there").join(10)

    assert asked == ["a.safetensors", "b.safetensors"]
