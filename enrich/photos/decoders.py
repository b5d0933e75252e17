"""The only entry point for bytes from outside: resource-limited processes decode or refuse them.

ImageRefused means that the bytes caused the failure. DecodingFailed means that something else did: the process was
killed from outside or stopped for good, or the machine had no memory. To tell the two apart, a photo that fails in an
ambiguous way is decoded once more by a new process, while no other large photo is being decoded.

Memory: each process may use ORDINARY_BYTES (256 MiB). A photo that needs more, according to the size in its header,
waits until `PhotoLimits.decode_total_bytes` has room for it. So N processes decode in at most N x 256 MiB +
decode_total_bytes. An idle process takes about 40 MB, most of it numpy and Pillow.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np

from enrich.errors import ImageError, RunFailed
from enrich.photos.decode import ImageRefused, Photo
from enrich.photos.decoder_process import GO, LENGTH, PHOTO_HEADER, UNIT
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import ErrorKind, PhotoIssue

Work = Callable[..., Photo]  # (data, limits, admit=...) -> Photo, like `decode.prepare`; must be picklable

PATIENCE = 10  # a process that sends nothing for so many times decode_seconds hangs or is stopped, and is given up
_START_SECONDS = 30.0  # importing Pillow and numpy takes 0.3 s; times PATIENCE, on a machine in trouble
_STARTS = 3
_MAX_HEADER_BYTES = 10_000
# Signals that a process causes itself. Others come from outside, such as SIGKILL from a kernel out of memory.
_FAULTS = {"SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP"}

# Ctrl-C reaches the whole process group, but the parent should stop this process.
_PROCESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = {path!r}
from enrich.photos.decoder_process import serve
serve({descriptor})
"""


class DecodingFailed(ImageError):
    """A photo was not decoded for a reason other than its bytes, so a later attempt may succeed."""


