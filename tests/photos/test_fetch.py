import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enrich.errors import RunFailed
from enrich.photos import decoders
from enrich.photos import fetch as fetch_module
from enrich.photos.decode import Admit, Photo, Preparation, prepare
from enrich.photos.fetch import Fetched, FetchedPhoto, fetcher
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.storage import Problem, StorageError, Store, open_store
from enrich.vocabulary import TRANSIENT, ErrorKind, ListedPhoto, ManifestItem
from tests.testing.photo_files import encoded
from tests.testing.processes import decoding_processes
from tests.testing.rows import make_item

SETTINGS = RunSettings(download_threads=4, decode_processes=2, in_flight=6)
HOW = Preparation(num_crops=4, image_size=28)


def fetch(store: Store, items: list[ManifestItem], settings: RunSettings, how: Preparation) -> Iterator[Fetched]:
    with fetcher(store, settings, how) as fetch_items:
        yield from fetch_items(items)


def jpeg(grey: int) -> bytes:
    return encoded(Image.new("RGB", (32, 24), (grey, grey, grey)), "JPEG")


def item(key: str, size: int = 100, etag: str = "listed") -> ManifestItem:
    return make_item(ListedPhoto(key, size, etag))


def items_of(store: Store) -> list[ManifestItem]:
    return [item(info.key, info.size, info.etag) for info in store.list()]


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request.getfixturevalue("s3_bucket") if request.param == "s3" else str(tmp_path))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    yield
    assert decoding_processes() == set()


def by_key(results: list[Fetched]) -> dict[str, FetchedPhoto]:
    """The photos of products of one, by key."""
    found = {result.item.product_id: only(result) for result in results}
    assert len(found) == len(results)
    return found


def only(result: Fetched) -> FetchedPhoto:
    [photo] = result.photos
    return photo


# ---- photos and faulty images


def test_each_item_becomes_a_photo_or_an_error(store: Store) -> None:
    limits = PhotoLimits(max_bytes=5_000)
    good = {f"good/{number}.jpg": jpeg(number) for number in range(12)}
    for key, data in good.items():
        store.put(key, data)
    for key, data in {
        "empty.jpg": b"",
        "page.jpg": b"<html></html>",
        "cut.jpg": jpeg(9)[:-200],
        "large.jpg": jpeg(9) + b"\0" * 5_000,
    }.items():
        store.put(key, data)
    grown = item("large.jpg", size=10)  # small when it was listed
    items = [*items_of(store), item("gone.jpg"), item("../outside.jpg")]
    items = [grown if one.product_id == "large.jpg" else one for one in items]

    results = list(fetch(store, items, SETTINGS.model_copy(update={"limits": limits}), HOW))
    found = by_key(results)

    errors = {key: result.error_kind for key, result in found.items() if result.photo is None}
    assert errors == {
        "empty.jpg": ErrorKind.EMPTY,
        "page.jpg": ErrorKind.NOT_AN_IMAGE,
        "cut.jpg": ErrorKind.TRUNCATED,
        "large.jpg": ErrorKind.TOO_LARGE,
        "gone.jpg": ErrorKind.NOT_FOUND,
        "../outside.jpg": ErrorKind.NOT_FOUND if store.uri.startswith("s3://") else ErrorKind.ACCESS_DENIED,
    }
    assert all(found[key].error_message for key in errors)
    for key, data in good.items():
        result = found[key]
        assert result.photo is not None
        expected = prepare(data, limits, HOW)
        assert np.array_equal(result.photo.page, expected.page)
        assert (result.photo.width, result.photo.height) == (expected.width, expected.height) == (32, 24)
        assert result.photo.page.flags.writeable
        assert (result.etag, result.sha256) == (store.get(key)[1], hashlib.sha256(data).hexdigest())
        assert (result.error_kind, result.error_message) == (None, None)
    assert all(min(one.download_seconds, one.decode_seconds) > 0 for one in results if one.shown)
    assert found["page.jpg"].sha256 == hashlib.sha256(b"<html></html>").hexdigest()
    assert (found["gone.jpg"].etag, found["gone.jpg"].sha256) == ("listed", None)


def test_the_etag_is_that_of_the_bytes_read(local: Store) -> None:
    local.put("a.jpg", jpeg(1))
    [result] = fetch(local, [item("a.jpg", etag="of older bytes")], SETTINGS, HOW)
    assert only(result).etag == local.get("a.jpg")[1]
    assert only(result).listed.etag == "of older bytes"


