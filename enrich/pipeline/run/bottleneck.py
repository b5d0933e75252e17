"""The bottleneck of a run, from the seconds that its stages took, and the setting that would help."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from enrich.output.run_record import TOO_SHORT, Stages, StageUse
from enrich.pages.units import describe_bottleneck, duration
from enrich.pipeline.run.measured import Measured
from enrich.settings.run import RunSettings

# Share of a session's time. Below it, waiting for photos is normal start-up of the engine and of each shard.
WAITING = 0.1
NO_LESS = 0.8  # of the engine's share of busy time: how busy a stage before it has to be to be what it waits for
HEADROOM = 1.2  # workers asked for, over those that would just keep up: photos differ
# Of shorter runs, start and end decide which stage was busy. What so few photos say of settings is chance.
SHORT_SECONDS, FEW_PRODUCTS = 20.0, 100
_STAGES = ("decode", "download"), ("engine", "render", "write")
WRITE_SHARE = 0.05  # of the time, that writing shards should take at most


def judge_stages(sessions: Sequence[Measured], settings: RunSettings, engine: str) -> Stages | None:
    """Each stage's seconds per product and utilisation, the bottleneck, and what would help. None: nothing was
    measured.

    Short runs get no advice.

    Sessions add up, also those that ran at the same time; `photos_per_second` is then that of one. Advice is for the
    longest session. If the stream waited for photos, and download or decoding was about as busy as the engine or the
    engine was often idle, that is the bottleneck: with few photos left the engine works more slowly than it could.
    Otherwise it is the busiest of the stages that take turns in the process that feeds the engine.
    """
    photos, wall = (sum(getattr(session, name) for session in sessions) for name in ("photos", "wall"))
    if not photos or not wall:
        return None
    main = max(sessions, key=lambda session: session.wall)
    workers: dict[str, int | None] = {**vars(main.workers), "queue": None}
    uses = {}
    for name in ("download", "decode", "queue", "render", "engine", "write"):
        seconds = sum(getattr(session, name) for session in sessions)
        capacity = sum(session.wall * getattr(session.workers, name, 1) for session in sessions)
        working = workers.get(name, 1)
        uses[name] = StageUse(name, seconds / photos, working, seconds / capacity if working else None)
    waited = sum(session.waited for session in sessions) / wall
    starved = sum(session.starved for session in sessions) / wall
    supply, rest = (max(names, key=lambda name: uses[name].busy or 0.0) for names in _STAGES)
    late = starved >= WAITING or (uses[supply].busy or 0.0) >= NO_LESS * (uses["engine"].busy or 0.0)
    bottleneck = supply if waited >= WAITING and late else rest
    short = photos < FEW_PRODUCTS and wall < SHORT_SECONDS
    return Stages(
        photos=photos,
        photos_per_second=photos / wall,
        uses=tuple(uses.values()),
        starved=starved,
        bottleneck=bottleneck,
        advice=TOO_SHORT if short else _advice(bottleneck, uses, main, settings, engine),
    )


def describe_stages(stages: Stages) -> str:
    """One line: the rate while answering, the bottleneck, what would help, and the time of each stage."""
    took = ", ".join(f"{use.stage} {duration(use.seconds)}" for use in stages.uses)
    bottleneck = describe_bottleneck(asdict(stages))
    return (
        f"{stages.photos_per_second:.1f} products/s while answering; bottleneck: {bottleneck}; "
        f"{took} per product; engine starved {stages.starved:.0%}"
    )


def _advice(stage: str, uses: dict[str, StageUse], main: Measured, settings: RunSettings, engine: str) -> str:
    """What to change if `stage` is the bottleneck."""
    now = getattr(main.workers, stage, 1)
    match stage:
        case "decode":
            wanted = max(_workers_to_feed(uses, main, uses["decode"].seconds), now + 1)
            if now < main.cores:
                return f"raise decode_processes from {now} to {min(wanted, main.cores)}"
            return (
                f"{main.cores} cores are too few for {wanted} decoding processes; use a machine with more, or "
                "fine-tune with fast_decode"
            )
        case "download":
            wanted = max(_workers_to_feed(uses, main, uses["download"].seconds + uses["decode"].seconds), now + 1)
            room = f", and in_flight from {settings.in_flight} to {2 * wanted}" if wanted > settings.in_flight else ""
            return f"raise download_threads from {now} to {wanted}{room}"
        case "render":
            return "fine-tune with fewer photo_tokens, or use a machine with faster cores"
        case "write":  # what a shard costs hardly depends on its size
            wanted = math.ceil(settings.shard_size * (uses["write"].busy or 0.0) / WRITE_SHARE)
            return f"raise shard_size from {settings.shard_size} to {wanted}"
    if engine != "vllm":
        return "use the engine vllm on a GPU, or fine-tune with fewer photo_tokens"
    smaller = "" if settings.quantization == "fp8" else "set quantization to fp8, "
    return f"{smaller}fine-tune with fewer photo_tokens, or use more GPUs"


def _workers_to_feed(uses: dict[str, StageUse], main: Measured, seconds: float) -> int:
    """Workers of a stage that takes `seconds` an image, to feed the engine at the rate of its busy time."""
    each = uses["engine"].seconds or main.wall / main.photos
    return math.ceil(round(seconds / each * HEADROOM, 6))
