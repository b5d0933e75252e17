"""The `enrich` command. Exit codes: 0 done, 1 the run failed, 2 wrong usage or settings, 3 held back by the gate."""

import os
import re
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from typer.exceptions import TyperException

from enrich import __version__
from enrich.console import (
    console,
    errors,
    print_estimates,
    print_record,
    print_scores,
    progress_bars,
    quiet_libraries,
    say_error,
    speaks,
)
from enrich.errors import EnrichError, HeldBack, UsageError, unforeseen
from enrich.settings.catalog import Columns, FetchSettings, SampleSettings
from enrich.settings.load import COMMANDS, SECTIONS, load_settings
from enrich.settings.run import RunSettings
from enrich.settings.training import MergeSettings, TrainSettings

app = typer.Typer(
    name="enrich",
    help="Titles, categories and price estimates for product photos, from Phi-3-vision fine-tuned on your catalog.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
catalog_app = typer.Typer(no_args_is_help=True, help="Make or fetch a labelled catalog.")
app.add_typer(catalog_app, name="catalog")

_INTERRUPTED = 130  # what Typer makes of a KeyboardInterrupt
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Base = Annotated[str | None, typer.Option(help="Hub id or directory of its base; the adapter names it too.")]
Engine = Annotated[str | None, typer.Option(help="auto, vllm or transformers.")]
Output = Annotated[str, typer.Option(help="Output of the runs.")]
RunId = Annotated[str, typer.Option(help="The run's id.")]


def print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"enrich {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `enrich` script."""
    quiet_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: else processes that it started outlive it
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            errors.print(Text.assemble(("stopped", "red"), "; what was committed stays"))
            code = 1
    except EnrichError as error:
        # Of processes that train together each meets the same wrong usage; any other error may be of one alone.
        if speaks() or not isinstance(error, UsageError):
            say_error(error)
        code = error.exit_code
    except TyperException as error:
        if speaks() and error.format_message():  # without arguments there is none, only the help
            say_error(UsageError(f"{error.format_message().rstrip('.')}; `enrich --help` shows what there is"))
        code = error.exit_code
    except BaseException as error:  # the last boundary: nobody but us can act on a traceback
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust, below Polars
            raise
        code = _unexpected(error)
    sys.exit(code or 0)


@catalog_app.command("sample")
def catalog_sample(
    out: Annotated[str, typer.Option(help="Where the catalog goes: a directory or s3://bucket/prefix.")],
    products: Annotated[int | None, typer.Option(help="Products to make.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same bytes.")] = None,
    bucket: Annotated[str | None, typer.Option(help="Also make unlabelled photos, hostile files among them.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove another sample that lies there.")] = False,
) -> None:
    """Make a catalog of synthetic product photos whose best possible score is known."""
    from sample.make import make_sample

    settings = load_settings(SampleSettings, products=products, seed=seed)
    with progress_bars() as progress:
        summary = make_sample(out, settings, bucket=bucket, overwrite=overwrite, progress=progress)
    console.print(f"{summary.products} products in {summary.categories} categories: {out}/catalog.csv")
    if summary.holdout:
        console.print(f"{summary.holdout} of unseen colour x fabric x kind: {out}/holdout/catalog.csv")
    if bucket:
        console.print(f"{summary.bucket} unlabelled photos: {bucket}")


@catalog_app.command("fetch")
def catalog_fetch(
    source: Annotated[str, typer.Option(help="Hugging Face data set id, or a Parquet or CSV file.")],
    out: Annotated[str, typer.Option(help="Where the catalog goes: a directory or s3://bucket/prefix.")],
    config: Config = None,
) -> None:
    """Download the photos of a table with an image URL column, and write them as a catalog."""
    from enrich.pipeline.catalogs import fetch_photos

    with progress_bars() as progress:
        summary = fetch_photos(source, out, load_settings(FetchSettings, config, "catalog fetch"), progress=progress)
    console.print(f"{summary.photos} photos, {summary.failed} failed: {out}/catalog.csv")
    if summary.several:
        console.print(f"rows that name several URLs: {summary.several}; the photo of the first one was taken")
    if summary.failed:
        console.print(f"why they failed: {out}/failures.csv")


@app.command()
def finetune(
    catalog: Annotated[str, typer.Option(help="Catalog: a directory or s3://bucket/prefix.")],
    out: Annotated[str | None, typer.Option(help="Where the adapter goes.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or directory of a Phi-3-vision.")] = None,
    overfit_one_batch: Annotated[
        bool, typer.Option("--overfit-one-batch", help="Only test that one batch can be learned by heart.")
    ] = False,
    allow_dropped: Annotated[
        bool, typer.Option("--allow-dropped", help="Train even if more than a tenth of the rows cannot be used.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Train in so many processes, one for each GPU here.")] = 1,
    config: Config = None,
) -> None:
    """Teach Phi-3-vision a catalog: photo to title, category and full price, as a LoRA adapter with known errors."""
    settings = load_settings(TrainSettings, config, "finetune", model=model, allow_dropped=allow_dropped or None)
    if overfit_one_batch:
        print_overfitting(catalog, settings)
        return
    if out is None:
        raise typer.BadParameter("fine-tuning needs --out (or --overfit-one-batch)")
    if processes > 1 and "RANK" not in os.environ:
        from enrich.pipeline.processes import run_together

        code, told = run_together([sys.executable, "-m", "enrich.cli", *sys.argv[1:]], processes)
        if told:
            errors.print(Text.assemble(("error: ", "red"), told))
        raise typer.Exit(code)
    from enrich.pipeline.finetuning import finetune as run

    with progress_bars() as progress:
        done = run(catalog, out, settings, progress, on_message=lambda line: console.print(Text(line)))
    print_scores(done.metrics)
    console.print(f"adapter {done.adapter}: {done.uri}")
    if done.warning:
        raise HeldBack(done.warning)


@app.command()
def score(
    adapter: Annotated[str, typer.Option(help="Adapter directory or s3://bucket/prefix.")],
    catalog: Annotated[str | None, typer.Option(help="Catalog to score on.")] = None,
    base: Base = None,
    engine: Engine = None,
    parity: Annotated[
        bool, typer.Option("--parity", help="Only compare vLLM with transformers; on drawn photos without a catalog.")
    ] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Photos to compare.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics, table and plots; with --parity the comparison's JSON file.")
    ] = None,
    config: Config = None,
) -> None:
    """Score an adapter on a catalog: the test split of the one it was made from, every row of any other."""
    settings = load_settings(RunSettings, config, "score", engine=engine, base=base)
    if parity:
        print_parity(adapter, catalog, settings, rows, out)
        return
    if catalog is None or rows is not None:
        raise typer.BadParameter("scoring needs --catalog; --rows goes with --parity")
    from enrich.pipeline.scoring import score_adapter

    with progress_bars() as progress:
        found = score_adapter(
            adapter, catalog, settings, out=None if out is None else str(out), progress=progress,
            announce=lambda line: console.print(Text(line)),
        )  # fmt: skip
    for name, scored in zip(("", "/holdout"), found, strict=False):
        console.print(f"{scored.what} of {catalog}{name}")
        print_scores(scored.metrics)
        print_estimates(scored.metrics)
    console.print(f"adapter: {adapter}")
    if out is not None:
        console.print(f"scores: {out}/metrics.json, scores.parquet, scores.html")


