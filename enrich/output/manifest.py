"""What one run has to do: the listing of the bucket minus what products.parquet already has."""

import json
import re
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError

from enrich.errors import RunFailed, UsageError
from enrich.output import parquet
from enrich.output.products import StoredProducts
from enrich.output.restate import RULES_KEY, Rules
from enrich.output.run_record import PublishedRun, RunInfo
from enrich.output.schema import MANIFEST_SCHEMA, ROW_SCHEMA, SOURCE_SCHEMA
from enrich.output.spill import MOST_PIECES, PIECE_ROWS, Pieces, cut, detached, in_order, sampled
from enrich.settings.run import RunSettings
from enrich.storage import ObjectInfo, Store
from enrich.storage.scratch import Scratch
from enrich.vocabulary import TRANSIENT, ManifestItem, Reason

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SEQUENCES = "runs/.sequence"  # no run id begins with a dot
_LINES = TypeAdapter(tuple[str, ...])
_LISTING_CHUNK = 100_000  # objects, some 50 MB while they become columns


@dataclass(frozen=True, weakref_slot=True, slots=True)
class Manifest:
    """A run and its images, in a local file (MANIFEST_SCHEMA, by key) that lives as long as this object.

    Made once, before any work; a restarted run reads it back.
    """

    run: RunInfo
    path: Path
    rows: int
    warnings: tuple[str, ...] = ()  # one line each: what planning found that a person should know

    @property
    def shards(self) -> range:
        """Every shard number, ascending."""
        return range(-(-self.rows // self.run.shard_size))

    @property
    def table(self) -> pl.DataFrame:
        """All of it in memory."""
        return pl.read_parquet(self.path)

    def by_reason(self) -> dict[str, int]:
        """How many images there are of each reason."""
        counts = pl.scan_parquet(self.path).group_by("reason").len().sort("reason").collect(engine="streaming")
        return dict(counts.iter_rows())

    def rows_in(self, shards: Sequence[int]) -> int:
        """How many images there are in some shards."""
        size = self.run.shard_size
        return sum(max(0, min(size, self.rows - shard * size)) for shard in shards)


def new_run_id(now: datetime) -> str:
    """A run id that sorts by time, such as 20261122T020000Z-1f3a9c."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """`run_id` itself, or UsageError if it could not name a folder everywhere."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"run id {run_id!r} is not valid: use 1 to 100 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    return run_id


def claim_sequence(output: Store, run_id: str, above: int) -> int:
    """The sequence number of a new run: higher than `above` and than any that was claimed before, by whichever clock.

    Each is an object that is created once. A number whose run never came to be stays unused.
    """
    claimed = [int(name) for info in output.list(SEQUENCES) if (name := info.key.rpartition("/")[2]).isdecimal()]
    sequence = max(above, *claimed, 0) + 1
    while not output.create(f"{SEQUENCES}/{sequence:08d}", run_id.encode()):
        sequence += 1
    return sequence


def check_new_run_id(run_id: str) -> None:
    """UsageError for a run id of digits only: readers of history would take the folder run_id=42 for a number."""
    if run_id.isdecimal():
        raise UsageError(
            f"run id {run_id}: pandas and others would read the folder run_id={run_id} as a number; add a letter, "
            f"such as run-{run_id}"
        )


def write_listing(path: Path, objects: Iterable[ObjectInfo], run: RunInfo, rules: Rules | None = None) -> int:
    """Write a listing, which comes by key, as a file of SOURCE_SCHEMA; returns how many objects there are.

    Args:
        rules: what the table is to be stated under while this listing is the newest.

    Raises:
        RunFailed: it does not come in order, as from S3 Express buckets.
    """

    def chunks() -> Iterator[pl.DataFrame]:
        rest, last = iter(objects), ""
        while chunk := list(islice(rest, _LISTING_CHUNK)):
            table = parquet.from_records([asdict(info) for info in chunk], SOURCE_SCHEMA)
            if not table["key"].is_sorted() or (last and table["key"][0].encode() <= last.encode()):
                raise RunFailed(f"{run.images_uri}: its listing is not in the order of the keys; use an inventory")
            last = table["key"][-1]
            yield table

    return parquet.write(path, chunks(), SOURCE_SCHEMA, _described(run, rules), sorted_by=["key"])


def write_inventory(
    path: Path,
    frames: Callable[[], Iterable[pl.DataFrame]],
    run: RunInfo,
    folder: Path,
    rules: Rules | None = None,
) -> int:
    """Write an inventory, which comes in any order, as `write_listing` does. A key that comes twice counts once.

    Args:
        frames: rows of SOURCE_SCHEMA, some at a time; asked for twice.
        folder: on the local disk, for what does not fit into memory.
    """
    rows, samples = 0, []
    for frame in frames():
        rows += frame.height
        samples.append(sampled([frame], ["key"]))
    cuts = cut(pl.concat(samples) if samples else parquet.empty(SOURCE_SCHEMA).select("key"), ["key"], rows)
    ordered = (
        piece.unique("key", keep="first", maintain_order=True) for piece in in_order(frames(), cuts, folder / "listing")
    )
    return parquet.write(path, ordered, SOURCE_SCHEMA, _described(run, rules), sorted_by=["key"])


def _described(run: RunInfo, rules: Rules | None) -> dict[str, str]:
    return {parquet.RUN_KEY: run.to_json()} | ({RULES_KEY: rules.model_dump_json()} if rules else {})


def write_plan(
    path: Path,
    source: Path,
    products: StoredProducts,
    run: RunInfo,
    settings: RunSettings,
    folder: Path,
    limit: int | None = None,
    warnings: Sequence[str] = (),
) -> int:
    """Write the images that a run has to do (MANIFEST_SCHEMA, by key); returns how many.

    Listing and table meet a piece at a time: memory holds PIECE_ROWS of either.

    Args:
        source: the listing now (SOURCE_SCHEMA, by key).
        limit: only the first so many.
        warnings: kept with the manifest, see `Manifest`.
    """
    every, cuts = _cut_by_key(pl.scan_parquet(source).select("key"))
    known = Pieces(folder / "known", cuts)
    known.add(products.frames(_KNOWN))
    known.close()

    def pieces() -> Iterator[pl.DataFrame]:
        done = 0
        for number in range(len(known)):
            piece = pl.scan_parquet(source).slice(number * every, every).collect()
            # Few rows of each piece wait for others, until they make up a row group.
            todo = detached(_todo(piece, known.read(number), products.runs, run, settings))
            todo = todo if limit is None else todo.head(max(0, limit - done))
            yield _numbered(todo, done, run.shard_size)
            done += todo.height

    metadata = {parquet.RUN_KEY: run.to_json(), parquet.WARNINGS_KEY: json.dumps(warnings)}
    return parquet.write(path, pieces(), MANIFEST_SCHEMA, metadata, sorted_by=["key"])


def _cut_by_key(keys: pl.LazyFrame) -> tuple[int, pl.DataFrame]:
    """How many of some ordered keys make up a piece, and the keys that begin the pieces after the first."""
    rows = keys.select(pl.len()).collect().item()
    every = max(PIECE_ROWS, -(-rows // MOST_PIECES))
    at = list(range(every, rows, every))
    cuts = pl.concat([detached(keys.slice(place, 1).collect()) for place in at]) if at else keys.limit(0).collect()
    return every, cuts.rename({"key": "image_key"})


def write_answers(path: Path, plan: Path, products: StoredProducts, run: RunInfo, folder: Path) -> int:
    """Write the answers (ROW_SCHEMA, by key) that images of a plan keep if they turn out to have the bytes that were
    answered: another etag does not say that they changed. Returns how many. What a person decided is not among them.

    Args:
        plan: what `write_plan` wrote.
    """
    keys = pl.scan_parquet(plan).filter(pl.col("reason") != Reason.NEW).select("key")
    every, cuts = _cut_by_key(keys)
    first = keys.slice(0, every).collect()
    may_stay = (
        (pl.col("status") == "ok")
        & (pl.col("fingerprint") == run.fingerprint)
        & pl.col("image_sha256").is_not_null()
        & pl.col("reviewed_by").is_null()
    )
    known = Pieces(folder / "kept", cuts)
    if first.height:
        frames = (frame.filter(may_stay) for frame in products.frames())
        if not cuts.height:
            frames = (frame.join(first, left_on="image_key", right_on="key", how="semi") for frame in frames)
        known.add(frames)
    known.close()

    def pieces() -> Iterator[pl.DataFrame]:
        for number in range(len(known)):
            piece = known.read(number)
            if piece is not None:
                wanted = keys.slice(number * every, every).collect()
                kept = piece.join(wanted, left_on="image_key", right_on="key", how="semi")
                yield detached(kept.select(ROW_SCHEMA.names).sort("image_key"))

    return parquet.write(path, pieces(), ROW_SCHEMA, {parquet.RUN_KEY: run.to_json()}, sorted_by=["image_key"])


def fetch_answers(output: Store, run: RunInfo, folder: Path) -> Path | None:
    """A copy of what `write_answers` wrote for a run, None if it has none."""
    file = parquet.fetch(output, run.answers, ROW_SCHEMA, folder / "answers.parquet", "use another run id")
    return file.path if file else None


def known_answers(answers: Path, items: Sequence[ManifestItem]) -> dict[str, dict[str, Any]]:
    """Of such a file the rows of some images that follow each other in the manifest, by key."""
    if not items:
        return {}
    between = pl.col("image_key").is_between(pl.lit(items[0].key), pl.lit(items[-1].key))
    rows = pl.scan_parquet(answers).filter(between).collect()
    return {row["image_key"]: row for row in rows.iter_rows(named=True)}


def _todo(
    source: pl.DataFrame,
    products: pl.DataFrame | None,
    runs: Mapping[str, PublishedRun],
    run: RunInfo,
    settings: RunSettings,
) -> pl.DataFrame:
    """The images of a listing that a run has to do, with reason and attempt, by key in UTF-8 order.

    A failure that is not TRANSIENT is not tried again under the same circumstances: it would only fail again.

    Args:
        source: the listing now (SOURCE_SCHEMA).
        products: the current table's _KNOWN columns, None if it has none of these keys.
        runs: the runs that its last_run_id names.
    """
    if products is None:
        products = pl.DataFrame(schema=dict.fromkeys(_KNOWN, pl.String)).cast({"last_attempt": pl.Int16})
    of_runs = pl.DataFrame(
        {
            "last_run_id": list(runs),
            "last_fingerprint": [published.fingerprint for published in runs.values()],
            "same_circumstances": [published.circumstances == run.circumstances for published in runs.values()],
        },
        schema={"last_run_id": pl.String, "last_fingerprint": pl.String, "same_circumstances": pl.Boolean},
    )
    known = products.select(_KNOWN).join(of_runs, on="last_run_id", how="left")
    images = source.join(known, left_on="key", right_on="image_key", how="left")
    counts_on = (pl.col("reason") == Reason.RETRY) & pl.col("same_circumstances")
    again = pl.when(counts_on).then(pl.col("last_attempt") + 1).otherwise(1)
    return (
        images.with_columns(reason=_reason(run.fingerprint, settings.max_attempts))
        .filter(pl.col("reason").is_not_null())
        .sort("key")
        .select("key", "size", "etag", "reason", again.cast(pl.Int16).alias("attempt"))
    )


def _numbered(todo: pl.DataFrame, first: int, shard_size: int) -> pl.DataFrame:
    """Shard numbers for rows of which `first` others come before."""
    return todo.with_row_index("row", offset=first).select(
        *todo.columns, (pl.col("row") // shard_size).cast(pl.Int32).alias("shard")
    )


_KNOWN = (
    "image_key",
    "image_etag",
    "fingerprint",
    "last_etag",
    "last_status",
    "last_error_kind",
    "last_attempt",
    "last_run_id",
)


def _reason(fingerprint: str, max_attempts: int) -> pl.Expr:
    """Why an image is to be done, or null. `fingerprint` is this run's; last_fingerprint is the newest outcome's.

    The newest outcome decides. Where it is good, the row shown must be of the same bytes and fingerprint too: tables
    from before there were sequences show what was processed last, be it with older bytes or an older adapter.
    """
    answered = pl.col("last_status") == "ok"
    other_bytes = (pl.col("last_etag") != pl.col("etag")) | (answered & (pl.col("image_etag") != pl.col("etag")))
    other_model = pl.col("last_fingerprint").ne_missing(fingerprint) | (
        answered & (pl.col("fingerprint") != fingerprint)
    )
    attempts_left = pl.col("last_error_kind").is_in(sorted(TRANSIENT)) & (pl.col("last_attempt") < max_attempts)
    may_pass = (pl.col("last_status") == "failed") & (attempts_left | ~pl.col("same_circumstances"))
    return (
        pl.when(pl.col("last_run_id").is_null())
        .then(pl.lit(Reason.NEW))
        .when(other_bytes)
        .then(pl.lit(Reason.CHANGED))
        .when(other_model)
        .then(pl.lit(Reason.MODEL))
        .when(may_pass)
        .then(pl.lit(Reason.RETRY))
    )


def create_manifest(output: Store, run: RunInfo, source: Path, manifest: Path, answers: Path | None = None) -> Manifest:
    """Write the listing and the answers that may stay, then the manifest, which makes the run exist. Returns the
    manifest that stands.

    Where another process began the same run first, its manifest stands and this one's is dropped. The others are
    written without a condition: one left by a process that died before its manifest is older than this one.
    """
    output.put(f"{run.folder}source.parquet", source)
    if answers is not None:
        output.put(run.answers, answers)
    output.create(f"{run.folder}manifest.parquet", manifest)
    standing = read_manifest(output, run.run_id)
    if standing is None:
        key = f"{run.folder}manifest.parquet"
        raise RunFailed(f"{output.uri_of(key)} could be neither created nor read; start the run again")
    return standing


def read_manifest(output: Store, run_id: str) -> Manifest | None:
    """The manifest of a run that was begun, copied to the local disk, else None; RunFailed if the file is not one."""
    key, folder = f"runs/{check_run_id(run_id)}/manifest.parquet", Scratch()
    try:
        file = parquet.fetch(output, key, MANIFEST_SCHEMA, folder.path / "manifest.parquet", "use another run id")
        if file is None:
            folder.remove()
            return None
        warnings = _LINES.validate_json(file.metadata.get(parquet.WARNINGS_KEY, "[]"))
        manifest = Manifest(RunInfo.from_json(file.metadata.get(parquet.RUN_KEY, "")), file.path, file.rows, warnings)
    except ValidationError as error:
        folder.remove()
        raise RunFailed(f"{output.uri_of(key)} does not say which run it belongs to; use another run id") from error
    except BaseException:
        folder.remove()
        raise
    weakref.finalize(manifest, folder.remove)
    return manifest


def check_same_run(manifest: Manifest, run: RunInfo) -> None:
    """UsageError if `run` would go on with a run id that was begun on other images or would be answered otherwise."""
    begun = manifest.run
    if begun.images_uri != run.images_uri:
        raise UsageError(
            f"run {run.run_id} was begun on images {begun.images_uri}, not {run.images_uri}; use another run id"
        )
    if begun.fingerprint != run.fingerprint:
        raise UsageError(
            f"run {run.run_id} was begun with fingerprint {begun.fingerprint} (adapter {begun.adapter}), not "
            f"{run.fingerprint} (adapter {run.adapter}); use another run id"
        )
    if begun.circumstances and begun.circumstances != run.circumstances:
        raise UsageError(
            f"run {run.run_id} was begun with other limits on photos or answers, another engine or version of Pillow; "
            "set them as they were, or use another run id"
        )


def items(manifest: Manifest, shard: int) -> list[ManifestItem]:
    """The images of one shard, by key."""
    size = manifest.run.shard_size
    rows = pl.scan_parquet(manifest.path).slice(shard * size, size).collect()
    return [ManifestItem(**{**row, "reason": Reason(row["reason"])}) for row in rows.iter_rows(named=True)]
