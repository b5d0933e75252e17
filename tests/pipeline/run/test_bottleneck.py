"""What is slow: from measurements to the bottleneck and to the setting that moves it."""

from dataclasses import replace
from typing import Any

import pytest

from enrich.pages.units import duration
from enrich.photos.workers import Workers, choose_workers
from enrich.pipeline.run.bottleneck import describe_stages, judge_stages
from enrich.pipeline.run.measured import Measured, add
from enrich.settings.run import RunSettings

# 1,000 photos in 100 s, of which the engine was at work in 97.
FULL = Measured(
    photos=1000, wall=100.0, workers=Workers(16, 4), cores=8, download=30.0, decode=12.0, queue=5000.0, render=0.5,
    engine=97.0, write=1.0, waited=1.0, starved=0.5,
)  # fmt: skip
HUNGRY = replace(FULL, engine=60.0, waited=45.0, starved=40.0, queue=1.0)  # could answer 16.7 photos a second


@pytest.mark.parametrize(
    ("measured", "settings", "engine", "bottleneck", "advice"),
    [
        (FULL, {}, "vllm", "engine", "set quantization to fp8, fine-tune with fewer photo_tokens, or use more GPUs"),
        (FULL, {"quantization": "fp8"}, "vllm", "engine", "fine-tune with fewer photo_tokens, or use more GPUs"),
        (FULL, {}, "transformers", "engine", "use the engine vllm on a GPU, or fine-tune with fewer photo_tokens"),
        # An engine that always has some photo left, and yet room for more: others are slower.
        (replace(FULL, waited=60.0, decode=390.0), {}, "vllm", "decode", "raise decode_processes from 4 to 5"),
        # 0.39 s x 1.2 / 0.06 s = 7.8
        (replace(HUNGRY, decode=390.0), {}, "vllm", "decode", "raise decode_processes from 4 to 8"),
        (replace(HUNGRY, decode=390.0, cores=6), {}, "vllm", "decode", "raise decode_processes from 4 to 6"),
        (
            replace(HUNGRY, decode=390.0, cores=4),
            {},
            "vllm",
            "decode",
            "4 cores are too few for 8 decoding processes; use a machine with more, or fine-tune with fast_decode",
        ),
        # A thread has a photo until it is decoded: (1.5 + 0.03) s x 1.2 / 0.06 s = 30.6
        (replace(HUNGRY, download=1500.0, decode=30.0), {}, "vllm", "download", "raise download_threads from 16 to 31"),
        (
            replace(HUNGRY, download=1500.0, decode=30.0),
            {"in_flight": 16},
            "vllm",
            "download",
            "raise download_threads from 16 to 31, and in_flight from 16 to 62",
        ),
        # Nobody is busy for long, and still photos are late: one more of the busier ones.
        (replace(HUNGRY, download=100.0, decode=20.0), {}, "vllm", "download", "raise download_threads from 16 to 17"),
        (
            replace(FULL, engine=30.0, write=60.0),
            {"shard_size": 16},
            "vllm",
            "write",
            "raise shard_size from 16 to 192",
        ),
        (
            replace(FULL, engine=30.0, render=65.0),
            {},
            "transformers",
            "render",
            "fine-tune with fewer photo_tokens, or use a machine with faster cores",
        ),
        # Waiting in a stretch in which nothing before the engine was busy is its start.
        (replace(FULL, waited=30.0), {}, "vllm", "engine", None),
        (replace(FULL, waited=9.0, decode=390.0), {}, "vllm", "engine", None),
        (replace(FULL, waited=10.0, decode=390.0), {}, "vllm", "decode", None),
        # 78 % busy, and idle for 9 %: more decoding would not have helped much.
        (replace(FULL, engine=78.0, waited=20.0, starved=9.0, decode=150.0), {}, "vllm", "engine", None),
    ],
)
def test_the_bottleneck_and_what_moves_it(
    measured: Measured, settings: dict[str, Any], engine: str, bottleneck: str, advice: str | None
) -> None:
    stages = judge_stages([measured], RunSettings.model_validate(settings), engine)

    assert stages is not None
    assert stages.bottleneck == bottleneck
    assert advice in (None, stages.advice)


