"""`enrich run`, and the commands that work on the output of runs."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

import enrich
from enrich.cli.options import Adapter, Base, Config, Engine, Output, RunId
from enrich.console import console, errors, print_record, progress_bars
from enrich.settings.catalog import Columns
from enrich.settings.duration import parse_deadline, parse_duration
from enrich.settings.export import ExportSettings
from enrich.settings.load import load_settings
from enrich.settings.run import RunSettings

DEFAULT_PORT = 8420  # of `serve`


def run(
    images: Annotated[str, typer.Option(help="The photos: a directory or s3://bucket/prefix.")],
    adapter: Adapter,
    output: Annotated[str, typer.Option(help="Where to write the tables: a directory or s3://bucket/prefix.")],
    run_id: Annotated[str | None, typer.Option(help="Name of the run; give it again to continue it.")] = None,
    base: Base = None,
    engine: Engine = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of products.")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop and publish after this time: 6h, 90m, 2h30m; 6 is hours.")
    ] = None,
    inventory: Annotated[
        str | None, typer.Option(metavar="URI", help="manifest.json of an S3 Inventory, instead of listing the bucket.")
    ] = None,
    products: Annotated[
        str | None,
        typer.Option(metavar="URI", help="CSV or Parquet table of the products to process, with their photo keys."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what there is to do and how long it would take.")
    ] = False,
    config: Config = None,
) -> None:
    """Enrich new and changed products of a bucket, and publish products.parquet."""
    settings = load_settings(RunSettings, config, "run", engine=engine, base=base)
    until = None if deadline is None else parse_deadline(deadline)
    if dry_run:
        from enrich.pipeline.run import start
        from enrich.pipeline.run.request import RunRequest

        with progress_bars("planning") as progress:
            request = RunRequest(images, adapter, output, settings, run_id, limit, inventory, products=products)
            forecast = start.dry_run(request, progress)
        for line in forecast.lines():
            console.print(line)
        return
    with progress_bars("planning") as progress:
        record = enrich.run(
            images, adapter, output, settings, run_id=run_id, limit=limit, inventory=inventory, products=products,
            deadline=until, on_message=console.print, progress=progress,
        )  # fmt: skip
    print_record(record, output)
    if record.state == "held":
        from enrich.pipeline.run.records import held_back

        raise held_back(record, output)


def publish(output: Output, run_id: RunId, config: Config = None) -> None:
    """Publish a run that the gate held back."""
    from enrich.pipeline.releasing import publish_held

    with progress_bars("publishing"):
        record = publish_held(output, run_id, load_settings(RunSettings, config, "publish"))
    print_record(record, output)


def rollback(output: Output, run_id: RunId, config: Config = None) -> None:
    """Restore products.parquet as it was after a run; later runs are held back."""
    from enrich.pipeline.releasing import roll_back

    with progress_bars("rolling back"):
        records = roll_back(output, run_id, load_settings(RunSettings, config, "rollback"))
    held = ", ".join(record.run.run_id for record in records) or "none"
    console.print(f"products: {output}/products.parquet as of run {run_id}; held back since: {held}")


def rebuild(output: Output, config: Config = None) -> None:
    """Rebuild products.parquet from history, for example after it was lost or damaged."""
    from enrich.pipeline.releasing import rebuild

    with progress_bars("rebuilding"):
        rows, runs = rebuild(output, load_settings(RunSettings, config, "rebuild"))
    console.print(f"products: {output}/products.parquet, {rows:,} rows of {runs:,} runs")


def tidy(
    output: Output,
    keep: Annotated[
        str | None, typer.Option(metavar="TIME", help="Delete the rows of superseded runs older than this: 90d.")
    ] = None,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="How long packed shards are kept for queries that still read them.")
    ] = "24h",
    config: Config = None,
) -> None:
    """Pack the many small files of finished runs into a few, and delete what is no longer needed."""
    from enrich.pipeline.tidying import tidy

    settings = load_settings(RunSettings, config, "tidy")
    kept = None if keep is None else parse_duration(keep)
    with progress_bars("packing"):
        done = tidy(output, settings, grace=parse_duration(grace), keep=kept)
    console.print(f"{done.packed} shards packed into {done.packs} files, {done.deleted} packed shards deleted")
    if done.packed:
        console.print(
            f"their rows are stored twice until they are deleted, in {grace} at the earliest; until then queries on "
            "history must take each (run_id, product_id) once, like those in docs/queries.md"
        )
    console.print(f"{done.retired} runs retired: {output}/history")
    if done.litter:
        console.print(f"{done.litter} leftovers of killed processes removed")


def report(
    output: Output,
    run_id: Annotated[str | None, typer.Option(help="The run; the last one by default.")] = None,
) -> None:
    """Render the report of a run again."""
    from enrich.pipeline.releasing import rewrite_report

    with progress_bars("rendering the report"):
        record, _ = rewrite_report(output, run_id)
    print_record(record, output)


def label(
    output: Output,
    budget: Annotated[int, typer.Option(min=1, help="Number of products to pick.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The file to write, local or s3://bucket/key; by default label.json in the output."
        ),
    ] = None,
) -> None:
    """Pick the products that are most worth a person's review, for `enrich review --picked FILE`."""
    from enrich.pipeline.labelling import label

    with progress_bars("picking"):
        done = label(output, budget, to)
    console.print(
        f"{done.products:,} of {done.undecided:,} undecided products, {done.random:,} of them picked at random: "
        f"{done.uri}"
    )
    if done.products < min(budget, done.undecided):
        console.print("not more, because the titles of the others are nearly equal to these")
    console.print(f"show them: enrich review --output {output} --picked {done.uri}")


