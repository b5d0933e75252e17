"""Export formats, one module each."""

from importlib import import_module
from pkgutil import iter_modules

from enrich.feeds.formats.base import Feed, Format

FORMATS: dict[str, Format] = {
    name: import_module(f"{__name__}.{name}").FORMAT for _, name, _ in iter_modules(__path__) if name != "base"
}

__all__ = ["FORMATS", "Feed", "Format"]
