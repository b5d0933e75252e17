"""`enrich doctor` and `enrich settings`: what this machine can run, and what can be set."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from enrich.cli.options import Config
from enrich.console import console, progress_bars
from enrich.errors import UsageError
from enrich.settings.duration import parse_duration
from enrich.settings.load import COMMANDS, SECTIONS, load_settings
from enrich.settings.run import RunSettings
from enrich.settings.storage import S3Settings

if TYPE_CHECKING:
    from enrich.doctor import Finding


def doctor(
    output: Annotated[str | None, typer.Option(help="Also test this output's conditional writes.")] = None,
    newer_than: Annotated[
        str | None,
        typer.Option(
            help="Only check that a run published to --output in that time (26h, 90m, 2d); exit code 1 if none did."
        ),
    ] = None,
    prefect: Annotated[
        bool,
        typer.Option("--prefect", help="Only check the Prefect server at PREFECT_API_URL: can scheduled runs start?"),
    ] = False,
    release: Annotated[
        bool, typer.Option("--release", help="With --prefect: free concurrency slots that belong to no live run.")
    ] = False,
    config: Config = None,
) -> None:
    """Show what this machine can run, what is missing, and the command that fixes it."""
    if release and not prefect:
        raise UsageError("--release frees slots of the server's limits; use enrich doctor --prefect --release")
    if prefect:
        if output is not None or newer_than is not None:
            raise UsageError("--prefect only checks the server; check the output in a separate call")
        _examine_server(release)
        return
    s3 = load_settings(RunSettings, config, "doctor").s3
    if newer_than is not None:
        _watch(output, newer_than, s3)
        return
    from enrich.doctor import examine

    with progress_bars("examining this machine"):
        findings = examine(output, s3)
    _print_findings(findings)
    _print_models()
    _end(findings)


def _examine_server(release: bool) -> None:
    with progress_bars("examining the Prefect server"):
        try:
            from flows.doctor import examine_prefect
        except ValueError as error:  # pydantic's, of Prefect's settings
            reason = " ".join(str(error).split("[type=")[0].split())
            raise UsageError(f"Prefect's settings (PREFECT_... and its profile) cannot be used: {reason}") from error
        findings = examine_prefect(release)
    for finding in findings:
        mark = ("ok      ", "green") if finding.ok else ("wrong   ", "red")
        fix = f"; {finding.fix}" if not finding.ok else ""
        console.print(Text.assemble(mark, f"{finding.what}: {finding.here}{fix}"), soft_wrap=True)
    _end(findings)


def _end(findings: Sequence["Finding"]) -> None:
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


def _watch(output: str | None, newer_than: str, s3: S3Settings) -> None:
    """The dead-man's switch, without Prefect, torch or a look at this machine."""
    from enrich.pipeline.freshness import check_fresh

    if output is None:
        raise UsageError("--newer-than needs an output; use enrich doctor --output URI --newer-than 26h")
    console.print(check_fresh(output, parse_duration(newer_than), s3), soft_wrap=True)


def _print_findings(findings: Sequence["Finding"]) -> None:
    table = Table("", "what", "here", "how to fix it", box=None, pad_edge=False)
    for finding in findings:
        mark = ("ok", "green") if finding.ok else ("missing", "red") if finding.required else ("optional", "yellow")
        table.add_row(Text(*mark), finding.what, finding.here, "" if finding.ok else finding.fix)
    console.print(table)


def _print_models() -> None:
    """The memory that each family's models need; prints nothing without the packages that run them."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return
    from enrich.capacity import GIB, needs, this_machine

    here = this_machine()
    columns = [Column(name, no_wrap=True) for name in ("model, GiB", "train", "train*", "serve")]
    table = Table(*columns, "here", box=None, padding=(0, 1, 0, 0), pad_edge=False)  # 80 characters in all
    for need in needs(here):
        sizes = (f"{size / GIB:.0f}" for size in (need.train, need.train_least, need.serve))
        table.add_row(need.model.name, *sizes, need.fits(here))
    slow = "" if here.number_bytes == 2 else "; without a GPU, training on thousands of products takes days"
    console.print(f"\nEstimated memory, for {here.name} with {here.memory / GIB:.0f} GiB{slow}:")
    console.print(table)
    console.print("* with batch_size: 1 and gradient_checkpointing: true. `enrich finetune --dry-run` measures.")


def settings(
    command: Annotated[list[str] | None, typer.Argument(help="A command: finetune, run, catalog fetch ...")] = None,
) -> None:
    """Print the settings of a command, or of all, as a YAML file to edit and pass as --config."""
    from enrich.settings.describe import describe

    name = " ".join(command or ())
    if name and name not in COMMANDS:
        raise typer.BadParameter(f"{name!r} has no settings; commands with settings: {', '.join(COMMANDS)}")
    if name:
        print(describe(COMMANDS[name]), end="")
        return
    print("\n".join(describe(cls, section) for section, cls in SECTIONS.items()), end="")
