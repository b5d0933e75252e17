"""A run's description of itself: in the metadata of every file that it writes, and in runs/ID/run.json."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from enrich.errors import PermanentFailure
from enrich.phases import Start
from enrich.storage import StorageError, Store

RUN_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
SEQUENCES = "runs/.sequence"  # no run id starts with a dot
_RECORD = re.compile(rf"runs/{RUN_ID}/run\.json")
TOO_SHORT = "the run was too short to tell"  # as the advice about a bottleneck that is not to be named


@dataclass(frozen=True, order=True, kw_only=True)
class RunMark:
    """A run's place in the order of runs, regardless of when they are published.

    Clocks may be wrong, so the sequence comes first; runs from before sequences were introduced have 0.
    """

    sequence: int = 0
    created_at: datetime
    run_id: str


@dataclass(frozen=True)
class RunInfo:
    """One pass over a bucket: its input, and what affects its answers. Every file that it writes contains this."""

    run_id: str
    created_at: datetime  # UTC, microseconds
    images_uri: str
    fingerprint: str
    model: str
    adapter: str  # the adapter's id, a hash of its content
    prompt_version: str
    shard_size: int  # products
    sequence: int = 0  # higher than that of every earlier run in this output
    circumstances: str = ""  # hash of what else, beyond bytes and fingerprint, a failure depends on; "" in older runs
    review_below: float | None = None  # confidence, from the adapter's calibration; unknown for older runs
    fields_review_below: Mapping[str, float] = field(default_factory=dict)  # the same for each further field

    @property
    def mark(self) -> RunMark:
        """The run's place in the order of runs."""
        return RunMark(sequence=self.sequence, created_at=self.created_at, run_id=self.run_id)

    @property
    def folder(self) -> str:
        """The folder of the run's manifest, listing and record, below the output."""
        return f"runs/{self.run_id}/"

    @property
    def answers(self) -> str:
        """The key of the answers that products keep if only etags changed."""
        return f"{self.folder}answers.parquet"

    @property
    def history(self) -> str:
        """The folder of the run's shards. It has the run's date, so a restart on another day finds completed shards."""
        return f"history/run_date={self.created_at.astimezone(UTC):%Y-%m-%d}/run_id={self.run_id}/"

    def to_json(self) -> str:
        return TypeAdapter(RunInfo).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises pydantic.ValidationError if `text` is not a RunInfo."""
        return TypeAdapter(cls).validate_json(text)


@dataclass(frozen=True)
class PublishedRun:
    """What products.parquet stores about a run that it refers to."""

    created_at: datetime
    fingerprint: str
    sequence: int = 0
    circumstances: str = ""
    images_uri: str = ""
    review_below: float | None = None
    fields_review_below: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunInfo) -> Self:
        """The part of `run` that is stored."""
        return cls(**{one.name: getattr(run, one.name) for one in fields(cls)})


@dataclass(frozen=True)
class RunStats:
    """The statistics that the publish gate compares between runs. Shares are 0..1."""

    rows: int
    ok: int
    failed: int
    failed_by_kind: dict[str, int]
    unknown_category: int  # rows whose answer named no category of the taxonomy, failed or flagged
    review: int  # rows with needs_review
    category_mix: dict[str, float]  # category -> share of the ok rows
    price_median: float | None  # of the ok rows that have a price
    same_title: str | None = None  # the title of all ok rows, if they belong to several products


@dataclass(frozen=True)
class Finding:
    """A limit of the publish gate that a run exceeded."""

    limit: str  # the setting's name in GateSettings
    value: float
    allowed: float
    message: str  # one line


@dataclass(frozen=True)
class StageUse:
    """The time that one stage of a run took, and the share of its workers' time in which they were busy."""

    stage: str
    seconds: float  # per product, in one worker
    workers: int | None  # None: a stage in which photos only wait
    busy: float | None


@dataclass(frozen=True)
class Stages:
    """Where a run's time went, which stage was the bottleneck, and the setting that affects it."""

    photos: int
    photos_per_second: float  # without the time to start the engine
    uses: tuple[StageUse, ...]
    starved: float  # share of the time in which the engine was idle because no photo was ready
    bottleneck: str
    advice: str


@dataclass(frozen=True)
class Change:
    """A product whose answer changed."""

    product_id: Annotated[str, Field(validation_alias=AliasChoices("product_id", "image_key"))]  # version 2 had the key
    reason: str | None  # why it was processed again
    before: str  # title, category, price, and the declared fields that changed, in one line
    after: str


@dataclass(frozen=True)
class Changes:
    """How a run's answers differ for products that already had a good answer."""

    compared: int
    title: int  # products whose title changed
    category: int
    price: int  # more than 20 % up or down
    by_reason: dict[str, int]  # reason -> products with any of these
    now_failing: int  # their previous good answer is kept
    gone: int  # products that were in the source at the last run
    examples: tuple[Change, ...]
    gone_answered: int = 0  # products of `gone` that have an answer
    answered: int = 0  # products with an answer that were in the source at the last run
    repaired: int = 0  # products that had only failed before; not in older records
    attributes: dict[str, int] = field(default_factory=dict)  # declared field -> products whose value changed


@dataclass(frozen=True)
class FieldErrors:
    """How often a field was wrong. Shares are 0..1."""

    field: str
    decisions: int
    wrong: float
    low: float  # 95 % interval of `wrong`
    high: float
    claimed: float | None  # what the confidences of the same answers say; None: the field has none


