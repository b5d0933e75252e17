"""A cache of adapters: one for each state of the catalog and each set of training settings."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import ValidationError

from enrich.answers.prompt import PROMPT_FILE
from enrich.catalog.read import Catalog, row_digests
from enrich.catalog.split import split_catalog
from enrich.catalog.taught import read_taught, taught_prompt
from enrich.engines.adapter import TAUGHT_FILE
from enrich.errors import UsageError
from enrich.pipeline.finetuning import METRICS_FILE
from enrich.settings.training import TrainSettings
from enrich.storage import is_s3, open_store
from enrich.storage.tree import local_tree_or_file
from enrich.train.recipe import resolve_model
from enrich.train.workdir import CIRCUMSTANCES
from enrich.vocabulary import RECORD_FILE

# Settings that do not change an adapter; the catalog's fingerprint covers the columns that were read.
_IRRELEVANT = (CIRCUMSTANCES - {"max_minutes"}) | {"columns"}


@dataclass(frozen=True)
class CachedAdapter:
    """The location of the adapter for a catalog, or where to write it if it is not `ready`."""

    uri: str
    ready: bool
    note: str = ""  # one line, where the catalog changed too little for another one


@dataclass(frozen=True)
class Retrain:
    """When a changed catalog needs another adapter: once `rows` rows changed, or any row and `days` days have
    passed."""

    rows: int | None = None  # None: a twentieth of the catalog
    days: float = 30.0


RETRAIN = Retrain()


def find_adapter(
    catalog: str,
    adapters: str,
    settings: TrainSettings,
    in_use: str | None = None,
    *,
    standing: tuple[str, datetime] | None = None,
    retrain: Retrain = RETRAIN,
) -> CachedAdapter:
    """Find an adapter that was made from the current `catalog` with `settings`, by any process.

    Candidates are the adapter `in_use`, every one directly below `adapters`, and `adapters` itself; their train.json
    and prompt.json say what they were made from. If none fits, the URI is a new one below `adapters`, named after
    catalog, base and settings, so that an adapter that a run uses is never overwritten.

    Args:
        standing: the adapter that serves, and since when. It is the one that is found where it was trained alike and
            the catalog has not changed as `retrain` demands.

    Raises:
        UsageError: the catalog cannot be read.
    """
    resolved = resolve_model(settings, gpu=torch.cuda.is_available())
    with local_tree_or_file(catalog) as folder:
        labelled = read_taught(folder, resolved)
        uri = f"{adapters.rstrip('/')}/{_name(resolved, labelled)}"
        named = _read(uri, RECORD_FILE)
        if named is not None and named.get("data_fingerprint", labelled.fingerprint) == labelled.fingerprint:
            return CachedAdapter(uri, ready=True)
        for found in _candidates(adapters, in_use):
            if _fits(found, labelled, settings):
                return CachedAdapter(found, ready=True)
        alike = standing and _made_alike(standing[0], labelled, settings)
        if standing and alike and (note := _too_few_changed(*standing, labelled, retrain)):
            return CachedAdapter(standing[0], ready=True, note=note)
    return CachedAdapter(uri, ready=False)


def _too_few_changed(standing: str, since: datetime, catalog: Catalog, retrain: Retrain) -> str | None:
    """One line if too few rows changed since the standing adapter was trained; None if another one is due."""
    before = _taught(standing)
    if before is None:
        return None
    now = row_digests(catalog)  # reads the sizes of all photos
    changed = sum(before.get(code) != now.get(code) for code in {*before, *now})
    enough = retrain.rows or max(1, math.ceil(len(now) / 20))
    if changed >= enough or datetime.now(UTC) - since >= timedelta(days=retrain.days):
        return None
    return (
        f"{changed:,} of {len(now):,} rows of the catalog changed since the adapter was trained; another one is "
        f"trained once {enough:,} have, or after {retrain.days:g} days"
    )


def _taught(adapter: str) -> dict[str, int] | None:
    store = open_store(adapter)
    if store.head(TAUGHT_FILE) is None:
        return None
    table = pl.read_parquet(store.get(TAUGHT_FILE)[0])
    return dict(zip(table["product_code"], table["digest"], strict=True))


def _name(resolved: TrainSettings, catalog: Catalog) -> str:
    # Without defaults: a setting that a later version adds must not invalidate every adapter.
    chosen = resolved.model_dump(mode="json", exclude=set(_IRRELEVANT), exclude_defaults=True)
    standard = [catalog.category_ids] if catalog.category_ids else []
    digest = hashlib.sha256(json.dumps([chosen, catalog.fingerprint, *standard], sort_keys=True).encode()).hexdigest()
    base = re.sub(r"[^A-Za-z0-9._-]", "-", resolved.model.rstrip("/").rpartition("/")[2])
    return f"{base}-{digest[:12]}"


def _candidates(adapters: str, in_use: str | None) -> Iterator[str]:
    if in_use:
        yield in_use
    yield adapters
    if not is_s3(adapters) and not Path(adapters).expanduser().is_dir():
        return
    for key in sorted(info.key for info in open_store(adapters).list()):
        folder, _, name = key.rpartition("/")
        if name == RECORD_FILE and folder and "/" not in folder:
            yield f"{adapters.rstrip('/')}/{folder}"


def _fits(uri: str, catalog: Catalog, settings: TrainSettings) -> bool:
    record = _read(uri, RECORD_FILE)
    if record is None or record.get("data_fingerprint") != catalog.fingerprint:
        return False
    asked = taught_prompt(settings, catalog, catalog.products).model_dump(mode="json")
    budget = {"max_new_tokens": None}  # follows from the catalog and the settings, which are compared
    return (_read(uri, PROMPT_FILE) or {}) | budget == asked | budget and _made_alike(uri, catalog, settings)


def _made_alike(uri: str, catalog: Catalog, settings: TrainSettings) -> bool:
    """Whether the adapter was trained with `settings`, on whatever rows."""
    record = _read(uri, RECORD_FILE) or {}
    try:
        made_by = TrainSettings.model_validate(record.get("settings"))
        rows = len(split_catalog(catalog.products, settings.split).train)
    except (ValidationError, UsageError):
        return False
    wanted = resolve_model(settings, gpu=torch.cuda.is_available(), rows=rows)
    return made_by.model_dump(exclude=set(_IRRELEVANT)) == wanted.model_dump(exclude=set(_IRRELEVANT))


def read_metrics(adapter: str) -> dict[str, Any] | None:
    """The scores of an adapter directory (metrics.json), or None if missing or unreadable."""
    return _read(adapter, METRICS_FILE)


def _read(adapter: str, name: str) -> dict[str, Any] | None:
    """A JSON object from an adapter directory, or None if missing or unreadable."""
    store = open_store(adapter)
    if store.head(name) is None:
        return None
    try:
        loaded = json.loads(store.get(name)[0])
    except ValueError:
        return None
    return loaded if isinstance(loaded, dict) else None
