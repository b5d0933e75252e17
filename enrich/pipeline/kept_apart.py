"""Refuse overlapping locations, where a command's output would overwrite its input or become part of it."""

from enrich.errors import UsageError
from enrich.storage import contains, overlap

_OWN = ("products.parquet", "history", "runs", "reviews")  # of an output


def check_file(option: str, file: str, output: str) -> None:
    """UsageError where the file that `option` names would replace one of an output's own."""
    for own in _OWN:
        if contains(f"{output.rstrip('/')}/{own}", file):
            raise UsageError(f"{option} {file}: would replace what output {output} keeps in {own}; name another file")


def check_places(images: str, adapter: str, output: str) -> None:
    """UsageError where a run's photos, adapter and tables share files.

    An output or an adapter below the images would be enriched the next night; images below the output could be
    overwritten; an output in an adapter's directory is deleted when a new adapter replaces that one.
    """
    for name, place in (("adapter", adapter), ("output", output)):
        if not place.strip():  # as a path it would be the working directory
            raise UsageError(f"the URI of the {name} is empty; give s3://bucket/prefix or a local path")
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
