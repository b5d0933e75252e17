"""Facts about a catalog's photos, found without a model: sizes, issues, broken files, and repeated pictures."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from enrich.catalog.find_photo import is_url
from enrich.catalog.photo_files import PhotoFiles
from enrich.errors import ImageError
from enrich.photos.decode import squeeze
from enrich.photos.decoders import Decoders, cores
from enrich.photos.likeness import SIDE, alike, look
from enrich.settings.photos import PhotoLimits
from enrich.storage import StorageError
from enrich.vocabulary import PhotoIssue, Product

_READERS = 8  # photos read at once: about 30 ms each on S3


@dataclass(frozen=True)
class Shot:
    """A photo of a product."""

    product_code: str
    path: str


@dataclass(frozen=True)
class Picture:
    """One picture in photos of several products, a photo of each."""

    shots: tuple[Shot, ...]
    exact: bool  # whether these have the same bytes, or one URL; else some only look the same


@dataclass(frozen=True)
class Broken:
    """A photo that cannot be read, or decoded."""

    shot: Shot
    reason: str


@dataclass(frozen=True)
class PhotoFacts:
    """What is known about the photos. Sizes, issues and similar pictures cover only the decoded photos."""

    files: int
    urls: int
    bytes: int
    looked_at: int  # of the files that differ in their bytes
    sizes: tuple[tuple[int, int], ...]  # width and height of these
    broken: tuple[Broken, ...]
    issues: Mapping[PhotoIssue, tuple[Shot, ...]] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()  # of several products

    def sharing(self, *, exact: bool) -> int:
        """How many products share a picture: its bytes, or only its looks."""
        return len({shot.product_code for one in self.pictures if one.exact is exact for shot in one.shots})


@dataclass(frozen=True)
class _Seen:
    size: tuple[int, int]
    issues: tuple[PhotoIssue, ...]
    look: np.ndarray


def look_at_photos(
    products: Sequence[Product], files: PhotoFiles, limits: PhotoLimits, most: int, progress: Callable[[int, int], None]
) -> PhotoFacts:
    """The facts about all photos of the products, at most `most` of which are decoded, in resource-limited
    processes."""
    shots: dict[str, list[Shot]] = defaultdict(list)
    for main in (True, False):  # so that main photos are looked at first
        for one in products:
            for path in one.image_paths[:1] if main else one.image_paths[1:]:
                shots[path].append(Shot(one.product_code, path))
    there = [path for path in shots if not is_url(path)]
    same = files.same(there)
    by_bytes: dict[str, list[Shot]] = defaultdict(list)
    for path, found in shots.items():
        by_bytes[same.get(path, path)] += found
    distinct = [found[0].path for key, found in by_bytes.items() if not is_url(key)]
    mains = len({same[one.image_paths[0]] for one in products if not is_url(one.image_paths[0])})
    seen: dict[str, _Seen] = {}
    broken = []
    for path, result in _look(_spread(distinct, mains, most), files, limits, progress):
        if isinstance(result, _Seen):
            seen[same[path]] = result
        else:
            broken += [Broken(shot, result) for shot in by_bytes[same[path]]]
    return PhotoFacts(
        files=len(there),
        urls=len(shots) - len(there),
        bytes=sum(os.stat(path).st_size for path in there),
        looked_at=len(seen) + len({one.shot.path for one in broken}),
        sizes=tuple(one.size for one in seen.values()),
        broken=tuple(broken),
        issues={
            issue: tuple(shot for key, one in seen.items() if issue in one.issues for shot in by_bytes[key])
            for issue in PhotoIssue
        },
        pictures=tuple(_pictures(by_bytes, seen)),
    )


def _spread(paths: Sequence[str], mains: int, most: int) -> list[str]:
    """At most `most` of them, main photos (the first `mains`) before others, spread evenly over both."""
    chosen: list[str] = []
    for part in (paths[:mains], paths[mains:]):
        room = min(most - len(chosen), len(part))
        chosen += [part[number * len(part) // room] for number in range(room)]
    return chosen


def _look(
    paths: Sequence[str], files: PhotoFiles, limits: PhotoLimits, progress: Callable[[int, int], None]
) -> Iterator[tuple[str, _Seen | str]]:
    """What each photo looks like, or why that is unknown."""
    if not paths:
        return
    work, processes = partial(squeeze, side=SIDE), min(cores(), 4)
    with (
        Decoders(work, limits, processes, most_pixels=SIDE * SIDE) as decoders,
        ThreadPoolExecutor(_READERS) as pool,
    ):

        def one(path: str) -> _Seen | str:
            try:
                photo = decoders.decode(files.read(path, limits.max_bytes))
            except (ImageError, StorageError) as error:
                return str(error)
            except OSError as error:
                return error.strerror or str(error)
            return _Seen((photo.width, photo.height), photo.issues, look(photo.page))

        for number, found in enumerate(zip(paths, pool.map(one, paths), strict=True), start=1):
            progress(number, len(paths))
            yield found


def _pictures(by_bytes: Mapping[str, Sequence[Shot]], seen: Mapping[str, _Seen]) -> list[Picture]:
    """Pictures of several products, those in most of them first."""
    keys = list(seen)
    together = [[keys[number] for number in group] for group in alike([seen[key].look for key in keys])]
    grouped = {key for group in together for key in group}
    pictures = []
    for group in [*together, *([key] for key in by_bytes if key not in grouped)]:
        first: dict[str, Shot] = {}
        for key in group:
            for shot in by_bytes[key]:
                first.setdefault(shot.product_code, shot)
        if len(first) > 1:
            exact = any(len({shot.product_code for shot in by_bytes[key]}) == len(first) for key in group)
            pictures.append(Picture(tuple(first.values()), exact))
    return sorted(pictures, key=lambda one: -len(one.shots))
