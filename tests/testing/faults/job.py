"""One run in a separate process, with everything real except the engine, that says what it is doing and may be
killed."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ctypes import c_int
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
import numpy as np
import pandas as pd  # noqa: F401  pyarrow takes 0.9 s to import it where a job first makes a table

from enrich.answers.completion import Completion
from enrich.engines.base import EngineClock, Request
from enrich.models.checkpoint import load_processor
from enrich.output import history
from enrich.pipeline.run import enrichment, finish, session, start
from enrich.pipeline.run.request import RunRequest
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.storage import S3Settings
from enrich.storage import lock, s3
from tests.testing.fake_engine import write_completion

# Reading boto3's models takes 0.5 s of a core for each session; forked jobs share those read here.
_models = botocore.loaders.create_loader()
for _service in ("endpoints", "partitions", "sdk-default-configuration"):
    _models.load_data(_service)
botocore.loaders.create_loader = lambda search_path_string=None: _models
botocore.session.Session().create_client("s3", region_name="us-east-1")

_TOKENIZER = load_processor(TINY_MODEL_PATH).tokenizer

STAGES = ("start", "plan", "engine", "writer", "publisher", "report")
LEASE_SECONDS = 12.0


def settings(lock_object: bool) -> RunSettings:
    return RunSettings(
        engine="transformers", shard_size=8, decode_processes=1, download_threads=4, in_flight=8, max_attempts=100,
        group_by="folder", gate=GateSettings(enabled=False), s3=S3Settings(lock=lock_object),
    )  # fmt: skip


def title_of(red: int, green: int, blue: int) -> str:
    return f"Coat {red} {green} {blue}"


class ColourEngine:
    """Says which colour a photo has: an answer that only its own photo can have given."""

    name = "fake"

    def __init__(self, stage: c_int, seconds: float = 0.002) -> None:
        self.clock, self._stage, self._seconds = EngineClock(), stage, seconds

    def complete(self, requests: Iterable[Request | None], *, grammar: bool = False) -> Iterator[Completion]:
        for request in filter(None, requests):
            with at(self._stage, "engine"):
                height, width, _ = request.pages[0].shape
                pixel = request.pages[0][height // 4, width // 4]
                text = f"Product: {title_of(*map(int, pixel))}\nCategory: BAGS\nFull Price: {int(np.sum(pixel)) + 1}"
                time.sleep(self._seconds)
                yield write_completion(_TOKENIZER, text, id=request.id)

    def close(self) -> None:
        pass


@contextmanager
def at(stage: c_int, name: str) -> Iterator[None]:
    before, stage.value = stage.value, STAGES.index(name)
    yield
    stage.value = before


def work(
    images: str, adapter: str, output: str, run_id: str, endpoint: str, lock_object: bool, broken: str | None,
    stage: c_int, log: str,
) -> None:  # fmt: skip
    """A whole run; started again under its run id it continues. Ends with exit code 0 or 1."""
    os.setpgrp()
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    lock.LEASE_SECONDS = LEASE_SECONDS
    watch(stage)
    if broken:
        BROKEN[broken]()
    engine = ColourEngine(stage)
    session.start_verified_engine = lambda *_: engine
    enrichment.run_enrichment(RunRequest(images, adapter, output, settings(lock_object), run_id=run_id))


def watch(stage: c_int) -> None:
    """Has the steps of a run tell when they are under way."""
    for module, function, name in (
        (start, "plan_run", "plan"),
        (session, "commit_shard", "writer"),
        (finish, "publish", "publisher"),
        (finish, "write_report", "report"),
    ):
        inner: Callable[..., Any] = getattr(module, function)

        def watched(*args: Any, inner: Callable[..., Any] = inner, name: str = name, **more: Any) -> Any:
            with at(stage, name):
                return inner(*args, **more)

        setattr(module, function, watched)


def kill(pid: int) -> None:
    """SIGKILL to a job and to its decoders: the process group that it leads."""
    os.killpg(pid, signal.SIGKILL)


def decoders_of(pid: int) -> list[int]:
    """The decoding processes of a job, from /proc."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


# ---- commits that are broken on purpose: the harness must find each of them


def overwriting() -> None:
    """A shard that is there is written over. Probes are left alone: they would find it before anything is written."""
    inner = s3.S3Store.create

    def create(self: Any, key: str, data: Any) -> bool:
        if "/shard-" not in key:
            return inner(self, key, data)
        if self.head(key):
            time.sleep(1.0)
        self.put(key, data)
        return True

    s3.S3Store.create = create  # type: ignore[method-assign]


def in_two_steps() -> None:
    """A shard is visible before it is whole."""
    inner = s3.S3Store.create

    def create(self: Any, key: str, data: Any) -> bool:
        if "/shard-" not in key:
            return inner(self, key, data)
        if not inner(self, key, data[: len(data) // 2]):
            return False
        time.sleep(0.3)
        self.put(key, data)
        return True

    s3.S3Store.create = create  # type: ignore[method-assign]


def under_new_names() -> None:
    """A shard's name is not a function of run and number: what is started again writes it again."""
    salt = os.getpid() * 100_000

    def key(run: Any, shard: int) -> str:
        return history.pack_key(run, salt + shard, salt + shard)

    history.shard_key = key


def leaving_rows_out() -> None:
    """A photo is lost on the way to its shard."""
    inner = session.commit_shard

    def commit(output: Any, run: Any, shard: int, rows: Any, keys: Any) -> Any:
        kept = rows[:-1]
        return inner(output, run, shard, kept, {row.product_id for row in kept})

    session.commit_shard = commit  # type: ignore[assignment]  # as loosely typed as it needs


def publishing_blindly() -> None:
    """products.parquet is replaced whatever is there."""
    inner = s3.S3Store.replace

    def replace(self: Any, key: str, data: Any, if_match: str | None) -> bool:
        if key != "products.parquet":
            return inner(self, key, data, if_match)
        time.sleep(0.5)
        self.put(key, data)
        return True

    s3.S3Store.replace = replace  # type: ignore[method-assign]


def mixing_answers_up() -> None:
    """The answer of one photo is written for another."""
    inner = session.commit_shard

    def commit(output: Any, run: Any, shard: int, rows: Any, keys: Any) -> Any:
        from dataclasses import replace

        titles = [row.title for row in rows]
        turned = [replace(row, title=title) for row, title in zip(rows, titles[1:] + titles[:1], strict=True)]
        return inner(output, run, shard, turned, keys)

    session.commit_shard = commit  # type: ignore[assignment]  # as loosely typed as it needs


BROKEN: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        overwriting, in_two_steps, under_new_names, leaving_rows_out, publishing_blindly, mixing_answers_up,
    )
}  # fmt: skip
