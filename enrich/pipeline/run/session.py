"""One process's part of a run: start engine and decoders, then answer and commit shards."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.base import EngineClock
from enrich.engines.predictor import Predictor, Shown, show
from enrich.models.checkpoint import load_processor
from enrich.output.history import commit_shard
from enrich.output.manifest import fetch_answers, items, known_answers
from enrich.output.schema import Row
from enrich.phases import Start
from enrich.photos.fetch import Fetched, cores, fetcher
from enrich.photos.workers import choose_workers, describe_workers
from enrich.pipeline.progress import OnMessage, Progress, silent, unheard
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.measured import Measured, StageTimer, add
from enrich.pipeline.run.parity_gate import start_verified_engine
from enrich.pipeline.run.records import write_measured
from enrich.pipeline.run.rows import keeps_answer, known_row, new_row
from enrich.pipeline.run.state import Run
from enrich.storage.scratch import scratch
from enrich.vocabulary import ManifestItem

logger = logging.getLogger(__name__)

_NO_PAGE = np.empty((0, 0, 3), np.uint8)
LOGGED_FAILURES = 20  # of a shard, one by one; the rows have them all


@dataclass
class Session:
    """The state of a process during a run: the engine, the decoders, and measurements."""

    run: Run
    engine_name: str
    predictor: Predictor
    fetch: Callable[[Iterable[ManifestItem | None]], Iterator[Fetched]]
    clock: EngineClock  # the engine's
    id: str
    measured: Measured | None = None  # over the shards committed
    known_answers: Path | None = None  # of products that keep their answer if only etags changed
    start: Start | None = None  # until the first answer
    committed: list[int] = field(default_factory=list)  # shards, in the order of their commits

    def answer(self, shards: Iterable[int | None], deadline: Deadline) -> Iterator[int]:
        """Fetch, answer and commit shards; yields how many of their products are done.

        Starts none once the deadline has passed. After an error it may be called again with the missing shards.

        Args:
            shards: asked for the next one when the last product of those before has been asked for. None: there is none
                at present; they are asked again with each photo, and given up when no photo is left to be fetched.
        """
        return _ShardStream(self, shards, deadline).answer()


@contextmanager
def open_session(run: Run, progress: Progress = silent, on_message: OnMessage = unheard) -> Iterator[Session]:
    """Start the engine and the decoding processes for `run`; they are stopped on exit.

    Raises:
        ParityFailed: see `start_verified_engine`.
    """
    with ExitStack() as stack:
        how = run.adapter.preparation
        on_message(describe_workers(choose_workers(run.settings, cores()), cores()))
        needed = run.settings.photos_answered or how.photos_per_product
        first = run.adapter.calibration.first_squares
        fetch = stack.enter_context(fetcher(run.images, run.settings, how, needed=needed, first=first))
        engine = start_verified_engine(run, fetch, progress, on_message)
        stack.callback(engine.close)
        processor = load_processor(run.adapter.path)
        tokens = AnswerTokens(processor.tokenizer, run.adapter.prompt, processor.stop_tokens[0])
        predictor = Predictor(engine, tokens, run.adapter.calibration, run.settings.review)
        known = fetch_answers(run.output, run.info, stack.enter_context(scratch()))
        yield Session(run, engine.name, predictor, fetch, engine.clock, uuid4().hex, known_answers=known)


@dataclass
class _Shard:
    """A shard that was started and is not committed yet."""

    number: int
    ids: frozenset[str]
    started: float  # time.monotonic()
    known: Mapping[str, Mapping[str, Any]]  # answers that stay if the bytes are the same, by product_id
    rows: list[Row] = field(default_factory=list)


class _ShardStream:
    """Shards as one stream of products through the engine, so that it does not run dry between two of them.

    Each shard is committed once its last product has a row. Measurements are written with each, so that a session that
    is killed loses only those since its last commit.
    """

    def __init__(self, session: Session, shards: Iterable[int | None], deadline: Deadline) -> None:
        self._session, self._run = session, session.run
        self._shards, self._deadline = shards, deadline
        self._timer = StageTimer(session.clock)
        self._most = self._run.adapter.preparation.photos_per_product  # photos of a prompt
        self._started: dict[int, _Shard] = {}
        self._pending: dict[str, Fetched] = {}  # products in the engine, without their pixels
        self._done = 0

    def answer(self) -> Iterator[int]:
        """Do all of it; yields how many products are done."""
        ended = self._run.phases.begin("first answer")
        for key, outcome in self._session.predictor.answer(self._photos()):
            if self._session.start is None:
                ended()
                self._session.start = self._run.phases.end()
            fetched = self._pending.pop(key)
            self._add(new_row(self._run, self._session.engine_name, fetched, outcome))
            yield self._done
        yield self._done

    def _items(self) -> Iterator[ManifestItem | None]:
        """The products of every shard that is started before the deadline."""
        for number in self._shards:
            if number is None:
                yield None
                continue
            start = time.monotonic()
            if self._started:  # none of them is committed yet: it takes at least as long as it has by now
                oldest = min(shard.started for shard in self._started.values())
                self._deadline.last = max(self._deadline.last, start - oldest)
            if self._deadline.passed():
                return
            with self._timer.not_waiting():
                found, answers = items(self._run.manifest, number), self._session.known_answers
                known = known_answers(answers, found) if answers else {}
                self._started[number] = _Shard(number, frozenset(item.product_id for item in found), start, known)
            yield from found

    def _photos(self) -> Iterator[Shown]:
        """What the engine has to answer. Products that fail or keep their answer get their rows here."""
        for fetched in self._timer.photos(self._session.fetch(self._items())):
            item, shown = fetched.item, fetched.shown
            known = self._started[item.shard].known.get(item.product_id)
            if known and keeps_answer(fetched, known):
                self._add(known_row(self._run, fetched, known))
            elif not shown:
                self._add(new_row(self._run, self._session.engine_name, fetched))
            else:
                self._tell_unfinished(fetched)
                self._pending[item.product_id] = _without_pixels(fetched)
                yield show(item.product_id, fetched.good, self._most)

    def _tell_unfinished(self, fetched: Fetched) -> None:
        for one in fetched.shown:
            if one.photo and one.photo.unfinished:
                line = 'run=%s shard=%d key=%s note="the end of the file is missing, but no pixel; answered"'
                logger.warning(line, self._run.info.run_id, fetched.item.shard, json.dumps(one.listed.key))

    def _add(self, row: Row) -> None:
        shard = self._started[row.shard]
        shard.rows.append(row)
        self._done += 1
        if len(shard.rows) == len(shard.ids):
            self._commit(self._started.pop(shard.number))

    def _commit(self, shard: _Shard) -> None:
        session, run, answered_at = self._session, self._run, time.monotonic()
        commit_shard(run.output, run.info, shard.number, shard.rows, shard.ids)
        session.committed.append(shard.number)
        workers = choose_workers(run.settings, cores())
        measured = self._timer.lap(len(shard.rows), workers, cores(), answered_at)
        _log(run, shard.number, shard.rows, time.monotonic() - shard.started)
        measured = replace(measured, start=session.start)
        session.measured = add(session.measured, measured) if session.measured else measured
        write_measured(run.output, run.info, session.id, session.measured)
        self._deadline.last = time.monotonic() - shard.started


def _without_pixels(fetched: Fetched) -> Fetched:
    photos = (replace(one, photo=one.photo and replace(one.photo, page=_NO_PAGE, first=None)) for one in fetched.photos)
    return replace(fetched, photos=tuple(photos))


def _log(run: Run, shard: int, rows: Sequence[Row], seconds: float) -> None:
    """Lines of key=value, to be searched by run, shard and product."""
    failed = [row for row in rows if row.status != "ok"]
    for row in failed[:LOGGED_FAILURES]:
        logger.warning(
            "run=%s shard=%d product_id=%s error_kind=%s attempt=%d",
            run.info.run_id, shard, json.dumps(row.product_id), row.error_kind, row.attempt,
        )  # fmt: skip
    logger.info(
        "run=%s shard=%d products=%d failed=%d seconds=%.1f", run.info.run_id, shard, len(rows), len(failed), seconds
    )