def test_seconds_an_image_and_shares_of_the_time() -> None:
    stages = judge_stages([FULL], RunSettings(), "vllm")

    assert stages is not None
    assert (stages.photos, stages.photos_per_second, stages.starved) == (1000, 10.0, 0.005)
    found = {use.stage: (use.seconds, use.workers, use.busy) for use in stages.uses}
    assert found == {
        "download": (0.03, 16, 30 / 1600),
        "decode": (0.012, 4, 12 / 400),
        "queue": (5.0, None, None),
        "render": (0.0005, 1, 0.005),
        "engine": (0.097, 1, 0.97),
        "write": (0.001, 1, 0.01),
    }


def test_one_line() -> None:
    stages = judge_stages([replace(HUNGRY, decode=390.0)], RunSettings(), "vllm")

    assert stages is not None
    assert describe_stages(stages) == (
        "10.0 products/s while answering; bottleneck: decode (busy 98%): raise decode_processes from 4 to 8; "
        "download 30.0 ms, decode 390 ms, queue 1.00 ms, render 0.50 ms, engine 60.0 ms, write 1.00 ms per product; "
        "engine starved 40%"
    )


def test_sessions_add_up() -> None:
    two = add(HUNGRY, HUNGRY)
    apart = judge_stages([HUNGRY, HUNGRY], RunSettings(), "vllm")

    assert (two.photos, two.wall, two.decode, two.workers, two.cores) == (2000, 200.0, 24.0, Workers(16, 4), 8)
    assert judge_stages([two], RunSettings(), "vllm") == apart
    # Another one on half of the workers: 12 s of 100 x 4, and 12 s of 100 x 2.
    smaller = judge_stages([FULL, replace(FULL, workers=Workers(8, 2))], RunSettings(), "vllm")
    assert smaller is not None
    assert {use.stage: use.busy for use in smaller.uses}["decode"] == 24 / 600


@pytest.mark.parametrize("sessions", [[], [replace(FULL, photos=0)], [replace(FULL, wall=0.0)]])
def test_nothing_measured(sessions: list[Measured]) -> None:
    assert judge_stages(sessions, RunSettings(), "vllm") is None


@pytest.mark.parametrize(
    ("settings", "cores", "workers"),
    [
        ({}, 1, Workers(18, 2)),
        ({}, 2, Workers(18, 2)),
        ({}, 8, Workers(22, 6)),
        ({}, 128, Workers(32, 16)),
        ({"decode_processes": 5}, 2, Workers(21, 5)),
        ({"download_threads": 3}, 8, Workers(3, 6)),
        ({"download_threads": 300, "decode_processes": 1}, 8, Workers(64, 1)),
        ({"in_flight": 4}, 8, Workers(4, 6)),
    ],
)
def test_workers_are_chosen_from_the_machine(settings: dict[str, Any], cores: int, workers: Workers) -> None:
    assert choose_workers(RunSettings.model_validate(settings), cores) == workers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00 ms"), (0.0007, "0.70 ms"), (0.0114, "11.4 ms"), (0.24, "240 ms"), (5.0, "5.00 s"), (1234.5, "1234 s")],
)
def test_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("photos", "wall", "short"), [(6, 1.4, True), (99, 19.0, True), (99, 25.0, False), (150, 9.0, False)]
)
def test_of_a_short_run_nothing_is_advised(photos: int, wall: float, short: bool) -> None:
    """Six refused photos were told to raise shard_size to 37,597, because writing was all there was to do."""
    stages = judge_stages(
        [replace(FULL, photos=photos, wall=wall, engine=0.0, write=0.9 * wall)], RunSettings(), "vllm"
    )
    assert stages is not None
    assert ("bottleneck: the run was too short to tell;" in describe_stages(stages)) is short
