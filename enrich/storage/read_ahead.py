"""Read weights from disk into memory while the code that loads them is still being imported."""

import os
import threading
from contextlib import suppress
from pathlib import Path


def read_ahead(folder: Path) -> threading.Thread:
    """Ask the kernel to read the safetensors in `folder` into its page cache, as far as there is room."""

    def ask() -> None:
        for file in sorted(folder.glob("*.safetensors")):
            with suppress(OSError):  # loading them says what is wrong
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    thread = threading.Thread(target=ask, daemon=True, name="enrich-read-ahead")
    thread.start()
    return thread