@dataclass(frozen=True)
class Observed:
    """What people found about the answers of an adapter, whose products were picked at random."""

    decisions: int
    fields: tuple[FieldErrors, ...]  # those with enough decisions


@dataclass(frozen=True)
class Cost:
    """The machine's cost: its hourly price times the duration of the run, in the currency of that price."""

    per_hour: float
    per_1000_photos: float
    total: float | None = None  # not in older records
    currency: str | None = None  # of all three; None: not named


class RunRecord(BaseModel):
    """runs/ID/run.json, written last: how a run ended and where its time went."""

    model_config = ConfigDict(frozen=True)

    run: RunInfo
    state: Literal["published", "held", "nothing_to_do"]
    counts: dict[Literal["rows", "ok", "failed"], int]
    by_reason: dict[str, int] = {}
    by_error_kind: dict[str, int] = {}
    same_bytes: int = 0  # products with new etags but the same bytes, which kept their answer
    answered_before: int | None = None  # products that keep their answer; counted only if there was nothing to do
    failed_before: dict[str, int] = {}  # error kind -> products that are not retried; counted as answered_before is
    older: int = 0  # products whose answer is of an older adapter and was left for later runs
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()  # for the user; they did not hold the run back
    stats: RunStats | None = None
    shards: int = 0
    missing_shards: int = 0  # not processed before the run's deadline; its run id resumes with them
    retired: bool = False  # its rows, listing and manifest were deleted (`enrich tidy`)
    started_at: datetime
    finished_at: datetime
    seconds: float
    images_per_second: float
    engine: str
    host: str
    stages: Stages | None = None  # None: no product was answered
    start: Start | None = (
        None  # until the first answer; of several sessions, the longest. None: no product was answered
    )
    changes: Changes | None = None  # None: nothing was published before
    previous: RunStats | None = None  # of the last published run that was large enough to compare with
    cost: Cost | None = None  # None: no price was set
    observed: Observed | None = None  # None: too few of the adapter's answers were picked at random and decided on
    versions: dict[str, str] = {}
    # Not in older records. `run.adapter` is the hash of the adapter's content, `catalog` that of what it was made from.
    adapter_uri: str | None = None
    catalog: str | None = None
    catalog_uri: str | None = None
    serve_url: str | None = None  # where `enrich serve` shows this output

    @field_validator("counts")
    @classmethod
    def _whole(cls, counts: dict[str, int]) -> dict[str, int]:
        if set(counts) != {"rows", "ok", "failed"}:
            raise ValueError("rows, ok and failed are counted")
        return counts


def claim_sequence(output: Store, run_id: str, above: int) -> int:
    """The sequence number of a new run: higher than `above` and than any that was claimed before, on any machine.

    Each is an object that is created once. A number whose run was never created stays unused.
    """
    sequence = max(above, *claims(output), 0) + 1
    while not output.create(f"{SEQUENCES}/{sequence:08d}", run_id.encode()):
        sequence += 1
    return sequence


def release_sequence(output: Store, run: RunInfo) -> None:
    """Give the sequence number of a run back that was never created; one that cannot be deleted stays unused."""
    with suppress(StorageError):
        output.delete(f"{SEQUENCES}/{run.sequence:08d}")


def claims(output: Store) -> dict[int, str]:
    """The claimed sequence numbers, highest first, and the object of each, which contains the run id."""
    names = {info.key.rpartition("/")[2]: info.key for info in output.list(SEQUENCES)}
    return dict(sorted(((int(name), key) for name, key in names.items() if name.isdecimal()), reverse=True))


def write_run_record(output: Store, record: RunRecord) -> None:
    """Write run.json: the last file of a run. A held run that is released later gets a new one."""
    output.put(f"{record.run.folder}run.json", record.model_dump_json(indent=2).encode())


def read_run_record(output: Store, run: RunInfo) -> RunRecord | None:
    """How a run ended, or None if it has not; RunFailed if its run.json is invalid."""
    return read_record_of(output, run.run_id)


def read_record_of(output: Store, run_id: str) -> RunRecord | None:
    """`read_run_record` where no more than the run's id is known."""
    key = f"runs/{run_id}/run.json"
    return None if output.head(key) is None else _read_record(output, key)


def _read_record(output: Store, key: str) -> RunRecord:
    try:
        return RunRecord.model_validate_json(output.get(key)[0])
    except ValidationError as error:
        raise PermanentFailure(
            f"{output.uri_of(key)} is not a record of a run; move it away and start the run again"
        ) from error


def read_records(output: Store) -> list[RunRecord]:
    """The records of all finished runs, newest first."""
    return _newest_first(_read_record(output, key) for key in _record_keys(output))


def find_record(output: Store, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
    """The most recently created finished run that is `wanted`.

    Claims of sequence numbers give the order, so run.json is read only for the newest runs, until one is `wanted`.
    """
    finished = _record_keys(output)
    for sequence, claim in claims(output).items():
        key = f"runs/{output.get(claim)[0].decode()}/run.json"
        if key not in finished:
            continue
        record = _read_record(output, key)
        if record.run.sequence == sequence:  # otherwise another claim of the same run counts
            finished.remove(key)
            if wanted(record):
                return record
    unclaimed = _newest_first(_read_record(output, key) for key in finished)  # from before sequences were introduced
    return next(filter(wanted, unclaimed), None)


def _record_keys(output: Store) -> set[str]:
    return {info.key for info in output.list("runs") if _RECORD.fullmatch(info.key)}


def _newest_first(records: Iterable[RunRecord]) -> list[RunRecord]:
    return sorted(records, key=lambda record: record.run.mark, reverse=True)
