"""What one process does of a run: engine and decoders started, shards answered and committed, the time measured."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from enrich.answers.postprocess import Prediction
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.base import EngineClock
from enrich.engines.predictor import Answerer, Image
from enrich.models.phi3_vision.checkpoint import load_processor
from enrich.output.history import commit_shard
from enrich.output.manifest import fetch_answers, items, known_answers
from enrich.output.product_ids import product_id
from enrich.output.schema import Row
from enrich.photos.fetch import Fetched, cores, fetcher
from enrich.photos.workers import choose_workers, describe_workers
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.run.bottleneck import Measured, add
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.parity_gate import start_verified_engine
from enrich.pipeline.run.records import write_measured
from enrich.pipeline.run.state import Run
from enrich.storage.scratch import scratch
from enrich.vocabulary import Alternative, ManifestItem

logger = logging.getLogger(__name__)

_NO_PAGE = np.empty((0, 0, 3), np.uint8)
TOLD = 20  # failed photos of a shard that are logged one by one; the rows name them all


@dataclass
class Session:
    """What a process keeps while it works on a run: the engine, the decoders, and what it measured."""

    run: Run
    engine_name: str
    answerer: Answerer
    fetch: Callable[[Iterable[ManifestItem]], Iterator[Fetched]]
    clock: EngineClock  # the engine's
    id: str
    measured: Measured | None = None  # over the shards committed
    answers: Path | None = None  # that photos keep if only their etag changed


@contextmanager
def open_session(
    run: Run, progress: Progress = silent, announce: Callable[[str], object] = lambda line: None
) -> Iterator[Session]:
    """Start the engine and the decoding processes for `run`; stopped on the way out.

    Raises:
        ParityFailed: see `start_verified_engine`.
    """
    with ExitStack() as stack:
        announce(describe_workers(choose_workers(run.settings, cores()), cores()))
        fetch = stack.enter_context(fetcher(run.images, run.settings, run.adapter.preparation))
        engine = start_verified_engine(run, fetch, progress, announce)
        stack.callback(engine.close)
        tokens = AnswerTokens(load_processor(run.adapter.path).tokenizer, run.adapter.prompt.categories)
        answerer = Answerer(engine, tokens, run.adapter.calibration, run.settings.review)
        answers = fetch_answers(run.output, run.info, stack.enter_context(scratch()))
        yield Session(run, engine.name, answerer, fetch, engine.clock, uuid4().hex, answers=answers)


class _Watch:
    """The clocks of a stretch of time, from one committed shard to the next: sums of seconds by stage."""

    def __init__(self, session: Session) -> None:
        self._clock, self._before, self._start = session.clock, replace(session.clock), time.monotonic()
        self.download = self.decode = self.queue = self.waited = 0.0

    def seen(self, fetched: Fetched, asked_at: float) -> None:
        """Record a photo that the engine requested at `asked_at`."""
        now = time.monotonic()
        self.waited += now - asked_at
        self.download += fetched.download_seconds
        self.decode += fetched.decode_seconds
        self.queue += now - fetched.ready_at

    def measured(self, run: Run, photos: int, answered_at: float) -> Measured:
        """Called when a shard of so many `photos` is committed; `answered_at` is when its last one was answered."""
        now, clock, before = time.monotonic(), self._clock, self._before
        return Measured(
            photos=photos,
            wall=now - self._start,
            workers=choose_workers(run.settings, cores()),
            cores=cores(),
            download=self.download,
            decode=self.decode,
            queue=self.queue,
            render=clock.render - before.render,
            engine=clock.busy - before.busy,
            write=now - answered_at,
            waited=self.waited,
            starved=clock.starved - before.starved,
        )


@dataclass
class _Shard:
    """A shard that is begun and not committed."""

    number: int
    keys: frozenset[str]
    begun: float
    known: Mapping[str, Mapping[str, Any]]  # answers that stay if the bytes are the same, by key
    rows: list[Row] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return len(self.rows) == len(self.keys)


def answer_shards(session: Session, shards: Iterable[int], deadline: Deadline) -> Iterator[int]:
    """Fetch, answer and commit shards; yields how many of their photos are done.

    One stream goes through all of them, so that the engine does not run dry where one ends; each is committed once its
    last photo is answered. What was measured is written with each, so that a session that is killed leaves all but the
    last stretch.
    """
    run, watch, done, asked_at = session.run, _Watch(session), 0, 0.0
    begun: dict[int, _Shard] = {}
    pending: dict[str, Fetched] = {}

    def wanted() -> Iterator[ManifestItem]:
        nonlocal asked_at
        for number in shards:
            start = time.monotonic()
            if begun:  # none is committed yet: it takes at least as long as it has by now
                deadline.last = max(deadline.last, start - min(shard.begun for shard in begun.values()))
            if deadline.passed():
                return
            found = items(run.manifest, number)
            known = known_answers(session.answers, found) if session.answers else {}
            begun[number] = _Shard(number, frozenset(item.key for item in found), start, known)
            asked_at += time.monotonic() - start  # no photo is to blame for it
            yield from found

    def decoded() -> Iterator[Image]:
        nonlocal done, asked_at
        photos = session.fetch(wanted())
        while True:
            asked_at = time.monotonic()
            fetched = next(photos, None)
            if fetched is None:
                return
            watch.seen(fetched, asked_at)
            shard = begun[fetched.item.shard]
            known = shard.known.get(fetched.item.key)
            same = known if known and known["image_sha256"] == fetched.sha256 else None
            if same or fetched.photo is None:
                shard.rows.append(_kept(session, fetched, same) if same else _row(session, fetched))
                done += 1
                commit_whole()  # all of its photos may be such
                continue
            if fetched.photo.unfinished:
                logger.warning(
                    "run=%s shard=%d key=%s note=%s",
                    run.info.run_id, fetched.item.shard, json.dumps(fetched.item.key),
                    json.dumps("the file lacks its end, and none of its pixels; answered"),
                )  # fmt: skip
            page, photo = fetched.photo.page, replace(fetched.photo, page=_NO_PAGE)  # memory must not keep the pixels
            pending[fetched.item.key] = replace(fetched, photo=photo)
            yield Image(fetched.item.key, fetched.sha256 or "", page)

    def commit_whole() -> None:
        nonlocal watch
        for shard in [shard for shard in begun.values() if shard.whole]:
            _commit(session, begun.pop(shard.number), watch)
            deadline.last, watch = time.monotonic() - shard.begun, _Watch(session)

    for key, outcome in session.answerer.answer(decoded()):
        fetched = pending.pop(key)
        begun[fetched.item.shard].rows.append(_row(session, fetched, outcome))
        done += 1
        commit_whole()
        yield done
    commit_whole()
    yield done


def _commit(session: Session, shard: _Shard, watch: _Watch) -> None:
    run, answered_at = session.run, time.monotonic()
    commit_shard(run.output, run.info, shard.number, shard.rows, shard.keys)
    measured = watch.measured(run, len(shard.rows), answered_at)
    _log(run, shard.number, shard.rows, time.monotonic() - shard.begun)
    session.measured = add(session.measured, measured) if session.measured else measured
    write_measured(run.output, run.info, session.id, session.measured)


def _log(run: Run, shard: int, rows: Sequence[Row], seconds: float) -> None:
    """Lines of key=value, to be searched by run, shard and key."""
    failed = [row for row in rows if row.status != "ok"]
    for row in failed[:TOLD]:
        logger.warning(
            "run=%s shard=%d key=%s error_kind=%s attempt=%d",
            run.info.run_id, shard, json.dumps(row.image_key), row.error_kind, row.attempt,
        )  # fmt: skip
    logger.info(
        "run=%s shard=%d photos=%d failed=%d seconds=%.1f", run.info.run_id, shard, len(rows), len(failed), seconds
    )


def _kept(session: Session, fetched: Fetched, known: Mapping[str, Any]) -> Row:
    """The row of an image whose bytes, and so whose answer, are those of before under another etag."""
    run, item = session.run, fetched.item
    kept = {
        **known,
        "product_id": product_id(run.settings.product_id_pattern, item.key),
        "image_uri": run.images.uri_of(item.key),
        "image_etag": fetched.etag,
        "category_alternatives": tuple(Alternative(**other) for other in known["category_alternatives"]),
        "review_reasons": tuple(known["review_reasons"]),
        "attempt": item.attempt,
        "run_id": run.info.run_id,
        "shard": item.shard,
        "prompt_tokens": None,  # the model was not asked
        "output_tokens": None,
        "processed_at": datetime.now(UTC),
    }
    return Row(**kept)


def _row(session: Session, fetched: Fetched, outcome: Prediction | None = None) -> Row:
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
