"""Further fields of a catalog: the columns that a dialect has for them, and a product's value in each."""

from collections.abc import Mapping

from sample.spec import HIDDEN, Dialect

_FURTHER = frozenset(name for attributes in HIDDEN.values() for name in attributes)


def field_columns(dialect: Dialect, photos: int) -> tuple[str, ...]:
    """The dialect's further columns; those of which only a further photo tells need products of several `photos`."""
    return tuple(name for name in dialect.fields if photos > 1 or name not in _FURTHER)


def field_values(kind: str, attributes: Mapping[str, str], dialect: Dialect, photos: int) -> dict[str, str]:
    """For example {"colour": "Navy", "sleeve": "Short Sleeve", "heel": ""}; empty where it does not apply, or where no
    photo shows it."""
    told = {}
    for column in field_columns(dialect, photos):
        words = dialect.fields[column]
        found = (words.get(f"{kind}.{name}={v}", words.get(f"{name}={v}", "")) for name, v in attributes.items())
        told[column] = next(filter(None, found), words.get(kind, ""))
    return told
