"""The bottleneck of a run, from the seconds that its stages took, and the setting that moves it."""

import math
from collections.abc import Sequence
from typing import Any

from enrich.output.run_record import Stages, StageUse
from enrich.pages.units import duration
from enrich.pipeline.run.measured import Measured
from enrich.settings.run import RunSettings

# Share of a session's time. Below it, waiting for photos is normal start-up of the engine and of each shard.
WAITING = 0.1
HEADROOM = 1.2  # workers asked for, over those that would just keep up: photos differ
WRITE_SHARE = 0.05  # of the time, that writing shards should take at most


def judge_stages(sessions: Sequence[Measured], settings: RunSettings, engine: str) -> Stages | None:
    """Seconds an image of each stage, how busy it was, the bottleneck and what moves it. None: nothing was measured.

    Sessions add up, whether they ran one after the other or at a time; `photos_per_second` is then that of one. What
    they ran with may differ: a share of time is of all the workers there were. Advice goes by the longest session.

    Where the stream waited for photos, what fetches them is the bottleneck, whatever the engine had in it: one that
    has a few photos left is at work and still slower than it could be. Otherwise it is the busiest of those that take
    turns in the process that feeds the engine.
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
    candidates = ("decode", "download") if waited >= WAITING else ("engine", "render", "write")
    bottleneck = max(candidates, key=lambda name: uses[name].busy or 0.0)
    return Stages(
        photos=photos,
        photos_per_second=photos / wall,
        uses=tuple(uses.values()),
        starved=sum(session.starved for session in sessions) / wall,
        bottleneck=bottleneck,
        advice=_ADVICE[bottleneck](uses, main, settings, engine),
    )


def describe_stages(stages: Stages) -> str:
    """One line: the rate, the bottleneck, what moves it, and what every stage takes."""
    busy = next(use.busy for use in stages.uses if use.stage == stages.bottleneck)
    took = ", ".join(f"{use.stage} {duration(use.seconds)}" for use in stages.uses)
    return (
        f"{stages.photos_per_second:.1f} photos/s; bottleneck: {stages.bottleneck} (busy {busy:.0%}): {stages.advice}; "
        f"{took} an image; engine starved {stages.starved:.0%}"
    )


def _decode_advice(uses: dict[str, StageUse], main: Measured, settings: RunSettings, engine: str) -> str:
    now = main.workers.decode
    wanted = max(_workers_to_feed(uses, main, uses["decode"].seconds), now + 1)
    if now >= main.cores:
        return (
            f"{main.cores} cores are too few for {wanted} decoding processes; use a machine with more, or fine-tune "
            "with fast_decode"
        )
    return f"raise decode_processes from {now} to {min(wanted, main.cores)}"


def _download_advice(uses: dict[str, StageUse], main: Measured, settings: RunSettings, engine: str) -> str:
    now = main.workers.download
    wanted = max(_workers_to_feed(uses, main, uses["download"].seconds + uses["decode"].seconds), now + 1)
    room = f", and in_flight from {settings.in_flight} to {2 * wanted}" if wanted > settings.in_flight else ""
    return f"raise download_threads from {now} to {wanted}{room}"


def _engine_advice(uses: dict[str, StageUse], main: Measured, settings: RunSettings, engine: str) -> str:
    if engine != "vllm":
        return "use the engine vllm on a GPU, or fine-tune with a smaller num_crops"
    smaller = "" if settings.quantization == "fp8" else "set quantization to fp8, "
    return f"{smaller}fine-tune with a smaller num_crops, or use more GPUs"


def _render_advice(uses: dict[str, StageUse], main: Measured, settings: RunSettings, engine: str) -> str:
    return "fine-tune with a smaller num_crops, or use a machine with faster cores"


def _write_advice(uses: dict[str, StageUse], main: Measured, settings: RunSettings, engine: str) -> str:
    # What a shard costs hardly depends on its size.
    wanted = math.ceil(settings.shard_size * (uses["write"].busy or 0.0) / WRITE_SHARE)
    return f"raise shard_size from {settings.shard_size} to {wanted}"


_ADVICE: dict[str, Any] = {
    "download": _download_advice,
    "decode": _decode_advice,
    "engine": _engine_advice,
    "render": _render_advice,
    "write": _write_advice,
}


def _workers_to_feed(uses: dict[str, StageUse], main: Measured, seconds: float) -> int:
    """Workers of a stage that takes `seconds` an image, so that the engine gets as many photos as it can answer.

    What it can answer is what it answered in the time in which it had something to; full, it may do better.
    """
    each = uses["engine"].seconds or main.wall / main.photos
    return math.ceil(round(seconds / each * HEADROOM, 6))
