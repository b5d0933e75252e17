"""One pass over a bucket: plan, fetch, answer and commit shard by shard, publish, report."""

import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from enrich.errors import RunFailed, UsageError
from enrich.fetch import Fetched, fetcher
from enrich.gate import judge_run, run_stats
from enrich.infer.adapter import Adapter, check_base, read_adapter
from enrich.infer.answer import Answerer, Image
from enrich.infer.engine import choose_engine, start_engine
from enrich.infer.evidence import AnswerTokens
from enrich.infer.judge import Outcome
from enrich.infer.transformers_engine import find_base
from enrich.manifest import (
    Manifest,
    check_run_id,
    check_same_run,
    create_manifest,
    items,
    new_run_id,
    plan,
    read_manifest,
    source_table,
)
from enrich.phi3_vision.checkpoint import load_processor
from enrich.pipeline.catalogs import local_tree
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.records import write_report
from enrich.publish import publish, read_products, read_run_record, read_shards, write_run_record
from enrich.schema import SCHEMA_VERSION, ManifestItem, Row, RunInfo, RunRecord
from enrich.settings import RunSettings
from enrich.storage import ObjectInfo, Store, open_store
from enrich.write import commit_shard, committed_shards

_NO_PAGE = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Run:
    """A run that was begun: where it reads and writes, with what, and what it has to do."""

    images: Store
    output: Store
    adapter: Adapter
    settings: RunSettings
    manifest: Manifest
    started_at: datetime

    @property
    def info(self) -> RunInfo:
        return self.manifest.run

    def missing_shards(self) -> list[int]:
        """Shards not committed yet, ascending: all of them at first, the rest after a restart."""
        done = committed_shards(self.output, self.info) if self.manifest.shards else set()
        return [shard for shard in self.manifest.shards if shard not in done]


@dataclass
class Session:
    """What a process keeps while it works on a run: the engine, the decoders, and its clocks."""

    run: Run
    engine_name: str
    answerer: Answerer
    fetch: Callable[[Iterable[ManifestItem]], Iterator[Fetched]]
    # Summed over the threads and processes that share a stage; infer is this process's wall time.
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("download", "decode", "wait for photos", "infer", "write"), 0.0)
    )


