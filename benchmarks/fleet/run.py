"""Hours and cost of runs over fleets that nobody has paid for yet, simulated with what was measured on few GPUs.

    python -m benchmarks.fleet.run                                       # the tables of README.md
    python -m benchmarks.fleet.run --photos 30000000 --gpus 24 --gpu-hour 2.1 --spot-hour 0.8

The events are those of `ray_runner`: a worker is ready, takes a shard, commits it and takes the next; a node goes with
its workers and their shards, and another comes. The leading process plans before that and publishes after it, alone.
"""

import argparse
import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.results import record


@dataclass(frozen=True)
class Facts:
    """README.md says where each is from. Seconds, where nothing else is said."""

    photos_a_second: float = 57.0  # of an engine that has enough to do
    shard_ends: float = 0.03  # that a shard costs an engine which continues with the next
    start: float = 80.0  # until the first engine answers
    spread: float = 5.6  # from the first engine of a host to the last
    finish: float = 21.0  # what a command takes before its workers start and after their last answer
    plan: float = 17.0  # a million photos
    publish: float = 51.0  # a million photos
    news: float = 0.001  # of the leading process, for a message of a worker: each two seconds, and with each shard
    manifest: float = 21.0  # bytes a photo, which every worker downloads
    gets: float = 5500.0  # a second and prefix of S3
    restart: float = 34.0  # until an engine answers on a node that comes later, where a cache is shared
    # Assumed:
    boot: float = 180.0  # from the order of a node until it has joined
    noticed: float = 65.0  # until a node counts as gone that says nothing: Ray's health checks
    network: float = 300e6  # bytes a second a worker, for the manifest
    gpus_a_node: int = 8
    lost_an_hour: float = 0.0  # of the nodes
    gpu_hour: float = 3.0  # dollars


SPOT = {"lost_an_hour": 0.05}
# Of the code before: an engine drained at a shard's end, and its first start found nothing.
BEFORE = {"photos_a_second": 55.0, "shard_ends": 1.5, "start": 245.0, "finish": 11.0}
GET, PUT = 0.4e-6, 5e-6  # dollars: a photo, a shard


@dataclass(frozen=True)
class Outcome:
    """Of a run: seconds, GPU hours from the order of a node to the last commit, and dollars."""

    start: float  # from the order of nodes to the first hand-out
    answering: float  # from there to the last commit
    alone: float  # the leading process before and after
    gpu_hours: float
    dollars: float
    again: int  # shards that went with their node

    @property
    def total(self) -> float:
        return self.start + self.answering + self.alone


@dataclass
class Fleet:
    """Workers by number; one that comes back after its node was lost has another life."""

    life: list[int]
    has: list[bool]  # a shard
    at_work: int = 0
    again: int = 0
    events: list[tuple[float, int, int]] = field(default_factory=list)  # time, worker or -1 - node, life of the worker

    def lose(self, workers: range) -> int:
        """End them; the number of shards that went with them."""
        gone = sum(self.has[worker] for worker in workers)
        for worker in workers:
            self.life[worker] += 1
            self.has[worker] = False
        self.at_work, self.again = self.at_work - gone, self.again + gone
        return gone


