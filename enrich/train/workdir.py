"""The work directory of a run: its lock, and whether its contents belong to the same run."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enrich.answers.prompt import Prompt
from enrich.errors import UsageError
from enrich.settings.training import TrainSettings

_MARKER = "finetune.json"
# Settings that change how a run is done but not its result: after running out of memory, a smaller batch continues it.
CIRCUMSTANCES = {
    "max_minutes", "device", "batch_size", "gradient_checkpointing", "cache_vision_features", "compile", "attention",
    "report_to", "run_name", "allow_dropped",
}  # fmt: skip


def identify(settings: TrainSettings, prompt: Prompt, base: Path, workdir: Path, data_fingerprint: str) -> str:
    """A hash of all that decides the result.

    Weights count by name, size and time of change: hashing 8 GB would take ten seconds.
    """
    weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(base.glob("*.safetensors"))]
    parts = [
        settings.model_dump_json(exclude=CIRCUMSTANCES),
        prompt.model_dump_json(),
        data_fingerprint,
        str(workdir.absolute()),  # the best checkpoint is known by its path
        (base / "config.json").read_text("utf-8"),
        json.dumps(weights),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def own_workdir(workdir: Path, identity: str) -> Iterator[None]:
    """Lock `workdir` for the run `identity`: files of that run are kept, those of another run are removed.

    Raises:
        UsageError: the directory contains something else, or another process is using it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    directory = os.open(workdir, os.O_RDONLY)
    try:
        _lock(directory, workdir)
        _clear_unless(workdir, identity)
        yield
    finally:
        os.close(directory)  # and with it the lock, as the death of the process would


def _lock(directory: int, workdir: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"work directory {workdir}: another fine-tuning is using it; wait for it, or name another directory"
        ) from error
    except OSError:
        return  # some network file systems cannot lock directories


def _clear_unless(workdir: Path, identity: str) -> None:
    marker = workdir / _MARKER
    if any(workdir.iterdir()):
        if not marker.is_file():
            raise UsageError(f"work directory {workdir}: has files that fine-tuning did not write; name an empty one")
        if marker.read_text("utf-8") == identity:
            return
        for entry in workdir.iterdir():
            if entry != marker:  # stays: by it the directory is known as ours if this is cut short
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    marker.write_text(identity, "utf-8")
