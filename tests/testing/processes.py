"""The decoding processes that a process has started."""

import os
from contextlib import suppress
from pathlib import Path


def decoding_processes(parent: int | None = None) -> set[int]:
    """Process ids of the decoders that `parent` (by default this process) has running."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ours = int(fields[1]) == (parent or os.getpid()) and fields[0] != "Z"
            if ours and b"enrich.photos.decoder_process" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found