@app.command()
def merge(
    adapter: Annotated[str, typer.Option(help="Adapter directory or s3://bucket/prefix.")],
    out: Annotated[str, typer.Option(help="Where the checkpoint goes.")],
    base: Base = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32.")] = None,
    config: Config = None,
) -> None:
    """Write an adapter and its base as one checkpoint, for servers that load no adapters, after comparing the two."""
    from enrich.pipeline.merging import merge as run

    settings = load_settings(MergeSettings, config, "merge", dtype=dtype)
    with progress_bars() as progress:
        done = run(adapter, out, settings, base=base, progress=progress)
    check = done.check
    console.print(
        f"merged beside unmerged: logits differ by {check.relative_difference:.2g} of their size, "
        f"{check.same_answers} of {check.rows} answers agree"
    )
    console.print(f"checkpoint of adapter {done.adapter}: {done.uri}")


@app.command()
def run(
    images: Annotated[str, typer.Option(help="The photos: a directory or s3://bucket/prefix.")],
    adapter: Annotated[str, typer.Option(help="Adapter made by `enrich finetune`.")],
    output: Annotated[str, typer.Option(help="Where the tables go.")],
    run_id: Annotated[str | None, typer.Option(help="Name of the run; give it again to continue it.")] = None,
    base: Base = None,
    engine: Engine = None,
    limit: Annotated[int | None, typer.Option(help="At most so many photos.")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop and publish after so long: 6h, 90m, 2h30m.")
    ] = None,
    inventory: Annotated[
        str | None, typer.Option(metavar="URI", help="manifest.json of an S3 Inventory, instead of a listing.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to do, and how long it takes.")
    ] = False,
    config: Config = None,
) -> None:
    """Enrich what is new or changed in a bucket, and publish products.parquet."""
    settings = load_settings(RunSettings, config, "run", engine=engine, base=base)
    from enrich.pipeline.run import start
    from enrich.pipeline.run.enrichment import run_enrichment
    from enrich.pipeline.run.records import held_back
    from enrich.pipeline.run.request import RunRequest

    seconds = None if deadline is None else parse_duration(deadline).total_seconds()
    request = RunRequest(images, adapter, output, settings, run_id, limit, inventory, seconds)
    if dry_run:
        with progress_bars() as progress:
            forecast = start.dry_run(request, progress)
        for line in forecast.lines():
            console.print(line)
        return
    with progress_bars() as progress:
        record = run_enrichment(request, progress, on_message=lambda line: console.print(Text(line)))
    print_record(record, output)
    if record.state == "held":
        raise held_back(record, output)


