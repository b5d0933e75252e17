"""An adapter and its base, written as one checkpoint that any server of the base loads."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from enrich.answers.prompt import PROMPT_FILE
from enrich.engines.adapter import Adapter
from enrich.engines.transformers_engine import base_of, open_adapter
from enrich.errors import UsageError
from enrich.models.adapted import load_adapted, save_merged
from enrich.models.checkpoint import load_processor, stop_ids
from enrich.models.device import device_and_dtype, free_memory
from enrich.models.generation import generate_answers, with_answer
from enrich.models.protocols import Processor
from enrich.models.registry import CheckpointError, layouts
from enrich.pipeline.drawn import SIZES, draw_photo
from enrich.pipeline.kept_apart import check_replaced
from enrich.pipeline.progress import Progress, silent
from enrich.settings.training import MergeSettings
from enrich.storage import write_tree
from enrich.storage.cache import disk_errors
from enrich.storage.staged import staged_folder
from enrich.storage.tree import check_target, local_tree, work_directory
from enrich.train import merge_check
from enrich.train.export import versions
from enrich.train.record import MergeCheck

RECORD_FILE = "merge.json"  # written last: without it the checkpoint is incomplete


@dataclass(frozen=True)
class Merged:
    """A checkpoint that was written, and how it compares with the adapter unmerged."""

    uri: str
    adapter: str  # its id
    check: MergeCheck


def merge(
    adapter: str, out: str, settings: MergeSettings, *, base: str | None = None, progress: Progress = silent
) -> Merged:
    """Merge an adapter into its base in float32, cast the sum once, compare, and write it to `out` whole or not at all.

    An adapter comes without photos, so both models answer its prompt for generated ones, and their logits on the
    unmerged model's answers are compared as after training.

    Args:
        base: hub id or directory of the base, if it is no longer where the adapter says.

    Raises:
        UsageError: adapter, base or `out` are not usable; nothing was written.
        RunFailed: the merged model is not the adapter; nothing was written.
    """
    check_replaced(out, adapter, "adapter")
    check_target(out, last=RECORD_FILE)
    with local_tree(adapter) as directory, disk_errors(work_directory(out, "merging")):
        loaded = open_adapter(directory, base)
        source = base_of(loaded)
        with staged_folder(work_directory(out, "merging").parent) as work:
            check = _write_checkpoint(loaded, source, work / "merged", settings, progress)
            shutil.copyfile(directory / PROMPT_FILE, work / "merged" / PROMPT_FILE)
            record = {
                "adapter": loaded.id,
                "base": base or loaded.base,
                "revision": None if base else loaded.revision,
                "num_crops": loaded.preparation.num_crops,
                "photos_per_product": loaded.preparation.photos_per_product,
                "more_crops": loaded.preparation.more_crops,
                "dtype": settings.dtype,
                "check": check.model_dump(),
                "versions": versions(),
            }
            (work / "merged" / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
            write_tree(work / "merged", out, last=RECORD_FILE)
    return Merged(out, loaded.id, check)


def _write_checkpoint(
    adapter: Adapter, base: Path, target: Path, settings: MergeSettings, progress: Progress
) -> MergeCheck:
    """Write the merged checkpoint to `target` if it is the same model as the adapter on its base."""
    device, _ = device_and_dtype(settings.device)
    dtype = getattr(torch, settings.dtype)
    processor, how = load_processor(adapter.path), adapter.preparation
    page = layouts()[how.layout].page

    def drawn(number: int) -> list[np.ndarray]:
        shown = range(how.photos_per_product)
        return [page(draw_photo(number + len(SIZES) * at), how.most(at), how.image_size) for at in shown]

    rows = [processor.inputs(adapter.prompt.instruction, [drawn(number)]) for number in range(len(SIZES))]
    progress("merging, asking the unmerged model", 0, 3)
    with _adapter_errors(adapter):
        unmerged = load_adapted(base, adapter.path, dtype=dtype, device=device)
    expected = _outputs(unmerged, rows, processor, settings, noise=True)
    del unmerged  # a small GPU has no room for the model twice
    free_memory()
    progress("merging, asking the merged model", 1, 3)
    merged = merge_check.merged_model(base, adapter.path, dtype=dtype, device=device)
    found = _outputs(merged, rows, processor, settings, expected.answers)
    check = merge_check.compare(expected, found, exact=dtype == torch.float32)
    if not check.ok:
        outcome = "nothing was written; the adapter is where it was"
        raise merge_check.merge_failed(check, outcome, adapter.merge_only)
    progress("merging, writing the checkpoint", 2, 3)
    with _adapter_errors(adapter):
        save_merged(merged, adapter.path, target)
    progress("merging", 3, 3)
    return check


@contextmanager
def _adapter_errors(adapter: Adapter) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        reason = str(error)
        if isinstance(error, CheckpointError) and error.place == f"adapter {adapter.path}":
            reason = error.reason  # the line below names the place
        raise UsageError(
            f"adapter {adapter.path}: it cannot be merged: {reason.splitlines()[0]}; fine-tune again, or name the base "
            "it was made from"
        ) from error


def _outputs(
    model: Any,
    rows: Sequence[dict[str, Any]],
    processor: Processor,
    settings: MergeSettings,
    forced: Sequence[tuple[int, ...]] | None = None,
    *,
    noise: bool = False,
) -> merge_check.Outputs:
    """Greedy answers, and logits on the `forced` ones (by default its own); one row at a time, to spare memory."""
    budget, ends = settings.max_new_tokens, stop_ids(processor)
    answers = [generate_answers(model, row, max_new_tokens=budget, stop_ids=ends, top_k=1)[0].token_ids for row in rows]

    def logits() -> torch.Tensor:
        each = []
        for row, answer in zip(rows, forced or answers, strict=True):
            moved = send_to_device(with_answer(row, answer), model.device)
            with torch.inference_mode():
                each.append(model(**moved, logits_to_keep=len(answer) + 1, use_cache=False).logits.float().cpu())
        return torch.cat(each, dim=1)

    return merge_check.Outputs(logits(), answers, merge_check.rounded_otherwise(model, logits) if noise else None)
