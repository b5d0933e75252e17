"""The runner ray: shards spread over the workers of a Ray cluster, each with an engine that lives from shard to shard.

Only shard numbers, counts of photos and log lines pass through Ray. A worker opens the run from the output, reads
photos and commits rows itself, by the rules of every run: a shard that is done twice, because its worker was lost or
only seemed lost, is committed once.
"""

import logging
import os
import re
import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from enrich.errors import EnrichError, RunFailed, UsageError
from enrich.pipeline.progress import OnMessage, unheard
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.ray_worker import Started, Worker
from enrich.pipeline.run.state import Run
from enrich.settings.run import RaySettings, RunSettings

logger = logging.getLogger(__name__)

CPUS_BESIDE_GPU = 4  # at least; a worker takes its GPU's share of the node's cores (ray_worker)
START_SECONDS = 1800.0  # without any worker: a node that must be added and an image of some GB take minutes
STOP_SECONDS = 10.0  # for workers without a shard to remove what they keep on their nodes
MOST_DEATHS = 2  # of workers over one shard, or while they start, on nodes that live: then it is not a coincidence
OBJECT_STORE_BYTES = 100 << 20  # of a Ray of our own, which keeps next to nothing there
STARTING = -1  # in the place of a shard


@contextmanager
def open_workers(run: Run, on_message: OnMessage = unheard) -> Iterator["Workers"]:
    """Workers for what `run` has to do, one of them at least ready to answer; stopped on the way out.

    Raises:
        UsageError: there is no such cluster, it has no room, or a worker cannot open the run. RunFailed: none started.
    """
    with _cluster(run.settings.ray):
        needs, room = find_room(run.settings, ray.nodes())
        count = min(run.settings.ray.workers or room, len(run.missing_shards()))
        if not count:
            raise UsageError(
                f"runner ray: no node of the cluster has room for a worker, which takes {_words(needs)}; add a "
                "node, or set ray.workers where nodes are added on demand"
            )
        on_message(f"{count} workers on Ray, each with {_words(needs)}")
        workers = Workers(run, count, needs, on_message)
        try:
            workers.await_first()
            yield workers
        finally:
            workers.close()


