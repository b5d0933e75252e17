"""Adapters that are kept: one for each state of the catalog and each base."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import torch

from enrich.catalog.read import read_catalog
from enrich.infer.adapter import RECORD_FILE
from enrich.pipeline.catalogs import local_tree
from enrich.pipeline.finetuning import METRICS_FILE
from enrich.settings import TrainSettings
from enrich.storage import open_store
from enrich.train.recipe import resolve_model


@dataclass(frozen=True)
class StandingAdapter:
    """Where the adapter for a catalog lies, or is to be written if it is not `current`."""

    uri: str
    current: bool


def find_standing(catalog: str, adapters: str, settings: TrainSettings) -> StandingAdapter:
    """The adapter below `adapters` that was made from `catalog` as it is now, with the base that `settings` name.

    Its name says so: another row, photo, base or revision gives another name, and an adapter that serves a run is
    never written over. Other settings do not: delete the adapter to have it made anew.

    Raises:
        UsageError: the catalog cannot be read.
    """
    resolved = resolve_model(settings, gpu=torch.cuda.is_available())
    with local_tree(catalog) as folder:
        fingerprint = read_catalog(folder, resolved.columns).fingerprint
    digest = hashlib.sha256(json.dumps([resolved.model, resolved.revision, fingerprint]).encode()).hexdigest()
    base = re.sub(r"[^A-Za-z0-9._-]", "-", resolved.model.rstrip("/").rpartition("/")[2])
    uri = f"{adapters.rstrip('/')}/{base}-{digest[:12]}"
    return StandingAdapter(uri, current=open_store(uri).head(RECORD_FILE) is not None)


def read_metrics(adapter: str) -> dict[str, Any] | None:
    """The scores of an adapter directory (metrics.json), or None where it has none."""
    store = open_store(adapter)
    if store.head(METRICS_FILE) is None:
        return None
    return dict(json.loads(store.get(METRICS_FILE)[0]))
