"""Fine-tuning from products to a verified adapter directory. If a call was killed, repeating it continues."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import TrainingArguments

from enrich.answers.prompt import Prompt
from enrich.models.checkpoint import weights_signature
from enrich.models.device import free_memory
from enrich.models.protocols import Processor
from enrich.phases import Phases, Start, describe_start
from enrich.settings.training import TrainSettings
from enrich.storage.cache import keep_compiled_code
from enrich.storage.scratch import scratch
from enrich.train import evaluate, merge_check
from enrich.train.collate import Photos
from enrich.train.device import device_and_dtype, device_name, is_main_process, peak_memory_bytes
from enrich.train.examples import Example, build_examples
from enrich.train.export import commit, finish_adapter, versions, write_adapter
from enrich.train.fit import adapt, fit
from enrich.train.kernels import check_4bit
from enrich.train.opening import model_errors, open_first, open_model, open_photos, open_processor
from enrich.train.preflight import preflight
from enrich.train.record import Dropped, MergeCheck, Preflight, Rows, Training, TrainProgress, TrainReport
from enrich.train.showing import Showing
from enrich.train.tracking import UNTRACKED, require_trackers, tracked
from enrich.train.trainer import training_arguments
from enrich.train.trial import Trial, try_longest_batch
from enrich.train.workdir import identify, own_workdir
from enrich.vocabulary import Product

ADAPTER, UNVERIFIED = "adapter", "unverified"  # in the work directory
OnProgress = Callable[[TrainProgress], None]
OnMessage = Callable[[str], object]
CheckDropped = Callable[[Sequence[Dropped]], object]


@dataclass(frozen=True)
class _Job:
    """What to train, and where; constant during a run."""

    prompt: Prompt
    settings: TrainSettings
    base: Path
    workdir: Path
    device: torch.device
    dtype: torch.dtype
    arguments: TrainingArguments
    phases: Phases = field(default_factory=Phases)


@dataclass(frozen=True)
class _Data:
    """The examples of both splits."""

    processor: Processor
    train: list[Example]
    validation: list[Example]
    rows: Rows


@dataclass(frozen=True)
class _Result:
    """The results of training, without the model."""

    training: Training
    trial: Trial
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
    catalog: str | None = None,
    on_progress: OnProgress = lambda state: None,
    on_message: OnMessage = lambda line: None,
    check_dropped: CheckDropped = lambda dropped: None,
) -> TrainReport:
    """Train an adapter on the products and write the best one to `workdir`/adapter.

    Best is by the answers that it writes for the validation products (`evaluate.composite`). The directory appears
    whole or not at all, after its merge into the base has been checked; the report is its train.json. The same call
    after a kill continues from the last checkpoint; another call in that directory (other settings, prompt, data or
    base) starts over. Of several processes (RANK, WORLD_SIZE) each makes the same call and gets the same report; the
    first one writes.

    Args:
        data_fingerprint: of the catalog's content; `catalog` is where it is, for the report.
        on_message: gets lines for people: before the base is loaded what will be trained, then the memory of a trial
            step.
        check_dropped: gets the rows that cannot be learned from, and may raise.

    Raises:
        UsageError: products, settings, base or work directory are not usable, or GPU memory ran out in the trial step.
        RunFailed: gradients stayed non-finite, GPU memory ran out later, a photo was lost on the way, or the merged
            model is not the adapter, which then stays in `workdir`/unverified, fit to be served unmerged.
    """
    started = time.monotonic()
    job = _check_settings(settings, prompt, base, workdir)
    with model_errors(settings):
        identity = identify(settings, prompt, base, workdir, data_fingerprint)
    with own_workdir(workdir, identity) if is_main_process() else nullcontext():
        PartialState().wait_for_everyone()
        data, plan = _plan(job, train_products, validation_products, on_progress, on_message, check_dropped)
        deadline = started + 60 * (settings.max_minutes or math.inf)
        result = _train_adapter(job, data, plan, deadline, on_progress, on_message)
        with job.phases("merge check"):
            check = _check_merge(job, result)
        report = _report(job, data, plan, result, check, started, (data_fingerprint, catalog))
        send_lines([f"training time: {describe_start(Start(report.seconds, report.phases))}"], on_message)
        _keep(job, report)
    return report


def rehearse(
    train_products: Sequence[Product],
    validation_products: Sequence[Product],
    prompt: Prompt,
    settings: TrainSettings,
    base: Path,
    *,
    on_progress: OnProgress = lambda state: None,
    on_message: OnMessage = lambda line: None,
    check_dropped: CheckDropped = lambda dropped: None,
) -> Trial:
    """Everything that `train` does before its first step, with the same errors and messages; writes nothing."""
    with scratch() as folder:
        job = _check_settings(settings, prompt, base, folder)
        data, plan = _plan(job, train_products, validation_products, on_progress, on_message, check_dropped)
        on_progress(TrainProgress(stage="base", step=0, steps=0))
        model = open_model(base, settings, job.device, job.dtype)
        photos = Photos(data.train, data.processor, settings.limits, showing=_showing(job, data))
        return _try(job, adapt(model, settings, len(photos)), photos, plan, on_message)


def _check_settings(settings: TrainSettings, prompt: Prompt, base: Path, workdir: Path) -> _Job:
    """Refuse settings that cannot work here. Raises UsageError."""
    device, dtype = device_and_dtype(settings.device)
    keep_compiled_code()
    check_4bit(settings)
    require_trackers(settings)
    arguments = training_arguments(settings, workdir / "checkpoints", device=device, dtype=dtype)
    return _Job(prompt, settings, base, workdir, device, dtype, arguments)


def _plan(
    job: _Job,
    train_products: Sequence[Product],
    validation_products: Sequence[Product],
    on_progress: OnProgress,
    on_message: OnMessage,
    check_dropped: CheckDropped,
) -> tuple[_Data, Preflight]:
    """Check all photos, and print what will be trained. The base is not loaded yet."""
    with job.phases("photos"):
        data = _read(job, train_products, validation_products, on_progress)
    check_dropped(data.rows.dropped)
    send_lines(data.rows.lines, on_message)
    with model_errors(job.settings):
        plan = preflight(data.train, data.processor, job.prompt, job.settings, job.base)
    send_lines(plan.lines, on_message)
    return data, plan


def _read(
    job: _Job, train_products: Sequence[Product], validation_products: Sequence[Product], on_progress: OnProgress
) -> _Data:
    """Examples of both splits, validation reduced to what an evaluation needs."""
    processor = open_processor(job.base, job.settings)
    thinned = validation_products[:: max(1, math.ceil(len(validation_products) / evaluate.MAX_ROWS))]
    total, steps = len(train_products) + len(thinned), count(1)

    def progress(_: int) -> None:
        on_progress(TrainProgress(stage="photos", step=next(steps), steps=total))

    first = open_first(job.base, job.settings, processor)
    examples, dropped = build_examples(
        train_products, processor, job.prompt, job.settings, progress, all_photos=True, first=first
    )
    unseen, dropped_unseen = build_examples(thinned, processor, job.prompt, job.settings, progress)
    lost = chain.from_iterable(example.lost for example in (*examples, *unseen))
    rows = Rows(
        train=len(examples), validation=len(unseen), dropped=(*dropped, *dropped_unseen), lost_photos=tuple(lost)
    )
    return _Data(processor, examples, unseen, rows)


def _showing(job: _Job, data: _Data) -> Showing | None:
    """How each epoch shows a product, if that varies: with several photos in a prompt, or two looks."""
    many, looks = job.settings.photos_per_product, job.settings.looks
    return Showing(data.processor, job.prompt, many, job.settings.seed) if many > 1 or looks else None


def _try(job: _Job, adapted: PeftModel, photos: Photos, plan: Preflight, on_message: OnMessage) -> Trial:
    """The trial step, and the line about it."""
    with job.phases("trial step"):
        trial = try_longest_batch(adapted, photos, job.settings, job.arguments)
    products = plan.products * plan.epochs / PartialState().num_processes
    send_lines([trial.describe(job.device, products, plan.steps)], on_message)
    return trial


def _train_adapter(
    job: _Job, data: _Data, plan: Preflight, deadline: float, on_progress: OnProgress, on_message: OnMessage
) -> _Result:
    """Train, write the adapter as UNVERIFIED, and keep the outputs that the merged model is compared with."""
    settings = job.settings
    on_progress(TrainProgress(stage="base", step=0, steps=0))
    with job.phases("base"):
        model = open_model(job.base, settings, job.device, job.dtype)
    showing = _showing(job, data)
    photos, unseen = (
        open_photos(model, examples, data.processor, settings, job.workdir / f"{name}.features", shown)
        for name, examples, shown in (("train", data.train, showing), ("validation", data.validation, None))
    )
    adapted = adapt(model, settings, len(photos))
    trial = _try(job, adapted, photos, plan, on_message)
    with tracked(settings) if is_main_process() else nullcontext(UNTRACKED) as tracking, job.phases("training"):
        training = fit(
            adapted, photos, unseen, settings, job.prompt, job.arguments,
            on_progress=on_progress, tracking=tracking, deadline=deadline,
        )  # fmt: skip
    if is_main_process():
        write_adapter(job.workdir / UNVERIFIED, adapted, data.processor, job.prompt, job.base)
    PartialState().wait_for_everyone()
    few, budget = unseen.first(merge_check.MAX_ROWS), job.prompt.max_new_tokens
    with job.phases("unmerged answers"):
        outputs = merge_check.outputs(adapted, few, settings, budget, noise=True)
    return _Result(training, trial, few, outputs)


def _check_merge(job: _Job, result: _Result) -> MergeCheck:
    """The merged adapter compared with the adapter as it was trained.

    After a 4-bit training it is merged into the base that was trained on, dequantized from 4 bits: on the
    full-precision base, which is served, even a perfect merge gives different answers. How different they are is
    reported.
    """

    def merged(*, quantized: bool) -> merge_check.Outputs:
        free_memory()  # a small GPU has no room for the model twice
        model = merge_check.merged_model(
            job.base, job.workdir / UNVERIFIED, dtype=job.dtype, device=job.device, quantized=quantized
        )
        return merge_check.outputs(model, result.few, job.settings, job.prompt.max_new_tokens)

    four_bit = job.settings.load_in_4bit
    exact = job.dtype == torch.float32 and not four_bit
    check = merge_check.compare(result.unmerged, merged(quantized=four_bit), exact=exact)
    if not four_bit:
        return check
    return check.model_copy(update={"served": merge_check.difference(result.unmerged, merged(quantized=False))})


def _report(
    job: _Job, data: _Data, plan: Preflight, result: _Result, check: MergeCheck, started: float,
    source: tuple[str, str | None],
) -> TrainReport:  # fmt: skip
    return TrainReport(
        **dict(result.training),
        settings=job.settings,
        data_fingerprint=source[0],
        base_weights=weights_signature(job.base),
        versions=versions(),
        commit=commit(),
        device=device_name(job.device),
        rows=data.rows,
        preflight=plan,
        merge_check=check,
        seconds=time.monotonic() - started,
        phases=job.phases.end().phases,
        trial_memory_bytes=result.trial.memory_bytes,
        trial_products_per_second=result.trial.products_per_second,
        peak_memory_bytes=peak_memory_bytes(job.device),
        catalog=source[1],
    )


def _keep(job: _Job, report: TrainReport) -> None:
    """Move the adapter to its name, or raise RunFailed and leave it as UNVERIFIED if it failed the merge check."""
    unverified = job.workdir / UNVERIFIED
    if is_main_process():
        finish_adapter(unverified, job.workdir / ADAPTER, report)
    if not report.merge_check.ok:
        outcome = f"the adapter is kept in {unverified}"
        raise merge_check.merge_failed(report.merge_check, outcome, report.preflight.merge_only)


def send_lines(lines: Sequence[str], on_message: OnMessage) -> None:
    """Report lines once, with any number of processes."""
    if is_main_process():
        for line in lines:
            on_message(line)
