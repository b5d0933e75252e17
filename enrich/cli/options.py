"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Base = Annotated[
    str | None, typer.Option(help="Hub id or directory of the base model, if it is not where the adapter says.")
]
Engine = Annotated[str | None, typer.Option(help="auto, vllm or transformers.")]
Adapter = Annotated[str, typer.Option(help="Adapter made by `enrich finetune`: a directory or s3://bucket/prefix.")]
Output = Annotated[str, typer.Option(help="Output of the runs: a directory or s3://bucket/prefix.")]
RunId = Annotated[str, typer.Option(help="The run's id.")]
