"""Fine-tuning from products to a verified adapter directory. A call that was killed and is made again goes on."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from enrich.answers.prompt import Prompt
from enrich.errors import RunFailed, UsageError
from enrich.models.device import free_memory
from enrich.models.phi3_vision import Phi3VForCausalLM, Phi3VProcessor
from enrich.models.phi3_vision.checkpoint import load_processor, weights_signature
from enrich.photos.decode import PREPARATION_VERSION
from enrich.settings.training import TrainSettings
from enrich.train import evaluate, merge_check
from enrich.train.collate import Photos
from enrich.train.device import device_and_dtype, device_name, leads, peak_memory_bytes
from enrich.train.examples import Example, Unusable, build_examples
from enrich.train.export import commit, finish_adapter, keep_unverified, versions, write_adapter
from enrich.train.features import FeatureCache
from enrich.train.fit import fit
from enrich.train.kernels import check_4bit, load_base
from enrich.train.preflight import preflight
from enrich.train.record import Dropped, MergeCheck, Preflight, Rows, Training, TrainProgress, TrainReport
from enrich.train.tracking import UNTRACKED, require_trackers, tracked
from enrich.train.workdir import identify, own_workdir
from enrich.vocabulary import Product

ADAPTER, UNVERIFIED = "adapter", "unverified"  # in the work directory


@dataclass(frozen=True)
class _Job:
    """What all steps of a run need to know."""

    prompt: Prompt
    settings: TrainSettings
    base: Path
    workdir: Path
    device: torch.device
    dtype: torch.dtype
    tell: Callable[[TrainProgress], None]
    announce: Callable[[Preflight], object]
    check_dropped: Callable[[Sequence[Dropped]], object]


@dataclass(frozen=True)
class _Taught:
    """What is left of training once the model is gone."""

    training: Training
    rows: Rows
    plan: Preflight
    few: Photos  # validation photos, and what the unmerged model makes of them
    unmerged: merge_check.Outputs


def train(
    train_products: Sequence[Product],
    validation_products: Sequence[Product],
    prompt: Prompt,
    settings: TrainSettings,
    base: Path,
    workdir: Path,
    *,
    data_fingerprint: str,
    progress: Callable[[TrainProgress], None] | None = None,
    announce: Callable[[Preflight], object] | None = None,
    check_dropped: Callable[[Sequence[Dropped]], object] | None = None,
) -> TrainReport:
    """Teach the model in `base` the training products and write the best adapter to `workdir`/adapter.

    Best is by what it writes on the validation products (`evaluate.composite`). The directory appears whole or not at
    all, after its merge into the base has been checked; the report is its train.json. The same call after a kill goes
    on from the last checkpoint; another call in that directory (other settings, prompt, data or base) starts anew.
    `check_dropped` gets the rows that cannot be learned from, and may raise; `announce` is told what training will do
    and need before the base is loaded. Of several processes (RANK, WORLD_SIZE) each makes
    the same call and gets the same report; the first one writes.

    Raises:
        UsageError: products, settings, base or work directory are no good.
        RunFailed: gradients stayed non-finite, GPU memory ran out, a photo was lost on the way, or the merged model is
            not the adapter, which then stays in `workdir`/unverified, fit to be served unmerged.
    """
    started = time.monotonic()
    device, dtype = device_and_dtype(settings.device)
    check_4bit(settings)
    require_trackers(settings)
    job = _Job(
        prompt,
        settings,
        base,
        workdir,
        device,
        dtype,
        progress or _ignore,
        announce or _ignore,
        check_dropped or _ignore,
    )
    with model_errors(settings):
        identity = identify(settings, prompt, base, workdir, data_fingerprint)
    with own_workdir(workdir, identity) if leads() else nullcontext(), _lost_photos():
        PartialState().wait_for_everyone()
        taught = _teach(job, train_products, validation_products, started + 60 * (settings.max_minutes or math.inf))
        unverified = workdir / UNVERIFIED
        check = _check_merge(job, taught)
        report = TrainReport(
            **dict(taught.training),
            settings=settings,
            data_fingerprint=data_fingerprint,
            base_weights=weights_signature(base),
            versions=versions(),
            commit=commit(),
            device=device_name(device),
            rows=taught.rows,
            preflight=taught.plan,
            merge_check=check,
            seconds=time.monotonic() - started,
            peak_memory_bytes=peak_memory_bytes(device),
        )
        if leads() and check.ok:
            finish_adapter(unverified, workdir / ADAPTER, report)
        elif leads():
            keep_unverified(unverified, report)
    if not check.ok:
        raise RunFailed(
            f"{merge_check.describe_failure(check)}; the adapter is kept in {unverified}: "
            f"{merge_check.unmerged_advice(taught.plan.merge_only)}"
        )
    return report


def _check_merge(job: _Job, taught: _Taught) -> MergeCheck:
    """The adapter merged beside the adapter as it was trained.

    After a 4-bit training it is merged into the base that was trained on, brought back from 4 bits: on the base in full
    precision, which is what is served, even a perfect merge answers otherwise. How much otherwise is reported.
    """

    def merged(*, quantized: bool) -> merge_check.Outputs:
        free_memory()  # a small GPU has no room for the model twice
        model = merge_check.merged_model(
            job.base, job.workdir / UNVERIFIED, dtype=job.dtype, device=job.device, quantized=quantized
        )
        return merge_check.outputs(model, taught.few, job.settings)

    four_bit = job.settings.load_in_4bit
    check = merge_check.compare(taught.unmerged, merged(quantized=four_bit), job.dtype)
    if not four_bit:
        return check
    return check.model_copy(update={"served": merge_check.difference(taught.unmerged, merged(quantized=False))})


def _teach(
    job: _Job, train_products: Sequence[Product], validation_products: Sequence[Product], deadline: float
) -> _Taught:
    """Train, write the adapter as UNVERIFIED, and ask the model with it what the merged one must say too."""
    settings = job.settings
    model, photos, unseen, rows, plan = _prepare(job, train_products, validation_products)
    with tracked(settings) if leads() else nullcontext(UNTRACKED) as tracking:
        adapted, training = fit(
            model, photos, unseen, settings, job.workdir / "checkpoints",
            progress=job.tell, tracking=tracking, deadline=deadline,
        )  # fmt: skip
    unverified = job.workdir / UNVERIFIED
    if leads():
        write_adapter(unverified, adapted, photos.processor, job.prompt, job.base)
    PartialState().wait_for_everyone()
    few = unseen.first(merge_check.MAX_ROWS)
    return _Taught(training, rows, plan, few, merge_check.outputs(adapted, few, settings, noise=True))


def _prepare(
    job: _Job, train_products: Sequence[Product], validation_products: Sequence[Product]
) -> tuple[Phi3VForCausalLM, Photos, Photos, Rows, Preflight]:
    """The base on its device, the photos of both splits as it will see them, which rows they are, and what is ahead."""
    with model_errors(job.settings):
        processor = load_processor(
            job.base,
            num_crops=job.settings.num_crops,
            fast_decode=job.settings.fast_decode,
            preparation_version=PREPARATION_VERSION,
        )
    examples, unseen, rows = _read(job, train_products, validation_products, processor)
    job.check_dropped(rows.dropped)
    with model_errors(job.settings):
        plan = preflight(
            examples, unseen, processor, job.prompt, job.settings, job.base, device=job.device, dtype=job.dtype
        )
        if leads():
            job.announce(plan)
        model = load_base(job.base, job.settings, device=job.device, dtype=job.dtype)
    photos, unseen_photos = (
        open_photos(model, own, processor, job.settings, job.workdir / f"{name}.features")
        for name, own in (("train", examples), ("validation", unseen))
    )
    return model, photos, unseen_photos, rows, plan


def _read(
    job: _Job, train_products: Sequence[Product], validation_products: Sequence[Product], processor: Phi3VProcessor
) -> tuple[list[Example], list[Example], Rows]:
    """Examples of both splits, validation thinned to what an evaluation needs."""
    thinned = validation_products[:: max(1, math.ceil(len(validation_products) / evaluate.MAX_ROWS))]
    total = len(train_products) + len(thinned)

    def read(products: Sequence[Product], before: int) -> tuple[list[Example], list[Dropped]]:
        def progress(done: int) -> None:
            job.tell(TrainProgress(stage="photos", step=before + done, steps=total))

        return build_examples(products, processor, job.prompt, job.settings, progress)

    examples, dropped = read(train_products, 0)
    unseen, dropped_unseen = read(thinned, len(train_products))
    return examples, unseen, Rows(train=len(examples), validation=len(unseen), dropped=(*dropped, *dropped_unseen))


def open_photos(
    model: Phi3VForCausalLM, examples: Sequence[Example], processor: Phi3VProcessor, settings: TrainSettings, path: Path
) -> Photos:
    """The examples' photos; with a cache of their features in `path` where settings ask for one and they stay the same.

    Raises:
        UsageError: the disk has no room for the cache.
    """
    cache = None
    if settings.cache_vision_features and not settings.adapt_vision:
        lengths = [example.num_image_tokens for example in examples]
        with PartialState().main_process_first():
            cache = FeatureCache(path, lengths, model.config.hidden_size, model.dtype)
    return Photos(examples, processor, settings.limits, cache)


@contextmanager
def model_errors(settings: TrainSettings) -> Iterator[None]:
    """What is wrong with the base's files, as the UsageError that it is."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"model {settings.model}: {error}") from error


@contextmanager
def _lost_photos() -> Iterator[None]:
    try:
        yield
    except Unusable as error:
        reason = _last_line(error)
        raise RunFailed(
            f"training: {reason}; it was there at first; put it back and start again: "
            "training goes on from its last checkpoint"
        ) from error
    except RunFailed as error:
        raise RunFailed(_last_line(error)) from error


def _last_line(error: Exception) -> str:
    """The message: what a DataLoader's worker raised comes with the worker's traceback before it."""
    kind = type(error)
    return str(error).splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__name__}: ")


def _ignore(told: TrainProgress | Preflight | Sequence[Dropped]) -> None:
    """For a caller that does not want to know."""
