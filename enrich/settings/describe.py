"""Settings as commented YAML: every setting with its meaning, limits and default, ready to be edited."""

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import yaml

from enrich.settings.base import Settings

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_WIDTH = 110  # of a comment's text, in characters


def describe(cls: type[Settings], section: str | None = None) -> str:
    """All settings of `cls` with their defaults as YAML that `load_settings` reads; below `section`, if given."""
    schema = cls.model_json_schema()
    values = cls().model_dump(mode="json")
    heading, indent = ([], "") if section is None else ([f"{section}:"], "  ")
    lines = _describe(schema, schema.get("$defs", {}), values, indent)
    return "\n".join([f"# {_first_line(schema)}", *heading, *lines]) + "\n"


def _describe(
    schema: dict[str, Any], definitions: dict[str, Any], values: dict[str, Any], indent: str
) -> Iterator[str]:
    for name, field in schema["properties"].items():
        nested = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        if "properties" not in nested:
            yield from (f"{indent}# {line}" for line in wrap(_meaning(field), _WIDTH))
            yield f"{indent}{name}: {_yaml(values[name])}"
        else:
            yield from (f"{indent}# {line}" for line in wrap(field.get("description") or _first_line(nested), _WIDTH))
            yield f"{indent}{name}:"
            yield from _describe(nested, definitions, values[name], indent + "  ")


def _meaning(field: dict[str, Any]) -> str:
    """Description, then what is allowed: `Passes over the catalog (> 0, <= 1000)`."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    allowed = [f"{sign} {field[name]:g}" for name, sign in _BOUNDS.items() if name in field]
    choices = [str(choice) for kind in kinds for choice in kind.get("enum", [kind["const"]] if "const" in kind else [])]
    if choices:
        allowed.append("one of " + ", ".join(choices))
    elif not allowed:
        allowed = sorted({_KINDS.get(kind.get("type", ""), "") for kind in kinds} - {""})
    return f"{field.get('description', '').rstrip('.')} ({', '.join(allowed)})".strip()


_KINDS = {
    "string": "text",
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "array": "list",
    "object": "mapping",
}


def _first_line(schema: dict[str, Any]) -> str:
    return str(schema.get("description", "")).split("\n")[0].rstrip(".")


def _yaml(value: Any) -> str:
    """One value in YAML's flow style, on one line."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=float("inf")).strip()[1:-1]
