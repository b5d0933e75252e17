"""Parse the subset of YAML that settings need; anything else gets a one-line error."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from enrich.errors import UsageError

_MAX_BYTES = 1 << 20  # per settings file; a file with all settings takes about 10 kB


class _PlainLoader(yaml.SafeLoader):
    """YAML reduced to what settings need: text, numbers, lists and mappings with unique keys. A date, or a time such as
    17:30, remains text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few lines of them expand to gigabytes
            raise yaml.MarkedYAMLError(problem="it has an alias (*name)", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key that is not a name", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 17:30 as a number to the base 60.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)\Z"),
    "tag:yaml.org,2002:float": re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_text(path: Path) -> str:
    """The text of a settings file.

    Raises:
        UsageError: it cannot be read, or is too large to be one.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"settings file {path}: {error.strerror or error}; name a readable YAML file") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"settings file {path}: more than {_MAX_BYTES:,} bytes; name a YAML file of settings")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"settings file {path} is not valid YAML: {error}; fix it") from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in `text`, empty if the text is; errors call it `source`.

    Raises:
        UsageError: it is not YAML, or not a mapping.
    """
    try:
        loaded = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:  # PyYAML lets some through
        raise UsageError(f"{source} is not valid YAML: {_why(error)}; fix it") from error
    if not isinstance(loaded, dict | None):
        raise UsageError(f"{source} is not a mapping; write lines such as `epochs: 3`")
    return loaded or {}


def line_of(text: str, names: Sequence[int | str]) -> int | None:
    """The line, from 1, of the value in the mapping `text` that the nested keys `names` lead to, or of the deepest of
    its parents that is there; None if that is the whole."""
    node, line = yaml.compose(text, _PlainLoader), None
    for name in names:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next((pair for pair in node.value if pair[0].value == name), None)
        if found is None:
            break
        key, node = found
        line = key.start_mark.line + 1
    return line


def _why(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
