"""Tables of standard taxonomies, and catalogs that use their categories."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import zip_longest
from pathlib import PurePosixPath

import polars as pl

from enrich.answers.path import joined, levels_of
from enrich.answers.plain_text import excerpt, fault_of
from enrich.catalog.cells import clean
from enrich.catalog.read import Catalog
from enrich.catalog.table import read_table
from enrich.errors import UsageError
from enrich.storage import Problem, StorageError, open_store
from enrich.vocabulary import same_design

MAX_BYTES = 64 << 20  # Shopify's 12,000 categories take 1.5 MB as text
_TABLES = (".csv", ".tsv", ".parquet")
# `166 - Apparel & Accessories` (Google), `gid://shopify/TaxonomyCategory/aa : Apparel & Accessories` (Shopify).
_LINE = re.compile(r"(?P<id>\S+)\s+[-:]\s+(?P<path>.+)")
_SHOWN = 3  # categories in a message


@dataclass(frozen=True)
class Taxonomy:
    """The categories of a standard."""

    name: str  # where it was read
    ids: Mapping[str, str]  # path -> id

    @cached_property
    def _known(self) -> dict[str, str]:
        """Ids, and paths in lower case -> path. GS1's paths have levels that repeat the one above, which catalogs leave
        out: a path is also found without such levels, unless two paths would then be the same."""
        shorter: dict[str, list[str]] = defaultdict(list)
        for path in self.ids:
            shorter[_without_repeats(path)].append(path)
        return {
            **{identity: path for path, identity in self.ids.items()},
            **{short: paths[0] for short, paths in shorter.items() if len(paths) == 1},
            **{same_design(path): path for path in self.ids},
        }

    def path_of(self, label: str) -> str | None:
        """The path that `label` names, by its levels or by its id; None if it names none."""
        return self._known.get(same_design(joined(levels_of(label)))) or self._known.get(label)


def _without_repeats(path: str) -> str:
    """The path in lower case, without levels that the next one repeats (`cells.levels`)."""
    levels = list(map(same_design, levels_of(path)))
    return joined([level for level, after in zip_longest(levels, levels[1:]) if level != after])


def read_taxonomy(uri: str) -> Taxonomy:
    """The table at `uri`: columns path and id (CSV, TSV, Parquet), or lines of an id and a path (Google, Shopify).

    Raises:
        UsageError: there is no such table, it is too large or cannot be read, or a path or an id is there twice.
    """
    where = f"taxonomy {uri}"
    parent, _, name = uri.rpartition("/")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in (*_TABLES, ".txt"):
        raise UsageError(f"{where}: neither .csv, .tsv, .parquet nor .txt; convert it to one of these")
    try:
        store = open_store(parent or ("/" if uri.startswith("/") else "."), must_exist=True)
        data, _ = store.get(name, MAX_BYTES)
    except StorageError as error:
        if error.problem is Problem.NOT_FOUND:
            raise UsageError(f"{where}: no such file; check the path") from error
        if error.problem is Problem.TOO_LARGE:
            raise UsageError(f"{where}: larger than {MAX_BYTES:,} bytes; name the table of one standard") from error
        raise
    rows = _lines(data, where) if suffix == ".txt" else _rows(data, uri, where)
    return Taxonomy(where, _checked(rows, where))


def adopt(catalog: Catalog, taxonomy: Taxonomy, *, strict: bool = True) -> Catalog:
    """The catalog with its categories as the taxonomy writes them, and their ids.

    Args:
        strict: False leaves categories that the taxonomy lacks as they are.

    Raises:
        UsageError: the taxonomy lacks some.
    """
    paths = {label: taxonomy.path_of(label) for label in catalog.categories}
    if strict and (unknown := [label for label, path in paths.items() if path is None]):
        named = zip(unknown[:_SHOWN], _nearest(unknown[:_SHOWN], taxonomy), strict=True)
        shown = ", ".join(
            f"{excerpt(label)!r}" + (f" (nearest: {excerpt(near, 120)!r})" if near else "") for label, near in named
        )
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        raise UsageError(
            f"{taxonomy.name}: {len(unknown):,} of {len(paths):,} categories of the catalog are not in it: "
            f"{shown}{more}; write them as the table does, as paths or as ids"
        )
    label_of = {label: path or label for label, path in paths.items()}
    own = set(label_of.values())
    return replace(
        catalog,
        products=tuple(replace(product, category=label_of[product.category]) for product in catalog.products),
        categories=tuple(sorted(own)),
        paths={label_of[label]: levels_of(label_of[label]) if paths[label] else path
               for label, path in catalog.paths.items()},
        category_ids={label: taxonomy.ids[label] for label in sorted(own) if label in taxonomy.ids},
    )  # fmt: skip


def _nearest(labels: Sequence[str], taxonomy: Taxonomy) -> list[str | None]:
    """For each label a path with the same last level, or that similar levels lead to from the broadest on."""
    known = {tuple(map(same_design, levels_of(path))): path for path in taxonomy.ids}
    by_leaf = {key[-1]: path for key, path in reversed(known.items())}
    children: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for key in known:
        for depth, level in enumerate(key):
            children[key[:depth]].add(level)

    def nearest(label: str) -> str | None:
        at: tuple[str, ...] = ()
        levels = list(map(same_design, levels_of(label)))
        if levels and levels[-1] in by_leaf:
            return by_leaf[levels[-1]]
        for level in levels:
            if not (close := get_close_matches(level, children[at], n=1)):
                break
            at = (*at, close[0])
        return known.get(at)

    return list(map(nearest, labels))


def _rows(data: bytes, uri: str, where: str) -> Iterable[tuple[str, str, str]]:
    """(place, path, id) of each row of a table."""
    table = read_table(PurePosixPath(uri), data, uri)
    by_name = {column.strip().lower(): column for column in table.columns}
    if missing := [name for name in ("path", "id") if name not in by_name]:
        there = ", ".join(table.columns[:30]) or "none"
        raise UsageError(f"{where}: no column {missing[0]!r}; its columns are: {there}; name them path and id")
    rows = table.select(by_name["path"], by_name["id"]).iter_rows()
    return ((f"row {number:,}", path, identity) for number, (path, identity) in enumerate(rows, start=1))


def _lines(data: bytes, where: str) -> Iterable[tuple[str, str, str]]:
    """(place, path, id) of each line of a standard's text file; `#` begins a comment."""
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is not UTF-8; save it as UTF-8") from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if not (match := _LINE.fullmatch(line)):
            raise UsageError(f"{where}: line {number:,} is not `ID - PATH`: {excerpt(line)!r}; name the file with ids")
        yield f"line {number:,}", match["path"], match["id"]


def _checked(rows: Iterable[tuple[str, str, str]], where: str) -> dict[str, str]:
    """path -> id, with the paths in one form, as a catalog's cells are."""
    ids: dict[str, str] = {}
    seen: dict[str, str] = {}  # what may be there once -> its place
    table = pl.DataFrame(list(rows), schema=dict.fromkeys(("place", "path", "id"), pl.String), orient="row")
    for place, written, identity in table.select("place", clean("path"), clean("id")).iter_rows():
        path = joined(levels_of(written))
        if not path or not identity:
            raise UsageError(f"{where}: {place} has no {'id' if path else 'path'}; fill it in, or take the row out")
        if fault := fault_of(written):  # the path lost the `>` of a token
            raise UsageError(f"{where}: {place} {fault}: {excerpt(written)!r}; correct it")
        for what, value in (("path", same_design(path)), ("id", f"\0{identity}")):
            if (first := seen.setdefault(value, place)) != place:
                raise UsageError(f"{where}: {place} has the {what} of {first}: {excerpt(written)!r}; take one out")
        ids[path] = identity
    if not ids:
        raise UsageError(f"{where}: it has no rows; name the table of a standard")
    return ids