@app.command()
def publish(output: Output, run_id: RunId, config: Config = None) -> None:
    """Publish a run that the gate held back."""
    from enrich.pipeline.releasing import publish_held

    print_record(publish_held(output, run_id, load_settings(RunSettings, config, "publish")), output)


@app.command()
def rollback(output: Output, run_id: RunId, config: Config = None) -> None:
    """Restore products.parquet as it was after a run; later runs are held back."""
    from enrich.pipeline.releasing import roll_back

    records = roll_back(output, run_id, load_settings(RunSettings, config, "rollback"))
    held = ", ".join(record.run.run_id for record in records) or "none"
    console.print(f"products: {output}/products.parquet as of run {run_id}; held back since: {held}")


@app.command()
def rebuild(output: Output, config: Config = None) -> None:
    """Rebuild products.parquet from history, whether it was lost, damaged or neither."""
    from enrich.pipeline.releasing import rebuild as rebuild_products

    rows, runs = rebuild_products(output, load_settings(RunSettings, config, "rebuild"))
    console.print(f"products: {output}/products.parquet, {rows:,} rows of {runs:,} runs")


@app.command()
def tidy(
    output: Output,
    keep: Annotated[
        str | None, typer.Option(metavar="TIME", help="Delete the rows of superseded runs older than this: 90d.")
    ] = None,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="How long shards stay after they were packed, for those who read them.")
    ] = "24h",
    config: Config = None,
) -> None:
    """Pack the many small files of finished runs into few, and delete what nothing needs any more."""
    from enrich.pipeline.tidying import tidy as run

    settings = load_settings(RunSettings, config, "tidy")
    kept = None if keep is None else parse_duration(keep)
    done = run(output, settings, grace=parse_duration(grace), keep=kept)
    console.print(f"{done.packed} shards packed into {done.packs} files, {done.deleted} packed shards deleted")
    if done.packed:
        console.print(
            f"their rows lie in two files until they are deleted, {grace} from now at the earliest: queries on history "
            "take each (run_id, image_key) once, as those in docs/queries.md"
        )
    console.print(f"{done.retired} runs retired: {output}/history")
    if done.litter:
        console.print(f"{done.litter} leftovers of killed processes removed")


@app.command()
def report(
    output: Output,
    run_id: Annotated[str | None, typer.Option(help="The run; the last one by default.")] = None,
) -> None:
    """Render the report of a run anew."""
    from enrich.pipeline.releasing import rewrite_report

    record, _ = rewrite_report(output, run_id)
    print_record(record, output)


