"""Parse the subset of YAML that settings files need; anything else gets a one-line error."""

from pathlib import Path
from typing import Any

import yaml

from enrich.errors import UsageError

_MAX_BYTES = 1 << 20  # per settings file; a file with all settings takes about 10 kB


class _PlainLoader(yaml.SafeLoader):
    """YAML as settings need it: text, numbers, lists and mappings of distinct names. A date stays the text it is."""

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
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} comes twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file, empty for an empty one.

    Raises:
        UsageError: it cannot be read, is not YAML, or does not hold a mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"settings file {path}: more than {_MAX_BYTES:,} bytes; name a YAML file of settings")
        loaded = yaml.load(data.decode("utf-8"), _PlainLoader)
    except OSError as error:
        raise UsageError(f"settings file {path}: {error.strerror or error}; name a readable YAML file") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:  # PyYAML lets some through
        raise UsageError(f"settings file {path} is not valid YAML: {_why(error)}; fix the file") from error
    if not isinstance(loaded, dict | None):
        raise UsageError(f"settings file {path} holds no mapping; write lines such as `epochs: 3`")
    return loaded or {}


def _why(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
