"""Write docs/commands.md, docs/settings.md and parts of other pages: `python -m docs.reference`.

With `--check` nothing is written, and the exit code is 1 if a page is out of date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from docs.dictionary import data_parts
from docs.families import model_tables
from docs.markdown import between_markers
from docs.sources import source_tables
from enrich.cli import app
from enrich.settings.describe import describe
from enrich.settings.load import COMMANDS, SECTIONS

HERE = Path(__file__).parent
SETTINGS_NOTE = """\
A settings file is YAML, is passed as `--config FILE`, and holds the settings of one command, or those of several below
their names. `enrich settings COMMAND` prints a block of this page to start from; what a file leaves out keeps its
default. Python functions take the same names: `enrich.run(..., settings={"engine": "vllm"})`."""
NOTE = "<!-- Written by `make docs`. Change the code, not this page. -->"


def commands_page() -> str:
    """Every command with its options, as `--help` shows them."""
    lines = ["# Commands", "", NOTE, "", "`enrich --install-completion` sets up completion in your shell."]
    for name, command in _commands(typer.main.get_command(app), "enrich"):
        lines += ["", f"## {name}", "", command.help.strip(), "", "| option | meaning |", "| --- | --- |"]
        for parameter in command.params:
            option, meaning = parameter.get_help_record(typer.Context(command, info_name=name))
            lines.append(f"| `{option}` | {meaning.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves below a command, by their full names."""
    for part, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{name} {part}")
    if not hasattr(command, "commands"):
        yield name, command


def settings_page() -> str:
    """Every setting with its meaning, limits and default, as `enrich settings` prints them."""
    lines = ["# Settings", "", NOTE, "", SETTINGS_NOTE]
    shared = [name for name in COMMANDS if name not in SECTIONS]
    for name, cls in SECTIONS.items():
        also = f" (also read by {', '.join(f'`{other}`' for other in shared)})" if name == "run" else ""
        lines += ["", f"## enrich {name}{also}", "", "```yaml", describe(cls).rstrip("\n"), "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parts = {
        HERE.parent / "DATA.md": data_parts(),
        HERE / "models.md": model_tables(),
        HERE / "catalogs.md": source_tables(),
    }
    pages = {path: between_markers(path.read_text("utf-8"), found) for path, found in parts.items()}
    pages |= {HERE / "commands.md": commands_page(), HERE / "settings.md": settings_page()}
    stale = 0
    for path, text in pages.items():
        if "--check" not in sys.argv:
            path.write_text(text, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            print(f"{path.relative_to(HERE.parent)} is out of date; run `make docs` and commit it", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
