"""The Ray runner: distributes shards over the workers of a Ray cluster, each with an engine that outlives its shards.

Only shard numbers, counts of products and log lines pass through Ray. A worker opens the run from the output, reads
photos and commits rows itself, by the rules of every run: a shard that is done twice, because its worker was lost or
only seemed lost, is committed once.

A worker gets a shard when it can start it: when it is idle, or once it has read the last photo of its previous shard,
    so
that its engine does not run dry in between. No worker holds shards that others could start.
"""

import logging
import re
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from enrich.errors import EnrichError, RunFailed, UsageError
from enrich.pipeline.progress import OnMessage, unheard
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.ray_cluster import connected, find_room, words_for
from enrich.pipeline.run.ray_worker import News, Started, Worker
from enrich.pipeline.run.state import Run

logger = logging.getLogger(__name__)

START_SECONDS = 1800.0  # without any worker: a node that must be added and an image of some GB take minutes
STOP_SECONDS = 10.0  # for workers without a shard to remove what they keep on their nodes
NODE_SECONDS = 90.0  # in which Ray finds out that a node is gone: by default it asks five times, 3 to 13 s apart
MOST_DEATHS = 2  # of workers over one shard, or while they start, on nodes that live: then it is not a coincidence
STARTING = -1  # instead of a shard, among deaths


@contextmanager
def open_workers(run: Run, on_message: OnMessage = unheard) -> Iterator["Workers"]:
    """Workers for what `run` has to do, one of them at least ready to answer; stopped on the way out.

    Raises:
        UsageError: there is no such cluster, it has no room, or a worker cannot open the run. RunFailed: none started.
    """
    with connected(run.settings.ray):
        needs, room = find_room(run.settings, ray.nodes())
        count = min(run.settings.ray.workers or room, len(run.missing_shards()))
        if not count:
            raise UsageError(
                f"runner ray: no node of the cluster has room for a worker, which takes {words_for(needs)}; add a "
                "node, or set ray.workers if nodes are added on demand"
            )
        on_message(f"{count} workers on Ray, each with {words_for(needs)}")
        workers = Workers(run, count, needs, on_message)
        try:
            workers.await_first()
            yield workers
        finally:
            workers.close()


@dataclass
class _Hand:
    """A worker, and the shards it has."""

    actor: Any
    gone: frozenset[str]  # nodes that were gone when it was asked for
    node: str = ""  # its id, once it has started
    address: str = "?"  # of the node
    shards: dict[int, float] = field(default_factory=dict)  # not committed, and when it got them, time.monotonic()
    products: int = 0  # of them that are done

    @property
    def starting(self) -> bool:
        return not self.node

    def went_with_its_node(self, gone: frozenset[str]) -> bool:
        """Whether the worker ended because its node did, going by the nodes that are gone by now.

        On which node it was to start is not known: on the one that went meanwhile, if one did.
        """
        return self.node in gone if self.node else gone > self.gone


