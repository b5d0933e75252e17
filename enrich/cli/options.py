"""Options that several commands share, and how durations are parsed."""

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

_MOST = timedelta(days=36_500)


def parse_duration(text: str) -> timedelta:
    """90d, 6h, 2h30m, 45s, up to 100 years; UsageError for anything else."""
    match = re.fullmatch(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?", text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"{text!r} is not a duration; write 90d, 6h, 2h30m or 45s")
    days, hours, minutes, seconds = (int(part[:18]) for part in match.groups("0"))
    if ((days * 24 + hours) * 60 + minutes) * 60 + seconds > _MOST.total_seconds():
        raise UsageError(f"{text!r} is more than {_MOST.days:,} days; write a shorter time")
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def parse_deadline(text: str) -> timedelta:
    """As `parse_duration`; a plain number, such as 6 or 1.5, is hours."""
    if re.fullmatch(r"[0-9]{1,5}(?:\.[0-9]{1,5})?", text.strip()):
        return timedelta(hours=float(text))
    return parse_duration(text)
