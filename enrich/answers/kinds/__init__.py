"""The kinds of fields, one module each."""

from importlib import import_module
from pkgutil import iter_modules

from enrich.answers.kinds.base import Kind

KINDS: dict[str, Kind] = {
    name: import_module(f"{__name__}.{name}").KIND for _, name, _ in iter_modules(__path__) if name != "base"
}

__all__ = ["KINDS", "Kind"]
