"""Where a sample goes: whose directory it is, and files that are there whole or not at all."""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from enrich.catalog.split import HOLDOUT
from enrich.errors import RunFailed, UsageError

CATALOG, TRUTH, IMAGES = "catalog.csv", "truth.json", "images"
BUCKET_YEAR = "2026"  # the one folder in a bucket
_STARTED = ".sample.json"  # the settings of a sample that is not whole yet
_OURS = frozenset({CATALOG, TRUTH, IMAGES, HOLDOUT, _STARTED})


def claim(out: Path, bucket: Path | None, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `out` the directory of the sample with these settings: an empty one, or one with an unfinished sample.

    With `overwrite` another sample, or what is left of one, makes room.

    Raises:
        UsageError: it cannot be written, or contains something else.
    """
    try:
        for folder in filter(None, (out, bucket)):
            folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            if (out / CATALOG).exists() and not any((out / name).exists() for name in (TRUTH, _STARTED)):
                raise UsageError(f"{out}/{CATALOG} is not a sample's; move it elsewhere, or choose another directory")
            _clear(out, _OURS)
            if bucket:
                _clear(bucket, {BUCKET_YEAR})
        elif (found := _settings_of(out)) is not None:
            for name in settings | found.keys():
                if found.get(name) != settings.get(name):
                    raise UsageError(
                        f"{out} contains a sample with {name} {found.get(name)}, not {settings.get(name)}; "
                        "choose another directory or give --overwrite"
                    )
        else:
            for folder in filter(None, (out, bucket)):
                for entry in folder.iterdir():
                    if entry.name != f".{_STARTED}.part":
                        raise UsageError(
                            f"{folder} is not empty ({entry.name}); choose another directory or give --overwrite"
                        )
        write(out / _STARTED, json.dumps(settings).encode())
    except OSError as error:
        raise UsageError(f"sample directory {out}: {error.strerror or error}; choose another directory") from error
    except RunFailed as error:
        raise UsageError(str(error)) from error


def finish(out: Path) -> None:
    """The sample in `out` is whole."""
    (out / _STARTED).unlink(missing_ok=True)


def _settings_of(out: Path) -> dict[str, Any] | None:
    """Settings of the sample in `out`, unfinished or complete; None if there is none."""
    for name, end in ((_STARTED, ""), (TRUTH, "}")):  # the truth's first line is its settings
        if (out / name).exists():
            with (out / name).open(encoding="utf-8") as file:
                line = file.readline()
            try:
                return dict(json.loads(line.rstrip(",\n") + end))
            except (ValueError, TypeError) as error:
                raise UsageError(
                    f"{out / name} is not a sample's; choose another directory or give --overwrite"
                ) from error
    return None


def _clear(folder: Path, ours: Iterable[str]) -> None:
    """Remove a sample's files, first those that say it is whole."""
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours)
    if foreign:
        raise UsageError(f"{folder}/{foreign[0]} is not a sample's; move it elsewhere, or choose another directory")
    for name in sorted(ours, key=lambda name: (name != CATALOG, name != TRUTH)):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write(path: Path, content: bytes | Iterable[bytes]) -> None:
    """The file, whole or not at all; a rest of an earlier try is overwritten.

    Raises:
        RunFailed: the disk is full, or the file cannot be written for another reason.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # what hindered writing may hinder this too; a rest is never taken for a file
            part.unlink(missing_ok=True)
        raise RunFailed(f"sample file {path}: {error.strerror or error}; fix that and run again") from error
