"""The bytes of a catalog's photos: files, or objects on S3 that are downloaded only when needed."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from enrich.storage import ObjectInfo, Store

_PIECE = 1024  # bytes from the middle of a file, which tell most files of one size apart


@dataclass(frozen=True)
class PhotoFiles:
    """Photos by their paths. Those of `listed` keys below `directory` are objects in `store`, the others files."""

    directory: str = ""
    store: Store | None = None
    listed: Mapping[str, ObjectInfo] = field(default_factory=dict)

    def read(self, path: str, most: int) -> bytes:
        """The bytes of the photo, at most one more than `most`. Raises OSError or StorageError."""
        if self.store is not None and (there := self._listed(path)):
            return self.store.get(there.key, most)[0]
        with open(path, "rb") as file:
            return file.read(most + 1)

    def same(self, paths: Sequence[str]) -> dict[str, str]:
        """A text for each path that equals another's where the bytes do. Files are read only where the sizes, and a
        piece from their middles, agree; objects have their etag, which several uploads in parts may make differ."""
        objects = {path: there for path in paths if (there := self._listed(path))}
        found = {path: f"{there.size} {there.etag}" for path, there in objects.items()}
        files = {path: str(os.stat(path).st_size) for path in paths if path not in objects}
        for look in (_middle, _digest):
            often = Counter(files.values())
            files = {path: f"{seen} {look(path)}" if often[seen] > 1 else seen for path, seen in files.items()}
        return found | files

    def _listed(self, path: str) -> ObjectInfo | None:
        inside = self.store is not None and path.startswith(self.directory + os.sep)
        return self.listed.get(os.path.relpath(path, self.directory)) if inside else None


def _middle(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(os.fstat(file.fileno()).st_size // 2)
            return hashlib.blake2b(file.read(_PIECE), digest_size=8).hexdigest()
    except OSError:  # it is said where the photo is looked at
        return path


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return path
