"""`enrich catalog`: make, check or fetch a labelled catalog."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from enrich.cli.options import Config
from enrich.console import console, progress_bars
from enrich.errors import UsageError, one_line
from enrich.settings.catalog import CHECKED_PHOTOS, FetchSettings, SampleSettings
from enrich.settings.load import load_settings
from enrich.settings.training import TrainSettings

Out = Annotated[str, typer.Option(help="Where to write the catalog: a directory or s3://bucket/prefix.")]


def sample(
    out: Out,
    products: Annotated[int | None, typer.Option(help="Number of products.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")] = None,
    photos: Annotated[int | None, typer.Option(help="Maximum number of photos of a product, 1 to 4.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of titles and categories: en or ja.")] = None,
    bucket: Annotated[
        str | None, typer.Option(help="Also write unlabelled photos there, including hostile files.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another sample in the same place.")] = False,
) -> None:
    """Generate a catalog of synthetic product photos whose best possible score is known."""
    from sample.make import make_sample

    settings = load_settings(SampleSettings, products=products, seed=seed, photos=photos, language=language)
    with progress_bars("drawing photos") as progress:
        summary = make_sample(out, settings, bucket=bucket, overwrite=overwrite, progress=progress)
    console.print(f"{summary.products} products in {summary.categories} categories: {out}/catalog.csv")
    if summary.holdout:
        console.print(f"{summary.holdout} with unseen colour x fabric x kind: {out}/holdout/catalog.csv")
    if bucket:
        console.print(f"{summary.bucket} unlabelled {'products' if settings.photos > 1 else 'photos'}: {bucket}")


def fetch(
    source: Annotated[str, typer.Option(help="Hugging Face data set id, or a Parquet or CSV file.")],
    out: Out,
    config: Config = None,
) -> None:
    """Download the photos that a table names by URL, and write a catalog."""
    from enrich.pipeline.catalogs import fetch_photos

    settings = load_settings(FetchSettings, config, "catalog fetch")
    with progress_bars("reading the table") as progress:
        summary = fetch_photos(source, out, settings, progress=progress)
    console.print(f"{summary.photos} photos, {summary.failed} failed: {out}/catalog.csv")
    if summary.failed:
        console.print(f"why they failed: {out}/failures.csv")


def check(
    catalog: Annotated[str, typer.Option(help="A directory, a table in a file, or s3://bucket/prefix.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, as for `enrich finetune`.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="auto: propose the columns that no setting names; --config FILE is written if it does not exist."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write what was read to this file.")] = None,
    page: Annotated[Path | None, typer.Option(help="Also write an HTML page with pictures to this file.")] = None,
    photos: Annotated[
        int, typer.Option(help="Maximum number of photos to decode, spread over the catalog.", min=0)
    ] = CHECKED_PHOTOS,
) -> None:
    """Show what fine-tuning would read of a catalog, what it would leave out, and what looks wrong. Needs no model."""
    from enrich.catalog.layouts import as_yaml
    from enrich.catalog.table import find_table
    from enrich.pipeline.catalogs import check_catalog

    if columns not in (None, "auto"):
        raise UsageError(f"--columns {columns}: only auto is allowed; name columns in a settings file (--config)")
    for option, file in (("--json", json_file), ("--page", page)):
        if file and Path(catalog).exists() and file.resolve() == find_table(Path(catalog)).resolve():
            raise UsageError(f"{option} {file}: is the catalog's table; name another file")
    fresh = config is not None and columns == "auto" and not config.exists()
    settings = load_settings(TrainSettings, None if fresh else config, "finetune")
    with progress_bars("reading the catalog") as progress:
        found, proposal = check_catalog(
            catalog, settings, progress, auto=columns == "auto", most_photos=photos,
            page=partial(_write, page) if page else None,
        )  # fmt: skip
    for line in found.lines():
        console.print(one_line(line))
    if proposal:
        text = as_yaml(found.catalog.columns)
        console.print(f"\n# columns proposed from {proposal.layout}\n{text}", end="")
        if fresh and config:
            _write(config, text)
            console.print(f"settings: {config}")
    if json_file:
        _write(json_file, json.dumps(found.as_json(), ensure_ascii=False, indent=1) + "\n")
        console.print(f"rows: {json_file}")
    if page:
        console.print(f"page: {page}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; name a writable file") from error
