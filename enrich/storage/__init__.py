"""Objects in S3 or in a local folder, behind one protocol: `Store`. Only `enrich.storage.s3` knows S3.

Commits rest on two operations that happen whole or not at all: `create` (only if absent) and `replace` (compare and
swap on the etag). Names that begin with `.enrich-` are this package's own (staged files, locks, probes): listings leave
them out, and `remove_abandoned` removes those that a killed process left.
"""

import re
from pathlib import Path

from enrich.errors import UsageError
from enrich.settings.storage import PLAIN_S3, S3Settings
from enrich.storage.containment import contains, overlap
from enrich.storage.local import open_local
from enrich.storage.store import Body, ObjectInfo, Problem, StorageError, Store, is_s3, real_place
from enrich.storage.tree import read_tree, write_tree

__all__ = [
    "Body", "ObjectInfo", "Problem", "StorageError", "Store", "contains", "folder_of_file", "is_s3", "open_store",
    "overlap", "read_tree", "real_place", "write_tree",
]  # fmt: skip


def open_store(uri: str, *, must_exist: bool = False, create: bool = False, s3: S3Settings = PLAIN_S3) -> Store:
    """The store at `s3://bucket/prefix` or at a local path, checked to be usable.

    Args:
        uri: S3 is found as boto3 finds it: AWS_* variables, profiles, roles, AWS_ENDPOINT_URL.
        must_exist: A local directory must exist. (A bucket always must; a prefix never needs to.)
        create: Make the local directory and its parents.
        s3: What the bucket requires.

    Raises:
        UsageError: it does not exist or cannot be accessed; the message says what to do.
    """
    if not uri.strip():
        raise UsageError("the URI is empty; give s3://bucket/prefix or a local path")
    if is_s3(uri):
        from enrich.storage.s3 import open_s3  # boto3 costs 0.3 s that local folders need not pay

        return open_s3(uri, s3)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", uri):
        raise UsageError(f"{uri}: unknown scheme; use s3://bucket/prefix or a local path")
    return open_local(uri, must_exist=must_exist, create=create)


def folder_of_file(option: str, file: str) -> tuple[str, str]:
    """The folder's URI and the name of `file`, a local path or s3://bucket/key; UsageError for a directory.

    Args:
        option: the option that names the file, for the message.
    """
    folder, _, name = file.rpartition("/")
    if not file.strip():
        raise UsageError(f"{option} is empty; name a file, such as {option} s3://bucket/key")
    if not name or Path(file).is_dir():
        raise UsageError(f"{option} {file}: is a directory; name a file in it")
    return folder or ("/" if file.startswith("/") else "."), name