def review(
    output: Output,
    apply: Annotated[Path | None, typer.Option(help="Decisions file that the review page saved.")] = None,
    catalog: Annotated[
        str | None, typer.Option(help="With --apply: also add accepted and edited products to this catalog.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of rows on the page, the most value at risk first.")
    ] = 1000,
    picked: Annotated[
        str | None, typer.Option(metavar="FILE", help="Show the products that `enrich label` picked, in its order.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the catalog's columns.")] = None,
) -> None:
    """Write a page of the rows that need review, or apply the decisions made on it."""
    from enrich.pipeline.reviewing import apply_decisions, write_queue

    if apply is None:
        if catalog is not None or config is not None:
            raise typer.BadParameter("--catalog and --config need --apply FILE")
        with progress_bars("writing the review page"):
            queue = write_queue(output, limit, picked)
        console.print(
            f"{queue.rows} of {queue.waiting} rows that {'were picked' if picked else 'need review'}: {queue.uri}"
        )
        return
    if picked is not None:
        raise typer.BadParameter("--picked cannot be combined with --apply FILE")
    with progress_bars("applying decisions"):
        done = apply_decisions(output, apply, catalog, load_settings(Columns, config, "review"))
    console.print(", ".join(f"{count} {decision}" for decision, count in done.counts.items()))
    if done.outdated:
        console.print(f"{done.outdated} of them have no effect, because the products' photos have changed since")
    if done.added is not None:
        console.print(f"{done.added.new} new products for the next fine-tuning: {catalog}")
        if done.added.withdrawn:
            console.print(f"{done.added.withdrawn} removed from the catalog, because they were rejected")
        if missed := done.added.missed:
            gone = "the reviewed photo is gone or has changed"
            console.print(f"{len(missed)} not added, such as {missed[0]!r}: {gone}")
    console.print(f"products: {done.uri}")


def serve(
    output: Output,
    host: Annotated[str, typer.Option(help="Address to listen on; anything but loopback lets others read.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = DEFAULT_PORT,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another host name to answer to, such as a proxy's; may be repeated."),
    ] = None,
) -> None:
    """Serve run reports, the review page and score pages to browsers, until Ctrl-C. Read-only."""
    from enrich.pipeline.serving import PageServer
    from enrich.pipeline.site import Site
    from enrich.storage import open_store

    site = Site(open_store(output, must_exist=True))
    with PageServer(site, host, port, name or ()) as server:
        if not server.loopback:
            warning = f"warning: there is no password, so anyone who can reach {server.url} can read these pages"
            errors.print(warning, style="yellow")
        console.print(f"pages of {site.output.uri}: {server.url} (Ctrl-C stops it)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    console.print("stopped")


def export(
    output: Output,
    format: Annotated[str, typer.Option(help="merchant, shopify, csv or xlsx.")],
    to: Annotated[str, typer.Option(metavar="FILE", help="The file to write: a path or s3://bucket/key.")],
    min_confidence: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Leave out rows with a lower confidence, 0 to 1.")
    ] = None,
    link_prefix: Annotated[
        str | None, typer.Option(metavar="URL", help="Prefix that turns photo keys into links.")
    ] = None,
    config: Config = None,
) -> None:
    """Write the rows that are ready for use as a feed, a shop's import file or a spreadsheet."""
    from enrich.pipeline.exporting import export

    settings = load_settings(ExportSettings, config, "export", min_confidence=min_confidence, link_prefix=link_prefix)
    with progress_bars("exporting") as progress:
        done = export(output, format, to, settings, progress)
    for line in done.notes:
        console.print(line)
    console.print(f"{done.products:,} products: {done.uri}")
    console.print(done.left_out_line)