class Workers:
    """The workers of a run, made by `open_workers`. One that dies is replaced, and its shards handed out again."""

    def __init__(self, run: Run, count: int, needs: dict[str, int], on_message: OnMessage) -> None:
        self.engine_name = ""
        self._run, self._count, self._needs = run, count, needs
        self._on_message, self._messages = on_message, set[str]()
        self._request = replace(
            run.request, images=run.images.uri, output=run.output.uri, run_id=run.info.run_id
        )  # as other nodes can open it
        self._busy: dict[Any, _Hand] = {}  # starting or answering, by what Ray gives for what is to come
        self._free: list[_Hand] = []  # that could start a shard; some still have photos of another to answer
        self._deaths: defaultdict[int, list[_Hand]] = defaultdict(list)  # by shard
        self._unjudged: dict[int, tuple[str, float]] = {}  # by shard: why it lost a worker, and when to judge at last
        self._heard_at = time.monotonic()

    def await_first(self) -> None:
        """Start the workers and wait until one can answer. Raises as `open_workers`."""
        self._fill_up()
        while not self._free:
            for ref in self._ready():
                self._hear(ref)
            self._judge()

    def answer(self, shards: Sequence[int], deadline: Deadline) -> Iterator[int]:
        """See `Session.answer`. After an error no shard is handed out; it is raised when those under way have ended."""
        queue, done = deque(shards), 0
        failed: EnrichError | None = None
        self._unjudged.clear()  # left by a call that ended early; its shards are among these
        for ref in [ref for ref, hand in self._busy.items() if not hand.starting]:
            ray.kill(self._busy.pop(ref).actor)  # a call that ran out of time left it hanging there
        self._fill_up()
        self._hand_out(queue, deadline)
        while self._has_work(queue, deadline):
            try:
                for ref in self._ready():
                    committed = self._hear(ref)
                    done += self._run.manifest.rows_in(list(committed))
                    deadline.last = max(committed.values(), default=deadline.last)
                queue.extendleft(reversed(self._judge()))
            except EnrichError as error:
                failed = failed or error
            if failed:
                queue.clear()
                self._unjudged.clear()
            self._hand_out(queue, deadline)
            yield done + sum(hand.products for hand in self._busy.values())
        if failed:
            raise failed

    def close(self) -> None:
        """Stop the workers, at once where they have a shard; it is not committed then."""
        with suppress(RayError):
            stopping = [hand.actor.stop.remote() for hand in self._free]
            if stopping:
                ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        for hand in [*self._free, *self._busy.values()]:
            ray.kill(hand.actor)

    def _has_work(self, queue: Sequence[int], deadline: Deadline) -> bool:
        """Whether workers have shards, or there are some that they may start or that are soon handed out again."""
        waiting = queue or self._unjudged.keys() - {STARTING}
        return bool(waiting and not deadline.passed()) or not all(hand.starting for hand in self._busy.values())

    def _fill_up(self) -> None:
        while len(self._busy) + len(self._free) < self._count:
            actor: Any = ray.remote(Worker).options(max_restarts=0, **self._needs).remote()
            self._busy[actor.start.remote(self._request, self._needs["num_cpus"])] = _Hand(actor, _gone_nodes())

    def _hand_out(self, queue: deque[int], deadline: Deadline) -> None:
        """Hand out shards to free workers, the idle ones first, each with one shard of the queue if it may have it."""
        free, self._free = sorted(self._free, key=lambda hand: len(hand.shards)), []
        for hand in free:
            now = time.monotonic()
            if hand.shards:  # not committed yet: they take at least as long as they have by now
                deadline.last = max(deadline.last, now - min(hand.shards.values()))
            given = [queue.popleft()] if self._may_start(hand, queue, deadline) else []
            hand.shards |= dict.fromkeys(given, now)
            if hand.shards:
                more = self._may_start(hand, queue, deadline)
                self._busy[hand.actor.answer.options(num_returns="streaming").remote(given, more)] = hand
            else:
                self._free.append(hand)

    def _may_start(self, hand: _Hand, queue: Sequence[int], deadline: Deadline) -> bool:
        """Whether a worker may start the queue's first shard.

        Not at the same time as others, after a worker died over it or over one of those: the next death then tells
            which one it was.
        """
        if not queue or deadline.passed():
            return False
        return not hand.shards or self._deaths.keys().isdisjoint([queue[0], *hand.shards])

    def _ready(self) -> list[Any]:
        """References of workers that have news, within a second. RunFailed: no worker started for START_SECONDS."""
        silent = time.monotonic() - self._heard_at
        if silent > START_SECONDS and not self._free and all(hand.starting for hand in self._busy.values()):
            raise RunFailed(
                f"run {self._run.info.run_id}: no worker has started on Ray for {silent / 60:.0f} min, each "
                f"takes {words_for(self._needs)}; see `ray status`, and restart it with its run id"
            )
        if not self._busy:  # all wait for a shard that is not judged yet
            time.sleep(1.0)
            return []
        try:
            ready, _ = ray.wait(list(self._busy), timeout=1.0)
        except SystemError as error:  # Ray's for what the handler of a signal raised: Prefect's does to cancel a run
            raise (error.__cause__ or error) from None
        return list(ready)

    def _hear(self, ref: Any) -> dict[int, float]:
        """Process a worker's message. Returns the shards that it committed, and how many seconds each took. Raises what
        the worker raised."""
        hand = self._busy[ref]
        self._heard_at = time.monotonic()
        try:
            if not hand.starting:
                return self._take(hand, ray.get(next(ref)))
            self._welcome(hand, ray.get(ref))
        except StopIteration:
            pass
        except RayTaskError as error:
            del self._busy[ref]
            if hand.starting:
                ray.kill(hand.actor)
            else:
                hand.shards, hand.products = {}, 0
                self._free.append(hand)
            if isinstance(error.cause, EnrichError):
                raise error.cause from None
            last = str(error).strip().splitlines()[-1]  # an error that could not be sent as it is
            raise RunFailed(f"run {self._run.info.run_id}: node {hand.address}: {last}; see `ray status`") from None
        except RayError as error:
            del self._busy[ref]
            return self._bury(hand, error)
        del self._busy[ref]
        self._free.append(hand)
        return {}

    def _take(self, hand: _Hand, news: News) -> dict[int, float]:
        for level, line in news.lines:
            logger.log(level, "%s node=%s", line, hand.address)
        hand.products = news.products
        now = time.monotonic()
        return {shard: now - hand.shards.pop(shard) for shard in news.committed}

    def _welcome(self, hand: _Hand, started: Started) -> None:
        self.engine_name, hand.node, hand.address = started.engine, started.node, started.address
        for line in started.lines:
            if line not in self._messages:  # all say the same where their nodes are alike
                self._messages.add(line)
                self._on_message(line)

    def _bury(self, hand: _Hand, error: RayError) -> dict[int, float]:
        """Replace a worker that is gone or out of reach. Returns as `_hear`; its other shards wait for `_judge`."""
        with suppress(RayError):
            ray.kill(hand.actor)
        why, now, committed = f"node {hand.address}: {_reason(error)}", time.monotonic(), dict[int, float]()
        # The node of one that is only out of reach may be gone without Ray's knowing it yet.
        judged_at = now + (NODE_SECONDS if isinstance(error, ActorUnavailableError) else 0.0)
        for shard, got in ({STARTING: now} if hand.starting else hand.shards).items():
            what = "starting" if shard == STARTING else f"shard={shard}"
            logger.warning("run=%s %s lost its worker: %s", self._run.info.run_id, what, why)
            if shard != STARTING and self._run.is_committed(shard):
                committed[shard] = now - got
            else:
                self._deaths[shard].append(replace(hand, actor=None))
                self._unjudged[shard] = why, judged_at
        self._fill_up()
        return committed

    def _judge(self) -> list[int]:
        """The shards that lost a worker and may be handed out again.

        One that has lost MOST_DEATHS is kept back for NODE_SECONDS at most, in which a node may be found to be gone.

        Raises:
            RunFailed: workers died over the same shard, or while they started, on nodes that live.
        """
        if not self._unjudged:
            return []
        gone, cleared = _gone_nodes(), list[int]()
        for shard, (why, until) in list(self._unjudged.items()):
            # Earlier deaths are judged again, too: their nodes may have been found to be gone since.
            blamed = sum(not death.went_with_its_node(gone) for death in self._deaths[shard]) >= MOST_DEATHS
            if blamed and time.monotonic() < until:
                continue
            del self._unjudged[shard]
            if blamed:
                of = "while it started" if shard == STARTING else f"over shard {shard}"
                raise RunFailed(
                    f"run {self._run.info.run_id}: {MOST_DEATHS} workers died {of}; {why}; give the node "
                    "more memory, or lower in_flight; the same run id continues it"
                )
            cleared.extend([shard] * (shard != STARTING))
        return cleared


def _gone_nodes() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if not node["Alive"])


def _reason(error: RayError) -> str:
    """One line on why a worker ended: how its process ended, or the error that kept it from starting."""
    text = " ".join(str(error).split())
    found = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    return found[1] if found else str(error).strip().splitlines()[-1]