def test_what_was_listed_as_too_large_is_not_downloaded(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(*_: Any) -> None:
        raise StorageError(Problem.FAILED, "was read")

    monkeypatch.setattr(local, "get", get)
    [result] = fetch(local, [item("a.jpg", size=(32 << 20) + 1)], SETTINGS, HOW)
    message = f"{local.uri}/a.jpg: 33,554,433 bytes, more than the limit of 33,554,432"
    assert (only(result).error_kind, only(result).error_message) == (ErrorKind.TOO_LARGE, message)


def test_nothing_to_fetch(local: Store) -> None:
    assert list(fetch(local, [], SETTINGS, HOW)) == []


# ---- products of several photos


def product_of(store: Store, **photos: bytes) -> ManifestItem:
    for name, data in photos.items():
        store.put(f"{name}.jpg", data)
    listed = {info.key: ListedPhoto(info.key, info.size, info.etag) for info in store.list()}
    return make_item(*(listed[f"{name}.jpg"] for name in photos))


def fetch_several(store: Store, item: ManifestItem, needed: int) -> Fetched:
    with fetcher(store, SETTINGS, HOW, needed=needed) as fetch_items:
        [result] = fetch_items([item])
    return result


@pytest.mark.parametrize(("needed", "read"), [(1, ["b"]), (2, ["b", "d"]), (3, ["b", "d", "e"]), (9, ["b", "d", "e"])])
def test_a_broken_photo_is_skipped_and_the_next_takes_its_place(local: Store, needed: int, read: list[str]) -> None:
    item = product_of(local, a=b"<html>", b=jpeg(1), c=jpeg(2)[:-200], d=jpeg(3), e=jpeg(4))
    result = fetch_several(local, item, needed)
    assert [photo.listed for photo in result.photos] == list(item.photos)
    assert [photo.listed.key for photo in result.shown] == [f"{name}.jpg" for name in read]
    last = "abcde".index(read[-1]) if needed < 4 else 4
    for place, photo in enumerate(result.photos):
        looked_at = place <= last
        assert (photo.sha256 is not None) == looked_at
        assert (photo.error_kind is not None) == (looked_at and place in (0, 2))
        assert photo.etag == item.photos[place].etag


def test_a_product_whose_photos_all_fail_fails_as_its_main_photo_unless_another_may_pass(local: Store) -> None:
    item = product_of(local, a=jpeg(1)[:-200], b=b"<html>")
    result = fetch_several(local, item, 2)
    assert (result.shown, result.failure.error_kind) == ((), ErrorKind.TRUNCATED)
    gone = make_item(*item.photos, ListedPhoto("gone.jpg", 9, "e"))
    assert fetch_several(local, gone, 2).failure.error_kind is ErrorKind.NOT_FOUND


def test_photos_of_several_products_in_flight_are_bounded(local: Store) -> None:
    item = product_of(local, a=jpeg(1), b=jpeg(2), c=jpeg(3))
    taken = 0

    def endless() -> Iterator[ManifestItem]:
        nonlocal taken
        while True:
            taken += 1
            yield item

    with fetcher(local, SETTINGS, HOW, needed=3) as fetch_items:
        results = fetch_items(endless())
        for consumed in range(1, 9):
            assert len(next(results).shown) == 3
            assert 3 * (taken - consumed) < SETTINGS.in_flight
        results.close()  # type: ignore[attr-defined]


# ---- decoders that break


def break_as_told(data: bytearray, limits: PhotoLimits, admit: Admit) -> Photo:
    """Runs in the decoding processes in place of `prepare`."""
    match bytes(data):
        case b"hang":
            time.sleep(600)
        case b"say so and hang":
            Path(os.environ["HANGING"]).touch()
            time.sleep(600)
        case b"killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"exits":
            os._exit(3)
        case b"raises":
            raise RuntimeError("a codec's own fault")
        case b"allocates":
            bytearray(1 << 40)
        case b"killed while sending":
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            socket.socket.sendall = lambda *_: time.sleep(60)  # type: ignore[method-assign]
        case b"fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"computes":
            while True:
                pass
        case b"disk full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return Photo(np.zeros((28, 56, 3), np.uint8), 3, 2)


def more_crops_than_told(data: bytearray, limits: PhotoLimits, admit: Admit) -> Photo:
    return Photo(np.zeros((28 * 5, 28, 3), np.uint8), 3, 2)


def test_a_page_of_more_crops_than_the_model_takes_is_not_received(local: Store) -> None:
    local.put("a.jpg", b"good")
    with fetcher(local, SETTINGS, HOW, more_crops_than_told) as fetch_items:
        [result] = fetch_items(items_of(local))
    assert only(result).error_kind is ErrorKind.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (b"computes", ErrorKind.NOT_AN_IMAGE, "decoding took more than 0.5 s of CPU time"),
        (b"fault", ErrorKind.NOT_AN_IMAGE, "the decoder crashed on it (SIGSEGV)"),
        (b"exits", ErrorKind.NOT_AN_IMAGE, "the decoder crashed on it (exit code 3)"),
        (b"raises", ErrorKind.NOT_AN_IMAGE, "the decoder crashed on it (exit code 1)"),
        (b"allocates", ErrorKind.TOO_MANY_PIXELS, "decoding needs more than 2,147,483,648 bytes of memory"),
        (b"hang", ErrorKind.ENGINE_FAILED, "not decoded: the decoding process was silent for 2 s"),
        (b"killed", ErrorKind.ENGINE_FAILED, "not decoded: the decoding process was killed from outside (SIGKILL)"),
        (b"killed while sending", ErrorKind.ENGINE_FAILED,
         "not decoded: the decoding process was killed from outside (SIGKILL)"),
        (b"disk full", ErrorKind.ENGINE_FAILED, "not decoded: No space left on device"),
    ],
)  # fmt: skip
def test_a_photo_that_breaks_its_decoder_costs_one_row_and_only_its_own_doing_is_final(
    local: Store, monkeypatch: pytest.MonkeyPatch, fault: bytes, kind: ErrorKind, message: str
) -> None:
    if fault == b"hang":  # the others say something, on a busy machine late
        monkeypatch.setattr(decoders, "PATIENCE", 2)
    for number in range(8):
        local.put(f"{number}.jpg", fault if number == 3 else b"good")
    settings = RunSettings(decode_processes=1, limits=PhotoLimits(decode_seconds=0.5))
    with fetcher(local, settings, HOW, break_as_told) as fetch_items:
        found = by_key(list(fetch_items(items_of(local))))
    broken = found.pop("3.jpg")
    assert (broken.photo, broken.error_kind, broken.error_message) == (None, kind, message)
    assert (kind in TRANSIENT) == message.startswith("not decoded")
    assert len(found) == 7
    assert all(result.photo and result.photo.page.shape == (28, 56, 3) for result in found.values())


