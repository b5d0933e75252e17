"""Load settings files: which command reads which settings, and how."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from enrich.errors import UsageError
from enrich.settings.base import Settings
from enrich.settings.catalog import Columns, FetchSettings
from enrich.settings.export import ExportSettings
from enrich.settings.plain_yaml import line_of, parse_yaml, read_text
from enrich.settings.run import RunSettings
from enrich.settings.training import MergeSettings, TrainSettings

S = TypeVar("S", bound=Settings)


# The sections that a settings file may have, by command.
SECTIONS: dict[str, type[Settings]] = {
    "finetune": TrainSettings,
    "run": RunSettings,
    "merge": MergeSettings,
    "review": Columns,
    "export": ExportSettings,
    "catalog fetch": FetchSettings,
}
# All commands that read --config. Those added here may have sections of their own, and otherwise share `run`.
COMMANDS = SECTIONS | dict.fromkeys(("score", "publish", "rollback", "rebuild", "tidy", "doctor"), RunSettings)

_WRONG_KIND = {"tuple_type": "Input should be a list, such as [a, b]"}  # pydantic's words are about Python


def load_settings(cls: type[S], path: str | Path | None = None, command: str | None = None, **overrides: object) -> S:
    """Settings from defaults, then a YAML file, then `overrides` (None values are ignored).

    The file contains either the settings themselves or a section for each of several commands; `command` then reads
    its own section.

    Raises:
        UsageError: the file cannot be read, is not a mapping, or has an unknown key or a value out of range.
    """
    text, source = ("", "settings") if path is None else (read_text(Path(path)), f"settings file {path}")
    values = parse_yaml(text, source)
    if command is not None:
        values = _own_section(values, cls, command, source)
    values.update({name: value for name, value in overrides.items() if value is not None})
    return check(cls, values, source)


def check(cls: type[S], values: dict[str, Any], source: str, text: str = "") -> S:
    """`values` as settings; an error names `source` and, where `text` is the YAML that the values are from, the line.

    Raises:
        UsageError: an unknown key, or a value out of range.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        line = line_of(text, first["loc"]) if text else None
        source = f"{source}, line {line}" if line else source
        where = ".".join(str(part) for part in first["loc"] if part != "[key]") or cls.__name__
        if first["type"] == "extra_forbidden":
            fields = _section(cls, first["loc"][:-1]).model_fields
            known = ", ".join(field.alias or name for name, field in fields.items())
            raise UsageError(f"{source}: unknown key {where!r}; known keys: {known}") from error
        if first["type"] == "missing":
            raise UsageError(f"{source}: {where}: it is missing; add it") from error
        if first["type"] in ("dict_type", "model_type"):
            raise UsageError(f"{source}: {_no_section(where, first['input'])}") from error
        wrong = _WRONG_KIND.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{source}: {where}: {wrong}; change that value") from error


def _own_section(values: dict[str, Any], cls: type[Settings], command: str, source: str) -> dict[str, Any]:
    """The part of `values` for a command: all, unless a key names a command and is not one of its own settings."""
    sections = [key for key in values if key in COMMANDS and key not in cls.model_fields]
    if not sections:
        return values
    if stray := [key for key in values if key not in COMMANDS]:
        raise UsageError(f"{source}: key {stray[0]!r} is outside of the sections; move it below a command's name")
    name = command if command in values or cls is not RunSettings else "run"
    section = values.get(name)
    if not isinstance(section, dict | None):
        raise UsageError(f"{source}: {_no_section(name, section)}")
    return dict(section or {})


def _no_section(name: str, found: object) -> str:
    return f"{name}: settings are expected below it, not {repr(found)[:40]}; write `key: value` lines"


def _section(cls: type[Settings], names: Sequence[int | str]) -> type[Settings]:
    """The settings class that the nested keys `names` lead to, some of them names that the user chose (`fields`)."""
    found: Any = cls
    for name in names:
        is_settings = isinstance(found, type) and issubclass(found, Settings)
        found = found.model_fields[str(name)].annotation if is_settings else get_args(found)[1]
    assert issubclass(found, Settings)
    return found