def run_enrichment(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> RunRecord:
    """One whole run in this process: plan, every missing shard, publish, report.

    Raises:
        UsageError: nothing was started. RunFailed, StorageError: it broke off; the same run id goes on.
    """
    with open_run(images, adapter, output, settings, run_id=run_id, limit=limit, progress=progress) as run:
        shards = run.missing_shards()
        seconds: dict[str, float] = {}
        if shards:
            with open_session(run) as session:
                done, total = run.manifest.table.height - rows_in(run.manifest, shards), run.manifest.table.height
                for shard in shards:
                    for answered in answer_shard(session, shard):
                        progress("photos", done + answered, total)
                    done += rows_in(run.manifest, [shard])
                seconds = session.seconds
        return finish_run(run, seconds)


@contextmanager
def open_run(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> Iterator[Run]:
    """Begin a run, or take up the one that `run_id` names. Yields it while the adapter's files are at hand."""
    started_at = datetime.now(UTC)
    if run_id is not None:
        check_run_id(run_id)
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: a run takes at least 1 photo; leave the limit out to take all")
    choose_engine(settings.engine, settings.device)
    source = open_store(images, must_exist=True)
    _refuse_overlap(source.uri, output)
    with ExitStack() as stack:
        loaded = read_adapter(stack.enter_context(local_tree(adapter)))
        check_base(loaded, find_base(loaded.base, loaded.revision))
        target = open_store(output, create=True)
        target.check_conditional_writes()
        info = RunInfo(
            run_id=run_id or new_run_id(started_at),
            created_at=started_at,
            images_uri=source.uri,
            fingerprint=fingerprint(loaded),
            model=loaded.base,
            adapter=loaded.id,
            prompt_version=loaded.prompt.version,
            shard_size=settings.shard_size,
        )
        begun = read_manifest(target, info.run_id) if run_id else None
        if begun is None:
            begun = _plan(source, target, info, settings, limit, progress)
        check_same_run(begun, info)
        yield Run(source, target, loaded, settings, begun, started_at)


def _plan(
    source: Store, target: Store, info: RunInfo, settings: RunSettings, limit: int | None, progress: Progress
) -> Manifest:
    def watched() -> Iterator[ObjectInfo]:
        for count, found in enumerate(source.list(), start=1):
            if count % 1000 == 0:
                progress("listing", count, 0)
            yield found

    listing = source_table(watched())
    if not listing.height:
        raise UsageError(f"images {source.uri}: no photos there; check the bucket and the prefix")
    products = read_products(target)
    table = plan(listing, products.table, products.runs, info.fingerprint, settings, limit)
    return create_manifest(target, info, listing, table)


def fingerprint(adapter: Adapter) -> str:
    """Hash of what would change an answer: model, revision, adapter, prompt, crops, schema version; 16 hex digits."""
    parts = [
        adapter.base, adapter.revision, adapter.id, adapter.prompt.model_dump(mode="json"),
        asdict(adapter.preparation), SCHEMA_VERSION,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def open_session(run: Run) -> Iterator[Session]:
    """Start the engine and the decoding processes for `run`; stopped on the way out."""
    with ExitStack() as stack:
        engine = start_engine(run.adapter, run.settings)
        stack.callback(engine.close)
        tokens = AnswerTokens(load_processor(run.adapter.path).tokenizer, run.adapter.prompt.categories)
        answerer = Answerer(engine, tokens, run.adapter.calibration, run.settings.review)
        fetch = stack.enter_context(fetcher(run.images, run.settings, run.adapter.preparation))
        yield Session(run, engine.name, answerer, fetch)


def answer_shard(session: Session, shard: int) -> Iterator[int]:
    """Fetch, answer and commit one shard; yields how many of its photos are done."""
    run, seconds = session.run, session.seconds
    wanted = items(run.manifest, shard)
    pending: dict[str, Fetched] = {}
    rows: list[Row] = []

    def decoded() -> Iterator[Image]:
        photos = session.fetch(wanted)
        while True:
            start = time.perf_counter()
            fetched = next(photos, None)
            seconds["wait for photos"] += time.perf_counter() - start
            if fetched is None:
                return
            seconds["download"] += fetched.download_seconds
            seconds["decode"] += fetched.decode_seconds
            if fetched.photo is None:
                rows.append(_row(session, fetched))
                continue
            page, photo = fetched.photo.page, replace(fetched.photo, page=_NO_PAGE)  # memory must not keep the pixels
            pending[fetched.item.key] = replace(fetched, photo=photo)
            yield Image(fetched.item.key, fetched.sha256 or "", page)

    start, waited = time.perf_counter(), seconds["wait for photos"]
    for key, outcome in session.answerer.answer(decoded()):
        rows.append(_row(session, pending.pop(key), outcome))
        yield len(rows)
    seconds["infer"] += time.perf_counter() - start - (seconds["wait for photos"] - waited)
    start = time.perf_counter()
    commit_shard(run.output, run.info, shard, rows, {item.key for item in wanted})
    seconds["write"] += time.perf_counter() - start
    yield len(rows)


def _row(session: Session, fetched: Fetched, outcome: Outcome | None = None) -> Row:
    """The row of one image: its answer, or why there is none."""
    run, item, photo = session.run, fetched.item, fetched.photo
    answer = outcome.answer if outcome else None
    failure = outcome or fetched
    price = None if answer is None or answer.price is None else float(answer.price)
    return Row(
        product_id=product_id(run.settings.product_id_pattern, item.key),
        image_key=item.key,
        image_uri=run.images.uri_of(item.key),
        image_etag=fetched.etag,
        image_sha256=fetched.sha256,
        image_width=photo.width if photo else None,
        image_height=photo.height if photo else None,
        status="ok" if answer else "failed",
        title=answer.title if answer else None,
        category=answer.category if answer else None,
        category_confidence=outcome.confidence if outcome else None,
        category_alternatives=outcome.alternatives if outcome else (),
        price=price,
        price_low=outcome.price_low if outcome else None,
        price_high=outcome.price_high if outcome else None,
        currency=None if price is None else run.adapter.prompt.currency,
        needs_review=bool(outcome and outcome.reasons),
        review_reasons=outcome.reasons if outcome else (),
        error_kind=None if answer else failure.error_kind,
        error_message=None if answer else failure.error_message,
        attempt=item.attempt,
        model=run.info.model,
        adapter=run.info.adapter,
        prompt_version=run.info.prompt_version,
        fingerprint=run.info.fingerprint,
        engine=session.engine_name,
        run_id=run.info.run_id,
        shard=item.shard,
        prompt_tokens=outcome.prompt_tokens if outcome else None,
        output_tokens=outcome.output_tokens if outcome else None,
        processed_at=datetime.now(UTC),
    )


def product_id(pattern: str, key: str) -> str:
    """The product a key belongs to: the pattern's group product_id, or the whole key where it does not match."""
    match = re.fullmatch(pattern, key)
    return match["product_id"] if match else key


def finish_run(run: Run, stage_seconds: dict[str, float]) -> RunRecord:
    """Judge, publish unless held back, report, and write run.json last. Every shard must be committed.

    A run that was finished before stays as it was: its record is returned.
    """
    standing = read_run_record(run.output, run.info)
    if standing is not None and standing.state != "held":
        return standing
    if missing := run.missing_shards():
        raise RunFailed(f"run {run.info.run_id}: {len(missing)} shards are missing; start it again with its run id")
    rows = read_shards(run.output, run.info)
    stats = run_stats(rows)
    findings = judge_run(stats, read_products(run.output).last_stats, run.settings.gate)
    changed = False if findings else publish(run.output, run.info, run.settings.gate).changed
    finished_at = datetime.now(UTC)
    seconds = (finished_at - run.started_at).total_seconds()
    counts = run.manifest.table["reason"].value_counts().sort("reason")
    record = RunRecord(
        run=run.info,
        state="held" if findings else "published" if rows.height or changed else "nothing_to_do",
        counts={"rows": stats.rows, "ok": stats.ok, "failed": stats.failed},
        by_reason=dict(counts.iter_rows()),
        by_error_kind=stats.failed_by_kind,
        findings=findings,
        stats=stats,
        shards=len(run.manifest.shards),
        started_at=run.started_at,
        finished_at=finished_at,
        seconds=seconds,
        images_per_second=rows.height / seconds,
        engine=rows["engine"][0] if rows.height else run.settings.engine,
        host=platform.node(),
        stage_seconds=stage_seconds,
        versions={name: version(name) for name in ("enrich", "torch", "transformers", "peft", "polars")},
    )
    write_report(run.output, run.images, record, rows, run.settings)
    write_run_record(run.output, record)
    return record


def rows_in(manifest: Manifest, shards: Sequence[int]) -> int:
    """Photos in these shards."""
    return manifest.table.filter(pl.col("shard").is_in(list(shards))).height


def _refuse_overlap(images: str, output: str) -> None:
    """An output below the images would be enriched the next night; images below the output could be overwritten."""
    here, there = (f"{uri if '://' in uri else Path(uri).absolute()}/" for uri in (images, output.rstrip("/")))
    if here.startswith(there) or there.startswith(here):
        raise UsageError(f"output {output} and images {images} overlap; keep them apart")
