"""What decoding processes do in tests in place of `prepare`. They import this module, so it imports little."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from enrich.photos.decode import Admit, ImageRefused, Photo, inspect
from enrich.vocabulary import ErrorKind

if TYPE_CHECKING:
    from enrich.settings.photos import PhotoLimits


def tell_modules(data: bytearray, limits: "PhotoLimits", admit: Admit) -> Photo:
    """Refuses, and names the packages that the process has loaded."""
    raise ImageRefused(ErrorKind.NOT_AN_IMAGE, " ".join(sorted({name.partition(".")[0] for name in sys.modules})))


def compute_half_a_second(data: bytearray, limits: "PhotoLimits", admit: Admit) -> Photo:
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    return inspect(bytes(data), limits)


def say_so_and_compute(data: bytearray, limits: "PhotoLimits", admit: Admit) -> Photo:
    """Leaves the process's id in the file that the environment names."""
    mark = Path(os.environ["DECODING"])
    mark.with_suffix(".new").write_text(str(os.getpid()))
    mark.with_suffix(".new").rename(mark)
    return compute_half_a_second(data, limits, admit)
