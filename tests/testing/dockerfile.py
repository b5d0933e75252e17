"""The Dockerfile's steps, read from its text."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]


def stage(name: str) -> list[list[str]]:
    """The steps of a stage, those of the stages it is made from first."""
    starts = {re.split(r"(?i)\s+as\s+", rest)[1]: n for n, (word, rest) in enumerate(STEPS) if word == "FROM"}
    if name not in starts:
        return []
    start = starts[name]
    end = min((n for n in starts.values() if n > start), default=len(STEPS))
    return stage(STEPS[start][1].split()[0]) + STEPS[start + 1 : end]


def environment(name: str) -> dict[str, str]:
    """The variables that a stage sets."""
    pairs = [pair for word, rest in stage(name) if word == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)
