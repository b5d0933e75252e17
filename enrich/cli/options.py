"""Options that several commands share, and what they have in common otherwise."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from enrich.errors import UsageError

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Base = Annotated[
    str | None, typer.Option(help="Hub id or directory of the base model, if it is not where the adapter says.")
]
Engine = Annotated[str | None, typer.Option(help="auto, vllm or transformers.")]
Adapter = Annotated[str, typer.Option(help="Adapter made by `enrich finetune`: a directory or s3://bucket/prefix.")]
Output = Annotated[str, typer.Option(help="Output of the runs: a directory or s3://bucket/prefix.")]
RunId = Annotated[str, typer.Option(help="The run's id.")]

MOST_DAYS = 36_500  # a date that is so long ago can still be written


def parse_duration(text: str) -> timedelta:
    """90d, 6h, 2h30m, 45s; UsageError for anything else, and for more than MOST_DAYS."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"{text!r} is not a length of time; write 90d, 6h, 2h30m or 45s")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    if days + hours / 24 + minutes / 1440 + seconds / 86400 > MOST_DAYS:
        raise UsageError(f"{text!r} is more than {MOST_DAYS:,} days; write 90d, 6h, 2h30m or 45s")
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
