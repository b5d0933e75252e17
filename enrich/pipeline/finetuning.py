"""From a labelled catalog to an adapter with measured errors."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from enrich.answers.calibration import CALIBRATION_FILE, Calibration
from enrich.answers.postprocess import Prediction
from enrich.answers.prompt import Prompt
from enrich.answers.token_evidence import AnswerTokens, refuse_control_tokens
from enrich.catalog.dropped import encode
from enrich.catalog.read import Catalog, row_digests
from enrich.catalog.split import Splits, split_catalog
from enrich.catalog.taught import read_taught, taught_prompt
from enrich.engines.adapter import DROPPED_FILE, METRICS_FILE, TAUGHT_FILE, adapter_id, read_adapter
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import find_base
from enrich.errors import redact
from enrich.pages.report import render_card
from enrich.photos.prompt_size import most_tokens, refuse_long_prompts
from enrich.pipeline.calibrating import calibrate
from enrich.pipeline.dropping import all_listed, describe_unlearnable, forget_refusal, refuse_losses
from enrich.pipeline.kept_apart import check_outside, check_replaced
from enrich.pipeline.looking import calibrate_looks, compare_looks
from enrich.pipeline.predicting import predict
from enrich.pipeline.progress import OnMessage, Progress, silent, unheard
from enrich.pipeline.scoring import encode_scores, measure, read_truth, score_base
from enrich.scores.assess import SCORES_FILE
from enrich.scores.metrics import baselines
from enrich.scores.worth import Worth, judge_worth, tell
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.storage import real_place, write_tree
from enrich.storage.cache import disk_errors
from enrich.storage.read_ahead import read_ahead
from enrich.storage.tree import check_target, local_tree_or_file, work_directory
from enrich.train.device import is_main_process, one_group
from enrich.train.examples import UNREADABLE, check_answers, needed_budget
from enrich.train.opening import model_errors, open_first, open_processor
from enrich.train.overfit import overfit_one_batch
from enrich.train.preflight import empty_adapted, refuse_leaks
from enrich.train.recipe import resolve_model
from enrich.train.record import Dropped, TrainProgress, TrainReport
from enrich.train.run import rehearse as rehearse_training
from enrich.train.run import send_lines, train
from enrich.train.trial import Trial
from enrich.vocabulary import RECORD_FILE, Product


@dataclass(frozen=True)
class Finetuned:
    """An adapter that was written, with its scores (metrics.json)."""

    uri: str
    adapter: str  # its id
    metrics: dict[str, Any]

    @property
    def worth(self) -> Worth:
        """Whether it is better than guessing without a photo."""
        return judge_worth(self.metrics)

    @property
    def warning(self) -> str | None:
        """One line about an adapter that is not worth using, None of any other."""
        if self.worth.state != "weak":
            return None
        return (
            f"adapter {self.adapter} ({self.uri}): {self.worth.text}; it was written, but runs with it are held back: "
            "train longer or on more products, or set gate.allow_weak_adapter if this is right"
        )


@dataclass(frozen=True)
class _PreparedCatalog:
    """A labelled catalog, split, with everything that training needs."""

    catalog: str  # URI or path as given
    labelled: Catalog
    splits: Splits
    settings: TrainSettings  # resolved for this machine and catalog
    base: Path
    prompt: Prompt
    unlearnable: list[Dropped]  # rows whose answers cannot be learned
    first_squares: int | None  # of a first look, where there are two


def finetune(
    catalog: str,
    out: str,
    settings: TrainSettings,
    progress: Progress = silent,
    on_message: OnMessage = unheard,
) -> Finetuned:
    """Fine-tune the base on a catalog and write the adapter directory to `out`, atomically.

    If a call was killed, the same call continues. The adapter's dropped.csv lists every row that was left out. If
    several processes train together, all but the first then end (SystemExit), and the first reports, measures and
    writes.

    Args:
        on_message: gets which rows are left out and why, what is trained on what, and the memory of a trial step.

    Raises:
        UsageError: catalog, model or settings are not usable, or more than a tenth of the rows cannot be used, which a
            file next to `out` then lists; nothing else was written. RunFailed: training failed.
    """
    _check_places(catalog, out)
    with local_tree_or_file(catalog) as folder:
        prepared = _prepare(catalog, folder, settings, out, on_message)
        work = work_directory(out, "training")
        report = _train(prepared, work, out, progress, on_message)
        if not is_main_process():
            raise SystemExit(0)
        directory = work / "adapter"
        metrics, unread = _calibrate_and_score(directory, folder, prepared, progress)
        send_lines(describe_unlearnable(prepared.labelled, unread), on_message)
        digests = row_digests(prepared.labelled)
    taught = pl.DataFrame({"product_code": list(digests), "digest": list(digests.values())})
    taught.write_parquet(directory / TAUGHT_FILE)
    dropped = (*prepared.unlearnable, *report.rows.dropped, *unread)
    listed = all_listed(prepared.labelled, dropped, report.rows.lost_photos)
    (directory / DROPPED_FILE).write_bytes(encode(listed))
    record = json.loads((directory / RECORD_FILE).read_text())
    (directory / "README.md").write_text(render_card(record, metrics, prepared.prompt))
    write_tree(directory, out, last=RECORD_FILE)
    identity = adapter_id(directory)
    shutil.rmtree(work)
    forget_refusal(out)
    return Finetuned(out, identity, metrics)


@one_group()
def rehearse(
    catalog: str,
    out: str | None,
    settings: TrainSettings,
    progress: Progress = silent,
    on_message: OnMessage = unheard,
) -> Trial:
    """Do everything that precedes the first step of `finetune`, and write nothing.

    Args:
        on_message: gets the lines that `finetune` starts with: what is left out, what would be trained, and the memory,
            rate and time that a trial step measured.

    Raises:
        UsageError: as `finetune`.
    """
    if out is not None:
        _check_places(catalog, out)
    with local_tree_or_file(catalog) as folder:
        made = _prepare(catalog, folder, settings, None, on_message)
        splits, check = made.splits, _check_photos(made, None, on_message)
        return rehearse_training(
            splits.train, splits.validation, made.prompt, made.settings, made.base,
            on_progress=_on_progress(progress), on_message=on_message, check_dropped=check,
        )  # fmt: skip


@one_group()
def overfit(
    catalog: str, settings: TrainSettings, progress: Progress = silent, on_message: OnMessage = unheard
) -> tuple[float, ...]:
    """Memorise one batch of the training split, and keep nothing but the loss of each step.

    Raises:
        UsageError: catalog, model or settings are not usable. RunFailed: the batch was not learned.
    """
    with local_tree_or_file(catalog) as folder:
        made = _prepare(catalog, folder, settings, None, on_message)
        return overfit_one_batch(
            made.splits.train, made.prompt, made.settings, made.base, on_progress=_on_progress(progress)
        )


def _check_places(catalog: str, out: str) -> None:
    check_replaced(out, catalog, "catalog")
    check_outside(out, f"{Path(catalog).parent if Path(catalog).is_file() else catalog}/images")
    check_target(out, last=RECORD_FILE)


def _prepare(
    catalog: str, folder: Path, settings: TrainSettings, out: str | None, on_message: OnMessage
) -> _PreparedCatalog:
    """Read and split the catalog in `folder`, find the base, and report the rows that are left out so far."""
    labelled = read_taught(folder, settings)
    refuse_losses(catalog, labelled, (), settings, out)
    splits = split_catalog(labelled.products, settings.split)
    refuse_leaks({name: rows for name, rows in vars(splits).items() if name != "frozen"})
    settings = resolve_model(settings, gpu=torch.cuda.is_available(), rows=len(splits.train))
    base = find_base(settings.model, settings.revision)
    read_ahead(base)  # while answers are checked and photos looked at
    processor = open_processor(base, settings)
    first = open_first(base, settings, processor)
    with model_errors(settings):
        empty_adapted(base, settings)  # refuses settings that do not fit this base
    asked = taught_prompt(settings, labelled, ())
    budget = settings.max_new_tokens or needed_budget(labelled.products, processor, asked)
    asked = asked.model_copy(update={"max_new_tokens": budget})
    refuse_long_prompts(processor, asked, budget, most_tokens(base))
    refuse_control_tokens(processor.tokenizer, asked)
    unlearnable = check_answers(labelled.products, processor, asked)
    refuse_losses(catalog, labelled, unlearnable, settings, out)
    kept = f"held out from training, to compare adapters: {len(splits.frozen):,} products that people decided"
    told = [*labelled.lines, *([kept] if splits.frozen else [])]
    send_lines([*told, *describe_unlearnable(labelled, unlearnable)], on_message)
    never = {one.product_code for one in unlearnable}
    taught = [product for product in labelled.products if product.product_code not in never]
    prompt = taught_prompt(settings, labelled, taught, budget)
    tokens = AnswerTokens(processor.tokenizer, prompt, processor.stop_tokens[0])
    send_lines([tokens.note] if tokens.note else [], on_message)
    squares = first.preparation.num_crops if first else None
    return _PreparedCatalog(catalog, labelled, splits, settings, base, prompt, unlearnable, squares)


@one_group()
def _train(prepared: _PreparedCatalog, work: Path, out: str, progress: Progress, on_message: OnMessage) -> TrainReport:
    """Train in the directory `work`. Raises UsageError if unreadable photos drop too many rows."""
    with disk_errors(work):
        return train(
            prepared.splits.train,
            prepared.splits.validation,
            prepared.prompt,
            prepared.settings,
            prepared.base,
            work,
            data_fingerprint=prepared.labelled.fingerprint,
            catalog=redact(real_place(prepared.catalog)),
            on_progress=_on_progress(progress),
            on_message=on_message,
            check_dropped=_check_photos(prepared, out, on_message),
        )


def _check_photos(
    prepared: _PreparedCatalog, out: str | None, on_message: OnMessage
) -> Callable[[Sequence[Dropped]], None]:
    """What refuses too many photos that cannot be read, and reports others."""
    labelled, unlearnable = prepared.labelled, prepared.unlearnable

    def check(dropped: Sequence[Dropped]) -> None:
        refuse_losses(prepared.catalog, labelled, (*unlearnable, *dropped), prepared.settings, out)
        known = {one.product_code for one in unlearnable}
        fresh = [one for one in dropped if one.product_code not in known]
        send_lines(describe_unlearnable(labelled, fresh), on_message)

    return check


def _on_progress(progress: Progress) -> Callable[[TrainProgress], None]:
    return lambda state: progress(state.what, state.step, state.steps)


def _calibrate_and_score(
    directory: Path, folder: Path, prepared: _PreparedCatalog, progress: Progress
) -> tuple[dict[str, Any], list[Dropped]]:
    """Measure the adapter as it is served, and write calibration.json and metrics.json.

    Returns the metrics, and the rows whose photos could not be read.
    """
    splits, settings = prepared.splits, prepared.settings
    (directory / CALIBRATION_FILE).write_text(Calibration.uncalibrated().model_dump_json(indent=1))
    run_settings = RunSettings(
        engine="transformers", device=settings.device, batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens, limits=settings.limits,
    )  # fmt: skip
    adapter = read_adapter(directory)
    progress("loading the adapter", 0, 0)
    engine = start_engine(adapter, run_settings)
    if (squares := prepared.first_squares) is None:
        calibration, answers = calibrate(engine, adapter, splits, settings.limits, progress)
    else:
        calibration, answers = calibrate_looks(engine, adapter, splits, settings.limits, progress, squares)
    unread = _without_photo(splits.calibration, answers)
    (directory / CALIBRATION_FILE).write_text(calibration.model_dump_json(indent=1) + "\n")
    calibrated = replace(adapter, calibration=calibration)
    looks: list[dict[str, Any]] = []
    if squares is None:
        outcomes = predict(engine, calibrated, splits.test, settings.limits, "scoring", progress)
    else:
        outcomes, looks = compare_looks(engine, calibrated, splits.test, settings.limits, progress)
    unread += _without_photo(splits.test, outcomes)
    engine.close()
    by_base = score_base(adapter, splits.test, run_settings, "scoring the base", progress)
    scored, metrics = measure(splits.test, outcomes, calibration, read_truth(folder), prepared.labelled.paths)
    metrics = tell(
        {
            **metrics,
            **({"looks": looks} if looks else {}),
            "base": by_base,
            "baselines": baselines(splits.train, splits.test),
            "rows": {name: len(getattr(splits, name)) for name in ("train", "validation", "calibration", "test")},
        }
    )
    (directory / SCORES_FILE).write_bytes(encode_scores(scored, metrics))
    (directory / METRICS_FILE).write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics, unread


def _without_photo(products: Sequence[Product], outcomes: Sequence[Prediction]) -> list[Dropped]:
    return [
        Dropped(product_code=product.product_code, reason=f"photo {product.image_paths[0]}", kind=UNREADABLE)
        for product, outcome in zip(products, outcomes, strict=True)
        if outcome == Prediction()
    ]
