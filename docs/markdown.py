"""Markdown that the generated pages share."""

from collections.abc import Mapping, Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its last line ended."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def between_markers(text: str, parts: Mapping[str, str]) -> str:
    """`text` with each part rewritten between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    for name, part in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        text = before + start + part + end + rest.partition(end)[2]
    return text
