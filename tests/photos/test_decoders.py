"""Only `Decoders` decodes photos: which failures are final, total memory and time, and that nothing bypasses it."""

import ast
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from enrich.errors import RunFailed
from enrich.photos import decoders
from enrich.photos.decode import ImageRefused, Preparation, inspect, prepare, shrink
from enrich.photos.decoders import Decoders, DecodingFailed, Room
from enrich.photos.thumbnail import thumbnails
from enrich.settings.photos import PhotoLimits
from enrich.storage import open_store
from enrich.vocabulary import TRANSIENT, ErrorKind
from tests.testing.decoder_work import say_so_and_compute, tell_modules
from tests.testing.photo_files import LIMITS, encoded, exif, png_of
from tests.testing.processes import decoding_processes

ROOT = Path(__file__).parents[2]
HOW = Preparation(num_crops=4, image_size=28)


def jpeg(size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    return encoded(Image.new("RGB", size, "teal"), "JPEG", **options)


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    yield
    assert decoding_processes() == set()


def door(limits: PhotoLimits = LIMITS, processes: int = 1) -> Decoders:
    return Decoders(partial(prepare, how=HOW), limits, processes, most_pixels=4 * 28 * 28)


# ---- cost of a process


def test_an_idle_process_takes_at_most_60_mb() -> None:
    """It takes 38 MB, 37 of them for numpy and Pillow; 52 MB after photos of 1.3 megapixels."""
    with door() as opened:
        opened.decode(jpeg())
        [process] = decoding_processes()
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    resident = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
    assert resident * 1024 <= 60_000_000


def test_a_process_loads_numpy_and_pillow_and_nothing_else_that_is_heavy() -> None:
    with Decoders(tell_modules, LIMITS, 1, most_pixels=0) as opened, pytest.raises(ImageRefused) as caught:
        opened.decode(jpeg())
    loaded = set(str(caught.value).split())
    assert {"numpy", "PIL"} <= loaded
    heavy = "pyarrow polars pandas pydantic pydantic_core yaml boto3 botocore obstore torch transformers typer rich"
    assert loaded & {*heavy.split(), "multiprocessing", "asyncio"} == set()


# ---- outside circumstances are not final


STOPPED = """
import sys
sys.path.insert(0, ROOT)
from tests.testing.decoder_work import compute_half_a_second
from enrich.photos.decoders import Decoders
from enrich.settings.photos import PhotoLimits

if __name__ == "__main__":
    with Decoders(compute_half_a_second, PhotoLimits(decode_seconds=1.0), 1, most_pixels=0) as decoders:
        data = open(sys.argv[1], "rb").read()
        decoders.decode(data)
        print("decoding", flush=True)
        print(decoders.decode(data).width, flush=True)
"""


def test_a_process_group_that_is_stopped_for_longer_than_decoding_may_take_loses_no_photo(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    script = tmp_path / "script.py"
    script.write_text(STOPPED.replace("ROOT", repr(str(ROOT))))
    command = [sys.executable, str(script), str(tmp_path / "a.jpg")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(3.0)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == "32\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_decoder_killed_from_outside_does_not_fail_the_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    mark = tmp_path / "decoding"
    monkeypatch.setenv("DECODING", str(mark))
    with Decoders(say_so_and_compute, LIMITS, 1, most_pixels=0) as decoders, ThreadPoolExecutor() as pool:

        def killed(times: int) -> Any:
            photo = pool.submit(decoders.decode, jpeg())
            for _ in range(times):
                while not mark.exists():
                    time.sleep(0.01)
                process = int(mark.read_text())
                mark.unlink()
                os.kill(process, number)
            return photo

        assert killed(1).result().width == 32  # the next process decodes it
        mark.unlink()
        with pytest.raises(DecodingFailed) as caught:
            killed(2).result()
        assert caught.value.kind in TRANSIENT
        assert str(caught.value) == f"not decoded: the decoding process was killed from outside ({number.name})"


def test_a_machine_without_memory_does_not_fail_the_photo() -> None:
    """With `ulimit -v` the address space is exhausted before the photo reaches its own limit."""
    script = (
        "import resource, sys; from enrich.photos.decoders import *; from enrich.photos.decode import inspect\n"
        "from enrich.settings.photos import PhotoLimits\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try:\n"
        "    with Decoders(inspect, PhotoLimits(), 1, most_pixels=0) as decoders:\n"
        "        decoders.decode(sys.stdin.buffer.read())\n"
        "except DecodingFailed as error: print(error.kind, error)\n"
    )
    large = encoded(Image.new("RGBA", (7900, 7900)))
    done = subprocess.run([sys.executable, "-c", script], input=large, capture_output=True, check=False)
    assert done.stdout.decode().strip() == "engine_failed not decoded: the machine ran out of memory"


def test_decoders_that_cannot_be_started_for_now_wait_and_then_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fails = subprocess.Popen, [2]

    def popen(*arguments: Any, **options: Any) -> Any:
        fails[0] -= 1
        if fails[0] >= 0:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with door() as decoders:
        assert decoders.decode(jpeg()).width == 32
    fails[0] = 99
    with door() as decoders, pytest.raises(RunFailed, match=r"decoders do not start \(Resource temporarily"):
        decoders.decode(jpeg())


def test_too_many_open_files_while_training_do_not_fail_the_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from enrich.train.examples import read_photo  # imports torch, which decoding processes must not

    def open_none(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", open_none)
    with door() as decoders, pytest.raises(RunFailed, match="Too many open files"):
        read_photo(str(tmp_path / "a.jpg"), LIMITS, decoders)


# ---- failures caused by the bytes are final


def png_bomb(side: int) -> bytes:
    """A few kilobytes that declare `side` squared pixels and really contain them."""
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + side // 8)) for _ in range(side)]
    return png_of(side, side, b"".join([*rows, packer.flush()]))


def test_a_photo_that_needs_too_much_each_time_is_refused_for_good() -> None:
    bomb = png_bomb(8000)
    with door(PhotoLimits(decode_memory_bytes=100 << 20)) as decoders:
        for _ in range(2):
            with pytest.raises(ImageRefused) as caught:
                decoders.decode(bomb)
            assert caught.value.kind is ErrorKind.TOO_MANY_PIXELS
    with door(PhotoLimits(decode_seconds=0.05)) as decoders:
        with pytest.raises(ImageRefused) as caught:
            decoders.decode(bomb)
        assert str(caught.value) == "decoding took more than 0.05 s of CPU time"


def test_a_webp_of_few_bytes_and_many_pixels_is_refused_before_it_takes_memory() -> None:
    data = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 18) + b"\x2f" + b"\xff" * 4 + b"\0" * 13
    with door() as decoders, pytest.raises(ImageRefused) as caught:
        decoders.decode(data)
    assert caught.value.kind is ErrorKind.TOO_MANY_PIXELS


# ---- total memory and time


def peak_of_children() -> int:
    """Return the current resident bytes of all decoding processes."""
    total = 0
    for process in decoding_processes():
        fields = Path(f"/proc/{process}/statm").read_text().split()
        total += int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


@pytest.mark.timeout(300)
def test_several_photos_of_64_megapixels_at_once_stay_within_the_stated_memory() -> None:
    limits = PhotoLimits(decode_total_bytes=1 << 30)
    photo = jpeg((8000, 8000))
    peak, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, peak_of_children())

    watcher = threading.Thread(target=watch)
    with door(limits, 4) as decoders, ThreadPoolExecutor(4) as pool:
        watcher.start()
        photos = list(pool.map(decoders.decode, [photo] * 8))
        stop.set()
        watcher.join()
    assert [found.width for found in photos] == [8000] * 8
    assert peak < 4 * (256 << 20) + limits.decode_total_bytes
    assert peak < 4 * (100 << 20) + (400 << 20)  # one at a time holds 64 million times 4 bytes, plus its page


def test_large_photos_wait_for_memory_that_others_have_and_small_ones_do_not() -> None:
    room = Room(PhotoLimits(decode_total_bytes=256 << 20))
    with Decoders(inspect, LIMITS, 2, most_pixels=0, room=room) as decoders, ThreadPoolExecutor() as pool:
        with room.take(200 << 20):
            large = pool.submit(decoders.decode, jpeg((6000, 6000)))
            assert decoders.decode(jpeg()).width == 32
            time.sleep(1.0)
            assert not large.done()
        assert large.result().width == 6000


def slow_jpeg() -> bytes:
    """A progressive JPEG that repeats its scans: small to download, slow to decode."""
    data = jpeg((4000, 4000), progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 3000 + data[-2:]


def test_a_photo_that_takes_long_does_not_hold_up_a_page_of_thumbnails(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(slow_jpeg())
    (tmp_path / "b.jpg").write_bytes(jpeg())
    started = time.monotonic()
    limits = PhotoLimits(decode_seconds=1.0)
    slow, good = thumbnails(open_store(str(tmp_path)), ["a.jpg", "b.jpg"], limits, 16)
    assert slow is None
    assert good is not None
    assert good.startswith("data:image/jpeg;base64,")
    assert time.monotonic() - started < 30


def test_a_thumbnail_shows_the_photo_small_and_upright() -> None:
    with Decoders(partial(shrink, side=16), LIMITS, 1, most_pixels=256) as decoders:
        photo = decoders.decode(jpeg((640, 480), exif=exif(6)))
    assert photo.page.shape == (16, 12, 3)
    assert (photo.width, photo.height) == (480, 640)
    assert abs(photo.page.astype(int) - [0, 128, 128]).max() < 4


# ---- nothing bypasses it

DECODES = {"decode", "prepare", "shrink", "inspect"}  # of enrich.photos.decode


def test_no_module_but_the_decoding_process_opens_photos_itself() -> None:
    """Modules may import names of enrich.photos.decode to pass them to `Decoders`; only the decoders call them."""
    found = []
    for path in [path for room in ("enrich", "flows", "sample") for path in (ROOT / room).rglob("*.py")]:
        if path.name in ("decode.py", "decoder_process.py") and path.parent.name == "photos":
            continue
        imported = set()
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "enrich.photos.decode":
                imported |= {alias.asname or alias.name for alias in node.names if alias.name in DECODES}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.endswith("Image.open") or called in imported or called in {f"decode.{name}" for name in DECODES}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert found == []


def test_a_report_is_written_while_a_photo_keeps_its_decoder_busy(tmp_path: Path) -> None:
    from enrich.pages.report import render_sheet

    (tmp_path / "a.jpg").write_bytes(slow_jpeg())
    row = {
        "status": "ok", "product_id": "a", "photos": [{"key": "a.jpg", "sha256": "00"}], "title": "a", "category": "b",
        "category_confidence": 0.9, "price": 1.0, "price_low": 1.0, "price_high": 1.0, "currency": "EUR",
        "review_reasons": [],
    }  # fmt: skip
    started = time.monotonic()
    sheet = render_sheet(pl.DataFrame([row]), open_store(str(tmp_path)), PhotoLimits(decode_seconds=0.5), most=12)
    assert time.monotonic() - started < 20
    assert len(sheet.splitlines()) == 2  # only the header


def test_a_silent_process_is_given_up_and_its_photo_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "PATIENCE", 1)
    with door(PhotoLimits(decode_seconds=0.5)) as opened:
        opened.decode(jpeg())
        (process,) = decoding_processes()
        os.kill(process, signal.SIGSTOP)
        assert opened.decode(jpeg()).width == 32
