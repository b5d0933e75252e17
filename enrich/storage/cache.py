"""This machine's cache directory: uploads in progress, merged weights, and compiled code."""

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from enrich.errors import RunFailed, UsageError

logger = logging.getLogger(__name__)

VARIABLE = "ENRICH_CACHE"
_COMPILED = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def cache_directory() -> Path:
    """The folder $ENRICH_CACHE, else $XDG_CACHE_HOME/enrich, else ~/.cache/enrich, made and found to be writable.

    In a container with another user's id, or none, the home may not be writable: then a folder in TMPDIR that only this
    user can access is used instead, and the log says so once.

    Raises:
        UsageError: the folder in ENRICH_CACHE is not writable, or none of them is.
    """
    return _found(os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


@cache
def _found(named: str | None, xdg: str | None, home: str | None) -> Path:
    """`cache_directory` for given environment variables."""
    if named:
        folder = Path(named).expanduser().absolute()
        try:
            return _writable(folder)
        except OSError as error:
            raise UsageError(f"{VARIABLE} {folder}: {error.strerror or error}; set it to a writable folder") from error
    usual = [Path(xdg) / "enrich"] if xdg and os.path.isabs(xdg) else []
    with suppress(RuntimeError):  # no HOME, and no such user
        usual.append(Path.home() / ".cache" / "enrich")
    for folder in usual:
        with suppress(OSError):
            return _writable(folder)
    folder = Path(tempfile.gettempdir()) / f"cache-of-enrich-{os.getuid()}"
    try:
        _own(folder)
        _writable(folder)
    except OSError as error:
        tried = ", ".join(map(str, [*usual, folder]))
        raise UsageError(
            f"no folder for unfinished work: {tried} cannot be written to ({error.strerror or error}); "
            f"set {VARIABLE} to one that can"
        ) from error
    where = usual[-1] if usual else "~/.cache/enrich"
    logger.warning("%s is not writable: using %s; set %s to a folder that persists", where, folder, VARIABLE)
    return folder


def _writable(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _own(folder: Path) -> None:
    """Create a folder in a shared location, or check that an existing one belongs to this user only.

    Others can guess its name; anything that they put there, especially a link, is refused with PermissionError.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(1, "another user owns it, or others can access it", str(folder))


def keep_compiled_code() -> None:
    """Let vLLM, PyTorch and Triton keep compiled code in the cache directory, each under its own keys.

    TMPDIR and the home of a container, where they keep it otherwise, do not outlive the container. Places that the
    environment names already stay.
    """
    kept = cache_directory() / "compiled"
    for name, folder in _COMPILED.items():
        os.environ.setdefault(name, str(kept / folder))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system about `folder` into RunFailed, with advice."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else folder
        raise RunFailed(
            f"{where}: {error.strerror or error}; make room there, or name another location: the output, {VARIABLE} "
            "for unfinished work and merged weights, or TMPDIR for what ends with the command"
        ) from error