class Room:
    """The memory that large photos share (`PhotoLimits.decode_total_bytes`).

    Args:
        primitives: `threading`, or `multiprocessing` where several processes share it.
    """

    def __init__(self, limits: PhotoLimits, primitives: Any = threading) -> None:
        self._units = max(1, limits.decode_total_bytes // UNIT)
        self._free = primitives.Semaphore(self._units)
        self._turn = primitives.Lock()

    @contextmanager
    def take(self, size: int | None) -> Iterator[None]:
        """Wait for `size` bytes of it (None: all of it), and hold them for the block."""
        units = self._units if size is None else min(self._units, -(-size // UNIT))
        taken = 0
        try:
            with self._turn:  # one at a time: two that each hold half of what they need would wait forever
                for _ in range(units):
                    self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()


class Decoders:
    """Processes that decode photos. Safe to use from several threads; close it, or use it as a context."""

    def __init__(
        self, work: Work, limits: PhotoLimits, processes: int, *, most_pixels: int, room: Room | None = None
    ) -> None:
        """
        Args:
            work: the function that the processes apply to a photo.
            most_pixels: the most pixels that it may return.
            room: memory shared with other `Decoders`; by default not shared.
        """
        room = room or Room(limits)
        self._all = [_Decoder(work, limits, most_pixels, room) for _ in range(processes)]
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def decode(self, data: bytes, *, further: bool = False) -> Photo:
        """The result of the work for a photo, which `prepare` does otherwise for a `further` one of a product.

        Raises:
            ImageRefused: the bytes are not a photo, or decoding them needs more memory or CPU time than is allowed.
            DecodingFailed: something else prevented decoding.
            RunFailed: no decoding process starts.
        """
        with self.lend() as decode:
            return decode(data, further=further)

    @contextmanager
    def lend(self) -> Iterator[Callable[..., Photo]]:
        """`decode` of an idle process, reserved for the block."""
        decoder = self._idle.get()
        try:
            yield decoder.decode
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Kill the processes. A thread that waits for one gets an error."""
        for decoder in self._all:
            decoder.close()

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Suspicious(Exception):
    """Decoding failed in an ambiguous way; the error to raise, `args[0]`, if it fails again in a new process."""


class _Silent(Exception):
    """The process sent nothing for too long."""


class _Decoder:
    """One decoding process, restarted after a photo broke it. Used by one thread at a time.

    Each process has its own socket: with a shared one, a process killed while sending would leave the others waiting
    for its lock. Pages are sent as plain bytes, because unpickling data from a process that parsed hostile bytes would
    defeat its purpose. It is started as a command, because DataLoader workers may not start multiprocessing processes.
    """

    def __init__(self, work: Work, limits: PhotoLimits, most_pixels: int, room: Room) -> None:
        self._limits, self._most_pixels, self._room = limits, most_pixels, room
        self._job = pickle.dumps((work, limits.model_dump()))
        self._changing = Lock()  # guards the process: one thread decodes while another may close
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False
        self._silences = 0
        self._slice = max(1.0, limits.decode_seconds)  # seconds without data that count as one silence
        with suppress(OSError):  # `_get_ready` tries again and reports the error
            self._start()

    def decode(self, data: bytes, *, further: bool = False) -> Photo:
        """See `Decoders.decode`."""
        try:
            return self._try(data, further, alone=False)
        except _Suspicious:
            self._end()
        with self._room.take(None):
            try:
                return self._try(data, further, alone=True)
            except _Suspicious as again:
                self._end()
                raise again.args[0] from again

    def close(self) -> None:
        with self._changing:
            self._closed = True
            if self._process is not None:  # a thread that reads from its socket then gets an end of file
                self._process.kill()
                self._process.wait()

    def _try(self, data: bytes, further: bool, *, alone: bool) -> Photo:
        self._get_ready()
        assert self._process is not None
        self._silences = 0
        try:
            self._send(PHOTO_HEADER.pack(len(data), alone, further))
            self._send(data)
            header = self._receive_header()
            if "need" in header and not alone:
                with self._room.take(int(header["need"])):
                    self._send(GO)
                    return self._receive(self._receive_header())
            return self._receive(header)
        except _Silent as error:
            raise _Suspicious(_failed(f"the decoding process was silent for {PATIENCE * self._slice:g} s")) from error
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
            raise _Suspicious(self._verdict()) from error

    def _receive(self, header: dict[str, Any]) -> Photo:
        if "kind" in header:
            raise ImageRefused(ErrorKind(header["kind"]), header["message"])
        if "short" in header:
            raise _Suspicious(_failed(header.get("reason") or "the machine ran out of memory"))
        if "hungry" in header:
            message = f"decoding needs more than {self._limits.decode_memory_bytes:,} bytes of memory"
            raise _Suspicious(ImageRefused(ErrorKind.TOO_MANY_PIXELS, message))
        rows, columns = int(header["rows"]), int(header["columns"])
        width, height = int(header["width"]), int(header["height"])
        if min(rows, columns) < 0 or rows * columns > self._most_pixels or min(width, height) < 1:
            raise ValueError(f"{columns} x {rows} pixels of {width} x {height} from the decoder")
        page = np.empty((rows, columns, 3), np.uint8)
        self._fill(memoryview(page.reshape(-1).data))
        issues = tuple(map(PhotoIssue, header["issues"]))
        return Photo(page, width, height, header["format"], header["unfinished"], issues)

    def _receive_header(self) -> dict[str, Any]:
        length = bytearray(LENGTH.size)
        self._fill(memoryview(length))
        (size,) = LENGTH.unpack(length)
        if size > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes from the decoder")
        text = bytearray(size)
        self._fill(memoryview(text))
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("no header from the decoder")
        return header

    def _verdict(self) -> ImageError:
        """The error for a photo whose process ended, or sent invalid data."""
        process = self._process
        assert process is not None
        try:
            code = process.wait(1.0)  # the socket closes a moment before the exit code is available
        except subprocess.TimeoutExpired:
            return ImageRefused(ErrorKind.NOT_AN_IMAGE, "the decoder returned invalid data for it")
        if code == -signal.SIGPROF:
            seconds = self._limits.decode_seconds
            return ImageRefused(ErrorKind.NOT_AN_IMAGE, f"decoding took more than {seconds:g} s of CPU time")
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code >= 0 or ending in _FAULTS:
            return ImageRefused(ErrorKind.NOT_AN_IMAGE, f"the decoder crashed on it ({ending})")
        return _failed(f"the decoding process was killed from outside ({ending})")

    # ---- the process

    def _get_ready(self) -> None:
        """Wait until the process has started; restart it if it ended. Raises RunFailed if it does not start."""
        reason = "it ended at once"
        for tries in range(_STARTS):
            time.sleep(tries)  # the cause may pass: no memory, too many processes or open files
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                if not self._started:
                    self._silences = 0
                    self._pipe.settimeout(_START_SECONDS)
                    self._receive_header()
                    self._pipe.settimeout(self._slice)
                    self._started = True
                return
            except (_Silent, EOFError, OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or reason
                self._end()
        raise RunFailed(
            f"decoders do not start ({reason}); `python -c 'import enrich.photos.decoder_process'` may say why"
        )

    def _start(self) -> None:
        with self._changing:
            if self._closed:
                raise RuntimeError("the decoders are closed")
            self._pipe, theirs = socket.socketpair()
            self._started = False
            with theirs:
                command = [sys.executable, "-c", _PROCESS.format(path=sys.path, descriptor=theirs.fileno())]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            self._pipe.settimeout(self._slice)
        with suppress(OSError):
            self._pipe.sendall(LENGTH.pack(len(self._job)) + self._job)

    def _end(self) -> None:
        with self._changing:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._pipe.close()
                self._process = None

    # ---- the socket; PATIENCE time-outs in a row are an error

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._pipe.send(view) :]
            except TimeoutError:
                self._wait_on()

    def _fill(self, view: memoryview) -> None:
        while view:
            try:
                count = self._pipe.recv_into(view)
            except TimeoutError:
                self._wait_on()
                continue
            if not count:
                raise EOFError
            view = view[count:]

    def _wait_on(self) -> None:
        """Count a time-out. While this process itself is stopped only one time-out passes, however long it takes."""
        self._silences += 1
        if self._silences >= PATIENCE:
            raise _Silent


def _failed(reason: str) -> DecodingFailed:
    return DecodingFailed(ErrorKind.ENGINE_FAILED, f"not decoded: {reason}")
