"""`enrich finetune`, `score`, `merge` and `promote`: make, measure, export and choose an adapter."""

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import enrich
from enrich.cli.options import Adapter, Base, Config, Engine
from enrich.console import console, print_estimates, print_scores, progress_bars, say_error
from enrich.errors import HeldBack
from enrich.settings.load import load_settings
from enrich.settings.run import RunSettings
from enrich.settings.training import MergeSettings, TrainSettings


def finetune(
    catalog: Annotated[
        str, typer.Option(help="Labelled products with photos: a directory, a table in a file, or s3://bucket/prefix.")
    ],
    out: Annotated[str | None, typer.Option(help="Where to write the adapter.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or directory of a vision-language model.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be trained, and measure trial steps.")
    ] = False,
    overfit_one_batch: Annotated[
        bool, typer.Option("--overfit-one-batch", help="Only check that the model can memorise one batch.")
    ] = False,
    allow_dropped: Annotated[
        bool, typer.Option("--allow-dropped", help="Train even if more than a tenth of the rows cannot be used.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes, one for each GPU of this machine.")] = 1,
    config: Config = None,
) -> None:
    """Fine-tune a model on a catalog: photo to title, category and full price, as an adapter with measured errors."""
    settings = load_settings(TrainSettings, config, "finetune", model=model, allow_dropped=allow_dropped or None)
    if overfit_one_batch:
        _overfit(catalog, settings)
        return
    if dry_run:
        _rehearse(catalog, out, settings)
        return
    if out is None:
        raise typer.BadParameter("fine-tuning needs --out (or --dry-run or --overfit-one-batch)")
    if processes > 1 and "RANK" not in os.environ:
        from enrich.pipeline.processes import run_together

        code, told = run_together([sys.executable, "-m", "enrich.cli", *sys.argv[1:]], processes)
        if told:
            say_error(told)
        raise typer.Exit(code)
    with progress_bars("fine-tuning") as progress:
        done = enrich.finetune(catalog, out, settings, progress=progress, on_message=console.print)
    print_scores(done.metrics)
    console.print(f"adapter {done.adapter}: {done.uri}")
    if done.warning:
        raise HeldBack(done.warning)


def _rehearse(catalog: str, out: str | None, settings: TrainSettings) -> None:
    from enrich.pipeline.finetuning import rehearse

    with progress_bars("rehearsing") as progress:
        rehearse(catalog, out, settings, progress, on_message=console.print)
    console.print(f"{catalog}: dry run; nothing was trained or written")


def _overfit(catalog: str, settings: TrainSettings) -> None:
    from enrich.pipeline.finetuning import overfit
    from enrich.train.overfit import describe_losses

    with progress_bars("learning one batch") as progress:
        losses = overfit(catalog, settings, progress, on_message=console.print)
    console.print(describe_losses(losses))
    console.print(f"one batch of {catalog} was memorised; no adapter was written")


def score(
    adapter: Adapter,
    catalog: Annotated[str | None, typer.Option(help="Catalog to score on.")] = None,
    base: Base = None,
    engine: Engine = None,
    parity: Annotated[
        bool,
        typer.Option("--parity", help="Only compare vLLM with transformers; without a catalog, on generated photos."),
    ] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Number of photos to compare.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics, table and plots; with --parity, a JSON file.")
    ] = None,
    config: Config = None,
) -> None:
    """Score an adapter: on the test split of the catalog it was trained on, or on every row of another catalog."""
    settings = load_settings(RunSettings, config, "score", engine=engine, base=base)
    if parity:
        _compare_engines(adapter, catalog, settings, rows, out)
        return
    if catalog is None or rows is not None:
        raise typer.BadParameter("scoring needs --catalog; --rows needs --parity")
    with progress_bars("scoring") as progress:
        found = enrich.score(adapter, catalog, settings, out=out, progress=progress, on_message=console.print)
    for name, scored in zip(("", "/holdout"), found, strict=False):
        console.print(f"{scored.what} of {catalog}{name}")
        print_scores(scored.metrics)
        print_estimates(scored.metrics)
    console.print(f"adapter: {adapter}")
    if out is not None:
        console.print(f"scores: {out}/metrics.json, scores.parquet, scores.html")


def _compare_engines(
    adapter: str, catalog: str | None, settings: RunSettings, rows: int | None, out: Path | None
) -> None:
    from enrich.pipeline.comparing import measure_parity
    from enrich.pipeline.run.parity_gate import PROMPTS

    with progress_bars("comparing engines") as progress:
        record = measure_parity(adapter, catalog, settings, rows or PROMPTS, out, progress)
    console.print(record.summary)
    console.print(f"the same model: adapter {record.adapter}" + (f": {out}" if out else ""))


def merge(
    adapter: Adapter,
    out: Annotated[str, typer.Option(help="Where to write the checkpoint.")],
    base: Base = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32.")] = None,
    config: Config = None,
) -> None:
    """Merge an adapter and its base into one checkpoint, for servers without adapters, and compare the two."""
    from enrich.pipeline.merging import merge as run

    settings = load_settings(MergeSettings, config, "merge", dtype=dtype)
    with progress_bars("merging") as progress:
        done = run(adapter, out, settings, base=base, progress=progress)
    check = done.check
    console.print(
        f"merged and unmerged: logits differ by {check.relative_difference:.2g} of their size, "
        f"{check.same_answers} of {check.rows} answers agree"
    )
    console.print(f"checkpoint of adapter {done.adapter}: {done.uri}")


def promote(
    adapters: Annotated[
        str, typer.Option(help="Where the nightly flow stores adapters: a directory or s3://bucket/prefix.")
    ],
    adapter: Adapter,
    by: Annotated[str | None, typer.Option(help="Who decides, for the record; by default the user's name.")] = None,
    why: Annotated[str, typer.Option(help="The reason, for the record.")] = "a person decided",
) -> None:
    """Let an adapter serve from the next nightly run on, however it compares with the current one."""
    from enrich.pipeline.standing import promote as run

    chosen = run(adapters, adapter, _user() if by is None else by, why)
    console.print(f"adapter {chosen.adapter} now serves, by decision of {chosen.person}: {chosen.uri}")


def _user() -> str:
    """The user's name; empty if the system has no name for the user id, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
