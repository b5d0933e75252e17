"""Refuse overlapping locations, where a command's output would overwrite its input or become part of it."""

from enrich.errors import UsageError
from enrich.storage import contains, overlap


def check_places(images: str, adapter: str, output: str) -> None:
    """UsageError where a run's photos, adapter and tables share files.

    An output or an adapter below the images would be enriched the next night; images below the output could be
    overwritten; an output in an adapter's directory is deleted when a new adapter replaces that one.
    """
    if overlap(images, output):
        raise UsageError(f"output {output} and images {images} overlap; keep them apart")
    if contains(images, adapter):
        raise UsageError(f"adapter {adapter} is inside the images {images}, but has no photos; keep them apart")
    if contains(adapter, output):
        raise UsageError(
            f"output {output} is inside the adapter {adapter}, which the next adapter replaces; keep them apart"
        )


def check_taught(images: str, folder: str, catalog: str) -> None:
    """UsageError if photos added to the `folder` of a catalog would be taken for new photos of the shop."""
    if contains(images, folder):
        raise UsageError(
            f"catalog {catalog}: the photos added to it would be inside the images {images}, and enriched again; "
            "keep them apart"
        )


def check_replaced(out: str, source: str, what: str) -> None:
    """UsageError where writing a whole directory to `out` could replace what it is made from."""
    if contains(out, source):
        raise UsageError(f"out {out}: the {what} {source} is inside, and would be replaced; name another location")


def check_outside(out: str, images: str) -> None:
    """UsageError if files written to `out` would be among photos."""
    if contains(images, out):
        raise UsageError(f"out {out}: is inside the photos {images}; name another location")