def find_room(settings: RunSettings, nodes: Sequence[dict[str, Any]]) -> tuple[dict[str, int], int]:
    """What a worker asks Ray for, and how many of them the `nodes` (of `ray.nodes()`) hold."""
    free = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [node for node in free if node.get("GPU", 0) >= 1] if settings.device != "cpu" else []
    if not gpus:
        return {"num_cpus": 1}, sum(int(node.get("CPU", 0)) for node in free)
    cpus = max(1, min(CPUS_BESIDE_GPU, *(int(node["CPU"] // node["GPU"]) for node in gpus)))
    return {"num_cpus": cpus, "num_gpus": 1}, sum(int(min(node["GPU"], node["CPU"] // cpus)) for node in gpus)


@dataclass
class _Hand:
    """A worker, and the shard it has."""

    actor: Any
    gone: frozenset[str]  # nodes that were gone when it was asked for
    node: str = ""  # its id, once it has started
    address: str = "?"  # of the node
    shard: int = STARTING
    photos: int = 0  # of it that are done
    started: float = 0.0  # time.monotonic()

    def went_with_its_node(self, gone: frozenset[str]) -> bool:
        """Whether the worker ended because its node did, going by the nodes that are gone by now.

        On which node it was to start is not known: on the one that went meanwhile, if one did.
        """
        return self.node in gone if self.node else gone > self.gone


class Workers:
    """The workers of a run, made by `open_workers`. One that dies is replaced, and its shard handed out again."""

    def __init__(self, run: Run, count: int, needs: dict[str, int], on_message: OnMessage) -> None:
        self.engine_name = ""
        self._run, self._count, self._needs = run, count, needs
        self._on_message, self._messages = on_message, set[str]()
        self._request = replace(
            run.request, images=run.images.uri, output=run.output.uri, run_id=run.info.run_id
        )  # as other nodes can open it
        self._busy: dict[Any, _Hand] = {}  # starting, or with a shard; by what Ray gives for what is to come
        self._idle: list[_Hand] = []
        self._deaths: defaultdict[int, list[_Hand]] = defaultdict(list)  # by shard
        self._heard_at = time.monotonic()

    def await_first(self) -> None:
        """Start the workers and wait until one can answer. Raises as `open_workers`."""
        self._fill_up()
        while not self._idle:
            for ref in self._ready():
                self._hear(ref)

    def answer(self, shards: Sequence[int], deadline: Deadline) -> Iterator[int]:
        """See `Session.answer`. After an error no shard is handed out; it is raised when those under way have ended."""
        queue, done = deque(shards), 0
        failed: EnrichError | None = None
        for ref in [ref for ref, hand in self._busy.items() if hand.shard != STARTING]:
            ray.kill(self._busy.pop(ref).actor)  # a call that ran out of time left it hanging there
        self._fill_up()
        while True:
            more = bool(queue) and not failed and not deadline.passed()
            while more and queue and self._idle:
                self._hand_out(queue.popleft())
            if not (queue and more) and all(hand.shard == STARTING for hand in self._busy.values()):
                break
            try:
                for ref in self._ready():
                    hand = self._busy[ref]
                    shard, ended = hand.shard, self._hear(ref)
                    if ended == "done":
                        done += self._run.manifest.rows_in([shard])
                        deadline.last = time.monotonic() - hand.started
                    elif ended == "lost":
                        queue.appendleft(shard)
            except EnrichError as error:
                failed = failed or error
            yield done + sum(hand.photos for hand in self._busy.values())
        if failed:
            raise failed

    def close(self) -> None:
        """Stop the workers, at once where they have a shard; it is not committed then."""
        with suppress(RayError):
            stopping = [hand.actor.stop.remote() for hand in self._idle]
            if stopping:
                ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        for hand in [*self._idle, *self._busy.values()]:
            ray.kill(hand.actor)

    def _fill_up(self) -> None:
        while len(self._busy) + len(self._idle) < self._count:
            actor: Any = ray.remote(Worker).options(max_restarts=0, **self._needs).remote()
            self._busy[actor.start.remote(self._request, self._needs["num_cpus"])] = _Hand(actor, _gone_nodes())

    def _hand_out(self, shard: int) -> None:
        hand = self._idle.pop()
        hand.shard, hand.photos, hand.started = shard, 0, time.monotonic()
        self._busy[hand.actor.answer.options(num_returns="streaming").remote(shard)] = hand

    def _ready(self) -> list[Any]:
        """References of workers that have news, within a second. RunFailed: no worker started for START_SECONDS."""
        silent = time.monotonic() - self._heard_at
        if silent > START_SECONDS and not self._idle and all(hand.shard == STARTING for hand in self._busy.values()):
            raise RunFailed(
                f"run {self._run.info.run_id}: no worker has started on Ray for {silent / 60:.0f} min, each "
                f"takes {_words(self._needs)}; see `ray status`, and start it again with its run id"
            )
        try:
            ready, _ = ray.wait(list(self._busy), timeout=1.0)
        except SystemError as error:  # Ray's for what the handler of a signal raised: Prefect's does to cancel a run
            raise (error.__cause__ or error) from None
        return list(ready)

    def _hear(self, ref: Any) -> Literal["done", "lost"] | None:
        """Take a worker's news: what became of its shard, once that is known. Raises what the worker raised."""
        hand = self._busy[ref]
        self._heard_at = time.monotonic()
        try:
            if hand.shard == STARTING:
                self._welcome(hand, ray.get(ref))
            else:
                hand.photos, lines = ray.get(next(ref))
                for level, line in lines:
                    logger.log(level, "%s node=%s", line, hand.address)
                return None
        except StopIteration:
            pass
        except RayTaskError as error:
            del self._busy[ref]
            if hand.shard == STARTING:
                ray.kill(hand.actor)
            else:
                self._idle.append(hand)
            if isinstance(error.cause, EnrichError):
                raise error.cause from None
            last = str(error).strip().splitlines()[-1]  # an error that could not be sent as it is
            raise RunFailed(f"run {self._run.info.run_id}: node {hand.address}: {last}; see `ray status`") from None
        except RayError as error:
            del self._busy[ref]
            return self._bury(hand, error)
        del self._busy[ref]
        self._idle.append(hand)
        return None if hand.shard == STARTING else "done"

    def _welcome(self, hand: _Hand, started: Started) -> None:
        self.engine_name, hand.node, hand.address = started.engine, started.node, started.address
        for line in started.lines:
            if line not in self._messages:  # all say the same where their nodes are alike
                self._messages.add(line)
                self._on_message(line)

    def _bury(self, hand: _Hand, error: RayError) -> Literal["done", "lost"] | None:
        """Replace a worker that is gone or cannot be reached. RunFailed if it is the second over the same shard."""
        with suppress(RayError):
            ray.kill(hand.actor)
        gone, deaths = _gone_nodes(), self._deaths[hand.shard]
        lost = hand.went_with_its_node(gone)
        why = f"node {hand.address} is gone" if lost else f"node {hand.address}: {_reason(error)}"
        what = "starting" if hand.shard == STARTING else f"shard={hand.shard}"
        logger.warning("run=%s %s lost its worker: %s", self._run.info.run_id, what, why)
        deaths.append(replace(hand, actor=None))
        # That a node is gone is often known only after its worker is out of reach: earlier deaths are judged anew.
        if sum(not death.went_with_its_node(gone) for death in deaths) >= MOST_DEATHS:
            of = "while it started" if hand.shard == STARTING else f"over shard {hand.shard}"
            raise RunFailed(
                f"run {self._run.info.run_id}: {MOST_DEATHS} workers died {of}; {why}; give the node "
                "more memory, or lower in_flight; the same run id continues it"
            )
        self._fill_up()
        if hand.shard == STARTING:
            return None
        return "done" if self._run.is_committed(hand.shard) else "lost"


def _gone_nodes() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if not node["Alive"])


def _reason(error: RayError) -> str:
    """One line on why a worker ended: how its process ended, or the error that kept it from starting."""
    text = " ".join(str(error).split())
    found = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    return found[1] if found else str(error).strip().splitlines()[-1]


def _words(needs: dict[str, int]) -> str:
    cores = f"{needs['num_cpus']} core{'s' if needs['num_cpus'] > 1 else ''}"
    return f"{cores} and a GPU" if needs.get("num_gpus") else cores


@contextmanager
def _cluster(settings: RaySettings) -> Iterator[None]:
    """Connected to the cluster that the settings name, or to a Ray of our own that ends with the run."""
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        raise UsageError(
            f"ray.address {address}: a run is led from a node of the cluster, not by Ray's client; start the worker of "
            "Prefect or `enrich run` on one, and leave the address at auto"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where: dict[str, Any] = {"address": address} if address else {
        "address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES,
    }  # fmt: skip
    with _own_sigterm():
        try:
            ray.init(**where, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"ray.address {address or 'local'}: no Ray there ({reason}); start it with "
                "`ray start --head`, and this process on one of its nodes"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the SIGTERM handler that Ray replaces: Prefect's ends a cancelled flow in good order."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)
