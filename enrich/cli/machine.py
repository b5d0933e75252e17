"""`enrich doctor` and `enrich settings`: what this machine can run, and what can be set."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from enrich.cli.options import Config
from enrich.console import console, progress_bars
from enrich.settings.load import COMMANDS, SECTIONS, load_settings
from enrich.settings.run import RunSettings


def doctor(
    output: Annotated[str | None, typer.Option(help="Also test this output's conditional writes.")] = None,
    config: Config = None,
) -> None:
    """Say what this machine can run, what is missing, and the command that fixes it."""
    from enrich.doctor import examine

    with progress_bars("examining this machine"):
        findings = examine(output, load_settings(RunSettings, config, "doctor").s3)
    table = Table("", "what", "here", "how to fix it", box=None, pad_edge=False)
    for finding in findings:
        mark = ("ok", "green") if finding.ok else ("missing", "red") if finding.required else ("optional", "yellow")
        table.add_row(Text(*mark), finding.what, finding.here, "" if finding.ok else finding.fix)
    console.print(table)
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


def settings(
    command: Annotated[list[str] | None, typer.Argument(help="A command: finetune, run, catalog fetch ...")] = None,
) -> None:
    """Print the settings of a command, or of all, as a YAML file to edit and pass as --config."""
    from enrich.settings.describe import describe

    name = " ".join(command or ())
    if name and name not in COMMANDS:
        raise typer.BadParameter(f"{name!r} has no settings; those with settings: {', '.join(COMMANDS)}")
    if name:
        print(describe(COMMANDS[name]), end="")
        return
    print("\n".join(describe(cls, section) for section, cls in SECTIONS.items()), end="")
