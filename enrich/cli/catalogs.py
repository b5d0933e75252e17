"""`enrich catalog`: make or fetch a labelled catalog."""

from typing import Annotated

import typer

from enrich.cli.options import Config
from enrich.console import console, progress_bars
from enrich.settings.catalog import FetchSettings, SampleSettings
from enrich.settings.load import load_settings

Out = Annotated[str, typer.Option(help="Where the catalog goes: a directory or s3://bucket/prefix.")]


def sample(
    out: Out,
    products: Annotated[int | None, typer.Option(help="Number of products.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same bytes.")] = None,
    photos: Annotated[int | None, typer.Option(help="Most photos of a product, 1 to 4.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the retailer's words: en or ja.")] = None,
    bucket: Annotated[
        str | None, typer.Option(help="Also make unlabelled photos there, hostile files among them.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another sample that is there.")] = False,
) -> None:
    """Make a catalog of synthetic product photos whose best possible score is known."""
    from sample.make import make_sample

    settings = load_settings(SampleSettings, products=products, seed=seed, photos=photos, language=language)
    with progress_bars("drawing photos") as progress:
        summary = make_sample(out, settings, bucket=bucket, overwrite=overwrite, progress=progress)
    console.print(f"{summary.products} products in {summary.categories} categories: {out}/catalog.csv")
    if summary.holdout:
        console.print(f"{summary.holdout} of unseen colour x fabric x kind: {out}/holdout/catalog.csv")
    if bucket:
        console.print(f"{summary.bucket} unlabelled {'products' if settings.photos > 1 else 'photos'}: {bucket}")


def fetch(
    source: Annotated[str, typer.Option(help="Hugging Face data set id, or a Parquet or CSV file.")],
    out: Out,
    config: Config = None,
) -> None:
    """Download the photos of a table with an image URL column, and write them as a catalog."""
    from enrich.pipeline.catalogs import fetch_photos

    settings = load_settings(FetchSettings, config, "catalog fetch")
    with progress_bars("reading the table") as progress:
        summary = fetch_photos(source, out, settings, progress=progress)
    console.print(f"{summary.photos} photos, {summary.failed} failed: {out}/catalog.csv")
    if summary.several:
        console.print(f"rows that name several URLs: {summary.several}; the photo of the first one was taken")
    if summary.failed:
        console.print(f"why they failed: {out}/failures.csv")
