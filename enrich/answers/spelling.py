"""One spelling for categories that differ only in case or spacing."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from enrich.vocabulary import same_design

_SHOWN = 5  # joined names in a message
Path = tuple[str, ...]


def one_spelling(paths: Sequence[Path], what: str = "categories") -> tuple[list[Path], list[str]]:
    """The paths with each level in its most frequent spelling, and a line that names those that were joined.

    Levels are compared only below the same parent levels; a leaf is a path of one level.
    """
    groups: dict[Path, Counter[str]] = defaultdict(Counter)
    for path, count in Counter(paths).items():
        key = tuple(map(same_design, path))
        for depth, level in enumerate(path, start=1):
            groups[key[:depth]][level] += count
    chosen: dict[Path, str] = {}
    joined: list[str] = []
    for at, spellings in groups.items():
        # Of equally frequent ones, neither SHIRTS nor shirts but Shirts.
        best = max(spellings, key=lambda one: (spellings[one], not (one.isupper() or one.islower()), one))
        chosen[at] = best
        others = sorted(set(spellings) - {best})
        joined += [f"{', '.join(others)} as {best}"] if others else []
    spelled = {path: _spelled(path, chosen) for path in set(paths)}
    more = f" and {len(joined) - _SHOWN} more" if len(joined) > _SHOWN else ""
    told = [f"{what} that differ only in case are merged: {'; '.join(joined[:_SHOWN])}{more}"] if joined else []
    return [spelled[path] for path in paths], told


def _spelled(path: Path, chosen: dict[Path, str]) -> Path:
    key = tuple(map(same_design, path))
    return tuple(chosen[key[:depth]] for depth in range(1, len(path) + 1))