@app.command()
def review(
    output: Output,
    apply: Annotated[Path | None, typer.Option(help="File of decisions that the review page saved.")] = None,
    catalog: Annotated[
        str | None, typer.Option(help="Also put what was accepted or edited into this catalog, with --apply.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows on the page at most, most value at risk first.")] = 1000,
    config: Annotated[Path | None, typer.Option(help="YAML file with the catalog's columns.")] = None,
) -> None:
    """Write a page of the rows that need a person, or apply what was decided there."""
    from enrich.pipeline.reviewing import apply_decisions, write_queue

    if apply is None:
        if catalog is not None or config is not None:
            raise typer.BadParameter("--catalog and --config go with --apply FILE")
        queue = write_queue(output, limit)
        console.print(f"{queue.rows} of {queue.waiting} rows that need review: {queue.uri}")
        return
    done = apply_decisions(output, apply, catalog, load_settings(Columns, config, "review"))
    console.print(", ".join(f"{count} {decision}" for decision, count in done.counts.items()))
    if done.outdated:
        console.print(f"{done.outdated} of them are about photos that have changed since, and have no effect")
    if done.added is not None:
        console.print(f"{done.added.new} new products for the next fine-tuning: {catalog}")
        if done.added.withdrawn:
            console.print(f"{done.added.withdrawn} taken out of the catalog again: they were rejected")
        if missed := done.added.missed:
            console.print(
                Text(f"{len(missed)} not added, {missed[0]!r} among them: the photo reviewed is gone or another by now")
            )
    console.print(f"products: {done.uri}")


@app.command()
def doctor(
    output: Annotated[str | None, typer.Option(help="Also try this output's conditional writes.")] = None,
    config: Config = None,
) -> None:
    """Say what this machine can run, what is missing, and the command that mends it."""
    from enrich.doctor import examine

    findings = examine(output, load_settings(RunSettings, config, "doctor").s3)
    table = Table("", "what", "here", "to mend it", box=None, pad_edge=False)
    for finding in findings:
        mark = ("ok", "green") if finding.ok else ("missing", "red") if finding.required else ("optional", "yellow")
        table.add_row(Text(*mark), finding.what, Text(finding.here), Text("" if finding.ok else finding.mend))
    console.print(table)
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def settings(
    command: Annotated[list[str] | None, typer.Argument(help="A command: finetune, run, catalog fetch ...")] = None,
) -> None:
    """Print the settings of a command, or of all, as a YAML file to edit and pass as --config."""
    from enrich.settings.describe import describe

    name = " ".join(command or ())
    if name and name not in COMMANDS:
        raise typer.BadParameter(f"{name!r} has no settings; those with settings: {', '.join(COMMANDS)}")
    if name:
        print(describe(COMMANDS[name]), end="")
        return
    print("\n".join(describe(cls, section) for section, cls in SECTIONS.items()), end="")


def parse_duration(text: str) -> timedelta:
    """90d, 6h, 2h30m, 45s; UsageError for anything else."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"{text!r} is no length of time; write 90d, 6h, 2h30m or 45s")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def print_overfitting(catalog: str, settings: TrainSettings) -> None:
    from enrich.pipeline.finetuning import overfit
    from enrich.train.overfit import describe_losses

    with progress_bars() as progress:
        losses = overfit(catalog, settings, progress, on_message=lambda line: console.print(Text(line)))
    console.print(describe_losses(losses))
    console.print(f"one batch of {catalog} was learned by heart; no adapter was written")


def print_parity(adapter: str, catalog: str | None, settings: RunSettings, rows: int | None, out: Path | None) -> None:
    from enrich.pipeline.comparing import measure_parity
    from enrich.pipeline.run.parity_gate import PHOTOS

    with progress_bars() as progress:
        record = measure_parity(adapter, catalog, settings, rows or PHOTOS, out, progress)
    console.print(Text(record.summary))
    console.print(f"the same model: adapter {record.adapter}" + (f": {out}" if out else ""))


def _unexpected(error: BaseException) -> int:
    if os.environ.get("ENRICH_DEBUG"):
        errors.print_exception()
    say_error(unforeseen(error))
    return 1


if __name__ == "__main__":
    main()