class Unloadable:
    """A function that ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)

    def __call__(self, data: bytearray, limits: PhotoLimits, admit: Admit) -> Photo:
        raise AssertionError


def test_decoders_that_do_not_start_fail_the_run(local: Store) -> None:
    local.put("a.jpg", jpeg(1))
    message = "decoders do not start (it ended at once); `python -c 'import enrich.photos.decoder_process'` may say why"
    with fetcher(local, SETTINGS, HOW, Unloadable()) as fetch_items, pytest.raises(RunFailed) as caught:
        list(fetch_items(items_of(local)))
    assert str(caught.value) == message


# ---- bounds and ends


def test_items_are_taken_only_as_there_is_room(local: Store) -> None:
    local.put("a.jpg", jpeg(1))
    taken = 0

    def endless() -> Iterator[ManifestItem]:
        nonlocal taken
        while True:
            taken += 1
            yield item("a.jpg")

    with fetcher(local, SETTINGS, HOW) as fetch_items:
        results = fetch_items(endless())
        for consumed in range(1, 31):
            assert next(results).shown
            assert taken - consumed < SETTINGS.in_flight
        results.close()  # type: ignore[attr-defined]


def test_items_are_taken_between_photos_that_arrive_together(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker asks for its next shard only after it was given the last photo of the one before."""
    monkeypatch.setattr(fetch_module, "wait", lambda futures, return_when: wait(futures))
    taken = 0

    def listed() -> Iterator[ManifestItem]:
        nonlocal taken
        for number in range(4):
            local.put(f"{number}.jpg", jpeg(number))
            taken += 1
            yield item(f"{number}.jpg")

    with fetcher(local, SETTINGS.model_copy(update={"in_flight": 2}), HOW) as fetch_items:
        assert [taken for _ in fetch_items(listed())] == [2, 3, 4, 4]


def test_one_set_of_processes_serves_many_manifests(local: Store) -> None:
    for number in range(4):
        local.put(f"{number}.jpg", jpeg(number))
    with fetcher(local, SETTINGS, HOW) as fetch_items:
        processes = decoding_processes()
        assert len(processes) == 2
        for _ in range(3):
            assert len(by_key(list(fetch_items(items_of(local))))) == 4
        next(iter(fetch_items(items_of(local))))  # left half done
        assert len(by_key(list(fetch_items(items_of(local))))) == 4
        assert decoding_processes() == processes


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_ends_the_processes_even_busy_ones(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    hanging = tmp_path / "hanging"
    monkeypatch.setenv("HANGING", str(hanging))
    local.put("a.jpg", b"say so and hang")

    def interrupted_items() -> Iterator[ManifestItem]:
        yield item("a.jpg")
        while not hanging.exists():
            time.sleep(0.01)
        raise interruption

    with pytest.raises(interruption), fetcher(local, SETTINGS, HOW, break_as_told) as fetch_items:
        list(fetch_items(interrupted_items()))
    assert decoding_processes() == set()


def test_closing_early_ends_the_processes(local: Store) -> None:
    for number in range(20):
        local.put(f"{number}.jpg", jpeg(number))
    results = fetch(local, items_of(local), SETTINGS, HOW)
    assert next(results).shown
    assert decoding_processes() != set()
    results.close()  # type: ignore[attr-defined]
    assert decoding_processes() == set()


KILLED_PARENT = """
import os, signal, sys
sys.path.insert(0, ROOT)
from tests.testing.processes import decoding_processes
from enrich.photos.fetch import fetcher
from enrich.photos.decode import Preparation
from enrich.settings.run import RunSettings
from enrich.storage import open_store

if __name__ == "__main__":
    with fetcher(open_store(sys.argv[1]), RunSettings(), Preparation(4, 28)):
        print(*decoding_processes(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED_PARENT.replace("ROOT", repr(str(Path(__file__).parents[2]))))
    finished = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in finished.stdout.split()]
    assert len(pids) == 2
    for _ in range(300):
        if not any(is_running(pid) for pid in pids):
            break
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
