"""Make a catalog from a table with photo URLs or embedded photos: unmodified photos, the table with their paths, and
the failures.

The table is a local Parquet or CSV file, or the train split of a Hugging Face data set (its Parquet files only; no code
of the data set is run). An interrupted fetch continues: photos that were downloaded before are not requested again.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from enrich.catalog.download import EXTENSIONS, USUAL_PACE, Downloader, Outcome, Pace, urls_of, without_login
from enrich.catalog.embedded import PREFIX, Embedded
from enrich.catalog.records import BETWEEN_PHOTOS
from enrich.catalog.table import FORMATS, Table, Wanted, header_of, open_table, refuse_broken
from enrich.errors import RunFailed, UsageError, first_line
from enrich.settings.catalog import FetchSettings

IMAGE_PATH = "local_image_path"
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NOWHERE = ("", "N.A.")


@dataclass(frozen=True)
class FetchSummary:
    """Counts of photos."""

    photos: int
    failed: int  # a row without a URL counts as one
    resumed: int  # of `photos`, downloaded by an earlier fetch


def fetch_catalog(
    source: str, out: Path, settings: FetchSettings, progress: Callable[[int, int], None], pace: Pace = USUAL_PACE
) -> FetchSummary:
    """Write `out/images/`, `out/failures.csv` and, last, `out/catalog.csv`: the source's columns and local_image_path,
    where `|` separates the photos of a row.

    Photos that could not be fetched are listed in failures.csv (product_code, url, reason, attempts), and rows without
    any photo are left out of the catalog. Columns without a text form are left out.

    Args:
        source: a file, or the id of a data set.
        progress: called with (photos done, all photos).

    Raises:
        UsageError: no such table or data set, a missing column, or no rows; nothing was written.
        RunFailed: no photo could be downloaded, or none could be written.
    """
    table, embedded = _read(source, settings)
    images = out / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out {out}: {error.strerror or error}; name a directory that can be written") from error
    cells = table.select(pl.col(settings.product_code).alias("code"), pl.concat_list(settings.image_url).alias("urls"))
    rows = [_photos(code, urls, settings.photos_per_product) for code, urls in cells.iter_rows()]
    photos = [photo for row in rows for photo in row]
    try:
        inside = {photo.stem: path for photo in photos if (path := _path_inside(embedded, photo.url))}
        urls = {photo.stem: photo.url for photo in photos if photo.stem not in inside}
        outcomes = {stem: _copied(path, images, stem) for stem, path in inside.items()}
        outcomes |= _download_all(urls, images, settings, progress, pace)
        _write_failures([(photo, outcomes[photo.stem]) for photo in photos], out)
        files = [[name for photo in row if (name := outcomes[photo.stem].file)] for row in rows]
        if not any(files):
            reason, failures = outcomes[photos[0].stem].reason, out / "failures.csv"
            raise RunFailed(f"none of {len(photos):,} photos could be downloaded ({reason}); see {failures}")
        paths = pl.Series(IMAGE_PATH, [BETWEEN_PHOTOS.join(f"images/{name}" for name in names) for names in files])
        without = table.drop(name for name in settings.image_url if table[name].str.contains(f"^{PREFIX}").any())
        _write_csv(without.with_columns(paths).filter(pl.col(IMAGE_PATH) != ""), out / "catalog.csv")
    except OSError as error:
        raise RunFailed(f"{error.filename or out}: {error.strerror or error}; fix that and run again") from error
    results = [outcomes[photo.stem] for photo in photos]
    there = [result for result in results if result.file is not None]
    resumed = sum(result.attempts == 0 for result in there)
    return FetchSummary(len(there), len(results) - len(there), resumed)


@dataclass(frozen=True)
class _Photo:
    code: str  # of its product
    url: str
    stem: str  # a file name that is safe whatever the code is, and differs for other codes and URLs


def _photos(code: str, cells: Sequence[str], most: int) -> list[_Photo]:
    """The photos of a row; one without a URL if it names none."""
    named = [cell for cell in cells if cell.strip() not in _NOWHERE]
    urls = dict.fromkeys(
        url for cell in named for url in (cell.split(BETWEEN_PHOTOS) if cell.startswith(PREFIX) else urls_of(cell))
    )
    return [_Photo(code, url, _stem(code, url)) for url in [*urls][:most] or [""]]


def _stem(code: str, url: str) -> str:
    digest = hashlib.sha256(f"{code}\0{url}".encode()).hexdigest()[:8]
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", code)[:80].strip("_")
    return f"{safe or 'photo'}-{digest}"


def _download_all(
    urls: dict[str, str], images: Path, settings: FetchSettings, progress: Callable[[int, int], None], pace: Pace
) -> dict[str, Outcome]:
    """Outcomes by stem. Each stem is fetched once."""
    extensions = tuple(EXTENSIONS.values())
    there = {path.stem: path.name for path in images.iterdir() if path.suffix[1:] in extensions}
    outcomes = {stem: Outcome(there[stem], "", 0) for stem in urls if stem in there}
    outcomes |= {stem: Outcome(None, "no URL", 0) for stem, url in urls.items() if not url}
    missing = [stem for stem in urls if stem not in outcomes]
    progress(len(outcomes), len(urls))
    downloader = Downloader(images, settings, pace)
    pool = ThreadPoolExecutor(pace.threads, thread_name_prefix="fetch")
    try:
        futures = {pool.submit(downloader.fetch, urls[stem], stem): stem for stem in missing}
        for future in as_completed(futures):
            outcomes[futures[future]] = future.result()
            progress(len(outcomes), len(urls))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, running downloads end and no other starts
        downloader.close()
    return outcomes


def _write_failures(results: list[tuple[_Photo, Outcome]], out: Path) -> None:
    failed = [
        (photo.code, without_login(photo.url), result.reason, result.attempts)
        for photo, result in results
        if result.file is None
    ]
    types = {"product_code": pl.String, "url": pl.String, "reason": pl.String, "attempts": pl.Int64}
    _write_csv(pl.DataFrame(failed, schema=types, orient="row"), out / "failures.csv")


def _write_csv(table: pl.DataFrame, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    table.write_csv(part)
    part.replace(path)


def is_dataset(source: str) -> bool:
    """Whether it could be the id of a Hugging Face data set."""
    return _DATASET_ID.fullmatch(source) is not None and Path(source).suffix.lower() not in FORMATS


def _read(source: str, settings: FetchSettings) -> tuple[pl.DataFrame, list[Embedded]]:
    """The rows of all files, with what is asked for in them, and the photos inside of each."""
    files = _files(source)
    tables = [_opened(file, settings) for file in files]
    table = pl.concat([one.frame for one in tables], how="diagonal")
    wanted = ((settings.product_code, "product_code"), *((name, "image_url") for name in settings.image_url))
    for column, setting in wanted:
        if column not in table.columns:
            listed = ", ".join(header_of(files[0])[0][:30]) or "none"
            raise UsageError(
                f"table {source}: no column {column!r}; its columns are: {listed}; set {setting} to one of them"
            )
    if table.is_empty():
        raise UsageError(f"table {source}: has no rows; name another one")
    return table, [one.embedded for one in tables]


def _path_inside(embedded: Sequence[Embedded], name: str) -> str | None:
    """The file of an embedded photo; None for a URL."""
    return next((path for one in embedded if (path := one.path_of(name))), None)


def _copied(path: str, images: Path, stem: str) -> Outcome:
    file = f"{stem}{Path(path).suffix}"
    part = images / f".{file}.part"
    shutil.copyfile(path, part)
    part.replace(images / file)
    return Outcome(file, "", 1)


def _opened(file: Path, settings: FetchSettings) -> Table:
    table = open_table(file, Wanted(photos=settings.image_url))
    refuse_broken(table, file)
    return table


def _files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if not is_dataset(source):
        raise UsageError(
            f"source {source}: no such file; name a table ({', '.join(FORMATS)}), or a Hugging Face data set as "
            "owner/name"
        )
    return _hub_files(source)


def _hub_files(dataset: str) -> list[Path]:
    """Local copies of the Parquet files of a data set's train split, or of all where no file is named so."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    api = HfApi()
    try:
        names = [name for name in api.list_repo_files(dataset, repo_type="dataset") if name.endswith(".parquet")]
        train = [name for name in names if "train" in Path(name).name or "train" in Path(name).parent.name] or names
        folders = sorted({str(Path(name).parent) for name in train})
        if not train:
            raise UsageError(f"data set {dataset}: contains no Parquet file; download its table and name the file")
        if len(folders) > 1:
            listed = ", ".join(folders[:5])
            raise UsageError(f"data set {dataset}: several tables ({listed}); download one of them and name the file")
        return [Path(api.hf_hub_download(dataset, name, repo_type="dataset")) for name in sorted(train)]
    except RepositoryNotFoundError as error:
        raise UsageError(f"data set {dataset}: not found, or private without HF_TOKEN; check its name") from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise UsageError(f"data set {dataset}: {first_line(error)[:200]}; check the network, or name a file") from error
