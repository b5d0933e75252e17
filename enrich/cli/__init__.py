"""The `enrich` command. Exit codes: 0 done, 1 the run failed, 2 wrong usage or settings, 3 held back by the gate."""

import os
import signal
import sys
from typing import Annotated

import typer
from rich.text import Text
from typer.exceptions import TyperException

from enrich import __version__
from enrich.cli import adapters, catalogs, machine, runs
from enrich.console import console, errors, quiet_libraries, say_error, speaks
from enrich.errors import EnrichError, UsageError, unforeseen

_INTERRUPTED = 130  # what Typer makes of a KeyboardInterrupt

app = typer.Typer(
    name="enrich",
    help="Titles, categories and price estimates for product photos, from a vision model fine-tuned on your catalog.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
catalog_app = typer.Typer(no_args_is_help=True, help="Make, check or fetch a labelled catalog.")
app.add_typer(catalog_app, name="catalog")
for catalog_command in (catalogs.sample, catalogs.fetch, catalogs.check):
    catalog_app.command()(catalog_command)
for command in (
    adapters.finetune, adapters.score, adapters.merge, adapters.promote,
    runs.run, runs.publish, runs.rollback, runs.rebuild, runs.tidy, runs.report, runs.label, runs.review, runs.serve,
    runs.export,
    machine.doctor, machine.settings,
):  # fmt: skip
    app.command()(command)


def print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"enrich {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `enrich` script."""
    quiet_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C; otherwise child processes outlive it
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            errors.print(Text.assemble(("stopped", "red"), "; committed work is kept"))
            code = 1
    except EnrichError as error:
        # Processes that train together all hit the same usage error; any other error may occur in one of them only.
        if speaks() or not isinstance(error, UsageError):
            say_error(error)
        code = error.exit_code
    except TyperException as error:
        if speaks() and error.format_message():  # empty when only the help is shown
            say_error(UsageError(f"{error.format_message().rstrip('.')}; `enrich --help` lists commands and options"))
        code = error.exit_code
    except BaseException as error:  # the last boundary: a traceback helps only developers
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust, below Polars
            raise
        if os.environ.get("ENRICH_DEBUG"):
            errors.print_exception()
        say_error(unforeseen(error))
        code = 1
    sys.exit(code or 0)