def simulate(photos: int, gpus: int, shard_size: int, facts: Facts, prefixes: int = 1) -> Outcome:
    """A run from its plan to its publication."""
    chance, per_node = random.Random(1), min(gpus, facts.gpus_a_node)
    fleet = Fleet([0] * gpus, [False] * gpus)
    read = photos * facts.manifest / facts.network
    start = facts.boot + read + facts.start
    spread = facts.spread if gpus == per_node else facts.boot / 2  # nodes come one after another
    fleet.events += [(start + spread * worker / max(1, gpus - 1), worker, 0) for worker in range(gpus)]
    if losses := facts.lost_an_hour / 3600:
        fleet.events += [(chance.expovariate(losses), -1 - node, 0) for node in range(-(-gpus // per_node))]
    heapq.heapify(fleet.events)
    shards = left = -(-photos // shard_size)
    done, now, leader = 0, 0.0, 0.0
    handing_out = facts.news / max(0.05, 1 - facts.news * gpus / 2)  # news of shards under way come between
    while done < shards:
        now, who, life = heapq.heappop(fleet.events)
        if who < 0:
            workers = range((-1 - who) * per_node, min(gpus, -who * per_node))
            left += fleet.lose(workers)
            back = now + facts.noticed + facts.boot
            ready = max(start, back + read + facts.restart)
            for worker in workers:
                heapq.heappush(fleet.events, (ready, worker, fleet.life[worker]))
            heapq.heappush(fleet.events, (back + chance.expovariate(losses), who, 0))
            continue
        if life != fleet.life[who]:
            continue
        if fleet.has[who]:
            fleet.has[who], fleet.at_work, done = False, fleet.at_work - 1, done + 1
        if left:
            fleet.has[who], fleet.at_work, left = True, fleet.at_work + 1, left - 1
            leader = max(now, leader) + handing_out
            usual = shard_size / facts.photos_a_second
            took = max(usual, shard_size * fleet.at_work / (facts.gets * prefixes))
            heapq.heappush(fleet.events, (leader + took + facts.shard_ends, who, life))
    gpu_hours = gpus * now / 3600
    return Outcome(
        start=start,
        answering=now - start,
        alone=(facts.plan + facts.publish) * photos / 1e6 + facts.finish,
        gpu_hours=gpu_hours,
        dollars=gpu_hours * facts.gpu_hour + photos * GET + shards * PUT,
        again=fleet.again,
    )  # fmt: skip


def check(facts: Facts) -> list[dict[str, Any]]:
    """The runs on one and two H200, then those of the code before on one, two and four H100, each of one host."""
    here, before = replace(facts, boot=0.0), replace(facts, **BEFORE, boot=0.0)
    second = simulate(2048, 2, 128, replace(here, start=facts.restart))
    four, rate = simulate(8192, 4, 2048, before), "photos/s, all at work"
    rows = [
        ("1 H200", rate, 56.4, together(1024, 1, 128, here), "shard_ends"),
        ("2 H200", rate, 111.0, together(2048, 2, 128, here), ""),
        ("2 H200", "seconds, the whole job, second start", 71.9, second.total, "restart"),
        ("1 H100", rate, 53.0, together(8192, 1, 2048, before), "shard_ends"),
        ("2 H100", rate, 106.0, together(8192, 2, 2048, before), ""),
        ("4 H100", rate, 212.0, together(8192, 4, 2048, before), ""),
        ("4 H100", "photos/s, from the first hand-out to the last commit", 185.0, 8192 / four.answering, "spread"),
        ("4 H100", "seconds, the whole job", 300.0, four.total, "start, finish"),
    ]
    return [
        {"GPUs": gpus, "": what, "measured": measured, "simulated": found, "error": f"{found / measured - 1:+.1%}",
         "facts from this number": used}
        for gpus, what, measured, found, used in rows
    ]  # fmt: skip


def together(photos: int, gpus: int, shard_size: int, facts: Facts) -> float:
    """Photos a second of engines that start at the same moment."""
    return photos / simulate(photos, gpus, shard_size, replace(facts, spread=0.0)).answering


def sizes_table(facts: Facts) -> list[dict[str, Any]]:
    """GPU time while answering by shard size, as multiples of what the photos alone take."""
    rows = []
    for photos, gpus in ((10**5, 4), (10**6, 8), (10**7, 32), (10**8, 128)):
        row: dict[str, Any] = {"photos": photos, "GPUs": gpus}
        for size in (256, 512, 1024, 2048, 4096, 8192):
            took = simulate(photos, gpus, size, facts, prefixes=2).answering
            row[f"{size:,}"] = took * gpus * facts.photos_a_second / photos
        rows.append(row)
    return rows


def cheapest(photos: int, gpus: int, sizes: Sequence[int], facts: Facts, prefixes: int) -> tuple[Outcome, int]:
    """What comes of the best of the shard sizes, and which it is."""
    return min(
        ((simulate(photos, gpus, size, facts, prefixes), size) for size in sizes), key=lambda made: made[0].dollars
    )


def plan_table(options: argparse.Namespace, facts: Facts) -> list[dict[str, Any]]:
    """A row for each number of photos and of GPUs; the photos are in as many prefixes as it takes, unless said."""
    rows, spot_facts = [], replace(facts, **SPOT, gpu_hour=options.spot_hour)
    for photos in options.photos:
        for gpus in options.gpus:
            prefixes = options.prefixes or math.ceil(gpus * facts.photos_a_second / facts.gets)
            made, size = cheapest(photos, gpus, options.shard_size, facts, prefixes)
            spot, one = simulate(photos, gpus, size, spot_facts, prefixes), simulate(photos, gpus, size, facts)
            ideal = photos / facts.photos_a_second / 3600
            rows.append({
                "photos": photos, "GPUs": gpus, "shard size": size, "hours": made.total / 3600,
                "plan, publish": made.alone / 3600, "start": made.start / 3600, "answering": made.answering / 3600,
                "of GPU time": f"{ideal / made.gpu_hours:.0%}", "dollars": round(made.dollars),
                "spot: hours": spot.total / 3600, "shards again": spot.again, "dollars, spot": round(spot.dollars),
                "prefixes": prefixes, "hours, one prefix": one.total / 3600, "dollars, one prefix": round(one.dollars),
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 32, 128, 512])
    parser.add_argument("--shard-size", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="the best is taken")
    parser.add_argument(
        "--prefixes", type=int, help="of S3, over which the photos are spread evenly; as many as it takes"
    )
    parser.add_argument("--gpu-hour", type=float, default=Facts.gpu_hour, help="dollars")
    parser.add_argument("--spot-hour", type=float, default=1.2, help="dollars")
    options = parser.parse_args()
    facts = Facts(gpu_hour=options.gpu_hour)
    plan = plan_table(options, facts)
    record("fleet", {"Check": check(facts), "GPU time by shard size": sizes_table(facts), "Plan": plan})


if __name__ == "__main__":
    main()
