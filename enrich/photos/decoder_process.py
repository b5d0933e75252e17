"""The decoding process: reads bytes from outside, and returns a JSON header and pixels, in limited memory and CPU time.

The limit is CPU time, not wall time, so that a photo is not blamed for a stopped process or a busy machine.
"""

import json
import mmap
import pickle
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import AvifImagePlugin, Image

from enrich.photos.decode import ImageRefused, Photo
from enrich.vocabulary import ErrorKind

# Bytes that each process may use without asking. Larger photos ask first, which limits how many are decoded at a time.
ORDINARY_BYTES = 256 << 20
UNIT = 64 << 20  # bytes; memory is granted in multiples of it
# Bytes of the photo; whether it may have all of decode_memory_bytes at once; whether it is not a main photo.
PHOTO_HEADER = struct.Struct("!Q??")
LENGTH = struct.Struct("!I")
GO = b"+"  # the answer to a photo that asked for memory


def serve(descriptor: int) -> None:
    """Decode photos from the socket `descriptor` until it is closed."""
    with suppress(OSError):  # out of memory, the kernel should kill this process and not the one with the engine
        Path("/proc/self/oom_score_adj").write_text("500")
    with socket.socket(fileno=descriptor) as pipe, suppress(EOFError, ConnectionError):  # the parent has ended
        work, settings = pickle.loads(_read(pipe, LENGTH.unpack(_read(pipe, LENGTH.size))[0]))
        limits = SimpleNamespace(**settings)
        _load_plugins(limits.formats)
        memory = _Memory(limits.decode_memory_bytes)
        send(pipe, {"started": True})
        while True:
            size, alone, further = PHOTO_HEADER.unpack(_read(pipe, PHOTO_HEADER.size))
            memory.allow(limits.decode_memory_bytes if alone else ORDINARY_BYTES)
            header, pixels = _answer(pipe, size, partial(work, further=True) if further else work, limits, memory)
            send(pipe, header, pixels)


def send(pipe: socket.socket, header: dict[str, Any], body: Any = b"") -> None:
    """Send a frame: the length of a JSON header, the header, and a body whose length follows from the header."""
    text = json.dumps(header).encode()
    pipe.sendall(LENGTH.pack(len(text)) + text)
    pipe.sendall(body)


def _answer(
    pipe: socket.socket, size: int, work: Callable[..., Photo], limits: Any, memory: "_Memory"
) -> tuple[dict[str, Any], Any]:
    """Decode the next photo, `size` bytes long. Returns the header to send and the pixels, which may be empty."""
    needed = 0

    def admit(wanted: int) -> None:
        nonlocal needed
        needed = max(needed, min(-(-wanted // UNIT) * UNIT, limits.decode_memory_bytes))
        if needed > memory.allowed:
            send(pipe, {"need": needed})
            _read(pipe, len(GO))
            memory.allow(needed)

    photo: Photo | None = None
    failure: dict[str, Any] = {}
    try:
        data = _read(pipe, size)
        signal.setitimer(signal.ITIMER_PROF, limits.decode_seconds)  # ends the process by SIGPROF
        try:
            photo = work(data, limits, admit=admit)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except ImageRefused as refusal:
        failure = {"kind": refusal.kind, "message": str(refusal)}
    except MemoryError:
        failure = {"hungry": True}  # the photo asks for too much, unless the machine lacks memory
    except OSError as error:
        if isinstance(error, ConnectionError) or error.errno is None:
            raise
        failure = {"short": True, "reason": error.strerror}
    if photo is None:
        data = bytearray()  # freed, like the pixels that the errors referred to, before `has` tries to allocate
        if "hungry" in failure:
            enough = memory.has(limits.decode_memory_bytes // 2)
        else:  # a codec that runs out of memory may report a broken photo
            broken = failure.get("kind") in (ErrorKind.NOT_AN_IMAGE, ErrorKind.TRUNCATED)
            enough = not broken or memory.has(needed // 2)
        return (failure if enough else {"short": True}), b""
    height, width = photo.page.shape[:2]
    header = {
        "rows": height, "columns": width, "width": photo.width, "height": photo.height, "format": photo.format,
        "unfinished": photo.unfinished, "issues": photo.issues,
    }  # fmt: skip
    return header, photo.page.reshape(-1).data


def _read(pipe: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = pipe.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _load_plugins(formats: tuple[str, ...]) -> None:
    """Load all plugins at the start: if Pillow could not import one later (too many open files), photos would fail."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # its threads would reserve memory; the processes already run in parallel
    Image.preinit()
    if not set(formats) <= set(Image.OPEN):
        Image.init()


class _Memory:
    """Limits the address space beyond what the process uses at its start. Only Linux enforces the limit."""

    def __init__(self, most: int) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crashing decoder must not write a core dump of gigabytes
        self._linux = sys.platform == "linux"
        self._most = most
        self._base = _address_space() if self._linux else 0
        self.allow(ORDINARY_BYTES)

    def allow(self, bytes_more: int) -> None:
        self.allowed = min(bytes_more, self._most)
        if self._linux:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            limit = self._base + self.allowed
            soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    def has(self, size: int) -> bool:
        """Whether the machine has this much memory now. If not, its lack is not the photo's fault."""
        if not self._linux:
            return True
        before = self.allowed
        self.allow(self._most)
        try:
            mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        except (OSError, ValueError):
            return False
        finally:
            self.allow(before)
        return True


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
