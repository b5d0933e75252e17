"""The table of docs/catalogs.md that `docs.reference` writes: the catalogs that tests/catalog reads."""

from docs.markdown import table
from tests.testing.sources import BY_ITSELF, ENCODINGS, ROWS, SEPARATORS, SOURCES


def source_tables() -> dict[str, str]:
    """By the names of their markers: a row for each format, and the encodings and separators of texts."""
    return {"sources": _sources(), "texts": _texts()}


def _sources() -> str:
    rows = [
        [
            source.name,
            ", ".join(f"`{name}`" for name in source.files([b""] * len(ROWS))),
            source.photos,
            "none" if source.columns == BY_ITSELF else "`columns`",
            source.note or "-",
        ]
        for source in SOURCES
    ]
    return table(("source", "file", "photos", "settings", "notes"), rows)


def _texts() -> str:
    encodings = ", ".join(dict.fromkeys(named for _, _, named in ENCODINGS))
    return f"Encodings: {encodings}. Separators: {', '.join(SEPARATORS.values())}.\n"
