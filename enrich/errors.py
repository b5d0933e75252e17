"""Errors for users. Each message is one line: what, where, and what to do next; each error has an exit code."""

import copy
import errno
import re
import shlex
from typing import TypeVar

from enrich.vocabulary import ErrorKind

_LONGEST = 500  # characters of a library's message
_SECRETS = (
    # User and password of a URL. A port and a path with an @ in it (`//host:80/a@2x.jpg`) do not count.
    (re.compile(r"(?<=://)(?:[^\s/?#\"']*|[^\s/?#:@\"']*:(?!\d+(?:[/?#]|$))[^\s\"']*)@"), ""),
    # Values of a query that grant access: those that S3 signs with, and what other services call theirs.
    (
        re.compile(
            r"(?i)([?&;#](?:x-(?:amz|goog)-[\w-]+|awsaccesskeyid|signature|sig|policy|key-pair-id|auth|authorization|key"
            r"|[\w-]*(?:token|secret|password|passwd|pwd|credential|api[_-]?key)[\w-]*)=)[^&;\s\"'#<>]+"
        ),
        r"\1***",
    ),
)


def redact(text: str) -> str:
    """`text` without the passwords, tokens and signatures of the URLs in it."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def one_line(text: str) -> str:
    """`text` safe to show: one line without secrets or terminal control sequences, and valid Unicode."""
    line = re.sub(r"\s*[\x00-\x1f\x7f-\x9f\u2028\u2029]+\s*", " ", text).strip()
    return redact(line).encode("utf-8", "backslashreplace").decode()


def shell(word: str) -> str:
    """A word of a command in a message, on one line and quoted if a shell needs it."""
    return shlex.quote(one_line(word))


class EnrichError(Exception):
    """Something the user can act on. `exit_code` is the command's exit status; 1 unless a class says otherwise."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(str(self.args[-1])) if self.args else ""


class UsageError(EnrichError):
    """Wrong arguments, settings or input: nothing was started and nothing was written."""

    exit_code = 2


class Unreachable(UsageError):
    """A place that does not answer. Its address may be wrong; or it is away, and the same succeeds later."""


class RunFailed(EnrichError):
    """The run started and could not finish; what it committed is kept, and the same run id continues it."""


class PermanentFailure(RunFailed):
    """A failure that lasts until a person changes something, such as a damaged file. Trying again finds the same."""


class ParityFailed(PermanentFailure):
    """The engine does not serve the model that was trained."""


class HeldBack(EnrichError):
    """The work is done, but a person has to approve its result: the publish gate did not change products.parquet, or a
    fine-tuned adapter is no better than guessing."""

    exit_code = 3


class ImageError(EnrichError):
    """One image failed. `kind` is what its row says about it."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(kind, message)  # both, so that it survives pickling
        self.kind = kind


BUGS = TypeError | AttributeError | NameError | ImportError | AssertionError  # which only another version is without
E = TypeVar("E", bound=EnrichError)


def located(error: E, place: str) -> E:
    """The same error, its message preceded by where it happened."""
    again = copy.copy(error)
    again.args = (*error.args[:-1], f"{place}: {error}")
    return again


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, of which some list all that they know; its type if it has none."""
    whole = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = redact(whole)  # before a cut hides where a secret ends
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} [...]"


def unforeseen(error: BaseException) -> RunFailed:
    """An unexpected error as one of ours; what the operating system refuses, the user can fix."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return RunFailed(
                f"{where}no space left on the disk; free some, or set TMPDIR to a larger one, and run again"
            )
        return RunFailed(f"{where}{error.strerror or error}; check the disk and the permissions, and run again")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return RunFailed("out of memory; lower in_flight or batch_size, or use a larger machine, and run again")
    if "operator torchvision::" in _told(error):
        return PermanentFailure(
            "torchvision does not match this torch; install a matching build, or uninstall torchvision"
        )
    message = (str(error).strip().splitlines() or [""])[0]
    # Names, since Polars is not imported here. PanicException is how its reader fails on some damaged headers.
    by_polars = type(error).__name__ in ("ComputeError", "PanicException")
    if by_polars and (message.startswith("parquet") or "OutOfSpec" in message):
        return PermanentFailure(
            f"a Parquet file is damaged ({message[:200]}); rebuild products.parquet from history with "
            "`enrich rebuild --output URI`, or move the run's files away and start it again"
        )
    kind = PermanentFailure if isinstance(error, BUGS) else RunFailed
    return kind(f"{type(error).__name__}: {message[:500]}; set ENRICH_DEBUG=1 to see where, and report it")


def _told(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    return f"{error} {_told(error.__cause__ or error.__context__)}" if error else ""
