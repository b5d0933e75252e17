"""Titles by grammar: a dialect's words for what is visible, in the dialect's order."""

from collections.abc import Mapping

from sample.spec import Dialect


def title(kind: str, attributes: Mapping[str, str], dialect: Dialect) -> str:
    """For example "Short-Sleeve Shirt in Navy Check". A pure function of what the photo shows."""
    words = []
    for slot in dialect.title:
        if slot.startswith(":"):
            words.append(slot[1:])
        elif slot == "kind":
            words.append(dialect.words.get(kind, ""))
        elif slot in attributes:
            name = f"{slot}={attributes[slot]}"
            words.append(dialect.words.get(f"{kind}.{name}", dialect.words.get(name, "")))
    return dialect.joint.join(word for word in words if word).strip()
