"""One table of stores: whatever a local folder promises, S3 keeps too, and the other way round."""

import errno
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import boto3.session
import pytest

from enrich.errors import UsageError
from enrich.storage import Problem, StorageError, Store, contains, is_s3, open_store, overlap, read_tree, write_tree
from enrich.storage.local import LocalStore
from tests.testing.rows import increment
from tests.testing.s3_server import (
    DENIED,
    Environ,
    Fault,
    S3Server,
    WsgiApp,
    first,
    refuse,
    small_pages,
    spoiled,
    where,
    without,
)

ODD_KEYS = [
    "a b.jpg",
    "100%.jpg",
    "%2e%2E/x",
    "1+1=2",
    "ü/日本.jpg",
    "q?x=1#y",
    "a&b;c",
    "'\"<>.jpg",
    "~tilde",
    "back\\slash",
    "k/" * 511 + "ü",  # 1,024 bytes, the longest key of S3; a local path may be longer
]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI with nothing below it."""
    return f"{request.getfixturevalue('s3_bucket')}/a/root" if request.param == "s3" else str(tmp_path / "a" / "root")


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root, create=True)


@pytest.fixture
def s3_store(s3_bucket: str) -> Store:
    return open_store(f"{s3_bucket}/a/root")


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def kind_of(call: Callable[[], object]) -> tuple[Problem, str]:
    with pytest.raises(StorageError) as caught:
        call()
    return caught.value.problem, str(caught.value)


def break_scandir(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Listing the directory `name` fails; the tests may run as root, whom no mode bits stop."""
    scan = os.scandir

    def broken(path: str) -> Any:
        if path.endswith(name):
            raise OSError(code, os.strerror(code), path)
        return scan(path)

    monkeypatch.setattr("os.scandir", broken)


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enrich.storage.client.time.sleep", lambda _: None)


# ---- reading and writing


def test_what_is_put_is_listed_and_read_back_under_one_etag(store: Store) -> None:
    store.put("photos/a.jpg", b"first")
    [info] = store.list()
    assert (info.key, info.size) == ("photos/a.jpg", 5)
    assert store.head("photos/a.jpg") == info
    assert store.get("photos/a.jpg") == (b"first", info.etag)
    store.put("photos/a.jpg", b"other")
    assert store.get("photos/a.jpg")[0] == b"other"
    assert store.get("photos/a.jpg")[1] != info.etag
    store.delete("photos/a.jpg")
    store.delete("photos/a.jpg")
    assert keys(store) == []
    assert store.head("photos/a.jpg") is None


def test_uri_of_names_the_object(store: Store, root: str) -> None:
    assert store.uri == root
    assert store.uri_of("b/c.jpg") == f"{root}/b/c.jpg"


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_come_back_as_they_were(store: Store, key: str) -> None:
    assert store.create(key, b"data")
    assert keys(store) == [key]
    assert store.get(key)[0] == b"data"


def test_a_listing_keeps_to_its_folder_and_to_byte_order(root: str) -> None:
    open_store(f"{root}-old", create=True).put("no.jpg", b"")
    store = open_store(root, create=True)
    names = ["a-b", "a.jpg", "a/b/c", "a/b.jpg", "a0", "ab/c", "\uffee", "\U0001f600"]
    for name in names:
        store.put(name, b"x")
    assert keys(store) == sorted(names, key=str.encode)
    assert keys(store, "a") == keys(store, "a/") == ["a/b.jpg", "a/b/c"]
    assert keys(store, "a/b") == ["a/b/c"]
    assert keys(store, "absent") == []


def test_a_listing_leaves_out_the_packages_own_files(store: Store) -> None:
    store.put("kept", b"1")
    assert store.replace("kept", b"2", store.get("kept")[1])  # leaves a lock file behind, locally
    store.put(".enrich-left", b"")
    store.put("folder/.enrich-left", b"")
    store.put(".enrich-folder/x", b"")
    store.put(".hidden", b"")
    assert keys(store) == [".hidden", "kept"]


def test_s3_directory_markers_are_left_out_and_pages_are_joined(s3_bucket: str, s3_server: S3Server) -> None:
    client = boto3.session.Session().client("s3")
    bucket = s3_bucket.removeprefix("s3://")
    for key in ("photos/", "photos/sub/", *(f"photos/{number}" for number in range(8))):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    s3_server.fault = small_pages(3)
    assert keys(open_store(f"{s3_bucket}/photos/")) == [f"{number}" for number in range(8)]


def test_get_refuses_what_is_too_large_before_reading_it(store: Store) -> None:
    store.put("a", b"12345")
    assert store.get("a", max_bytes=5)[0] == b"12345"
    kind, message = kind_of(lambda: store.get("a", max_bytes=4))
    assert (kind, message) == (Problem.TOO_LARGE, f"{store.uri}/a: 5 bytes, more than the limit of 4")


def test_what_is_missing_is_not_found(store: Store) -> None:
    assert kind_of(lambda: store.get("absent"))[0] is Problem.NOT_FOUND
    assert store.head("absent/too") is None


# ---- commits


def race(writes: Iterable[Callable[[], bool]]) -> list[bool]:
    with ThreadPoolExecutor(8) as pool:
        return [future.result() for future in [pool.submit(write) for write in writes]]


def test_of_many_creates_one_wins_and_its_bytes_stay(store: Store) -> None:
    won = race(lambda i=i: store.create("shard", b"%d" % i * 1000) for i in range(8))  # type: ignore[misc]
    assert sum(won) == 1
    assert store.get("shard")[0] == b"%d" % won.index(True) * 1000
    assert keys(store) == ["shard"]


def test_of_many_replaces_of_one_state_one_wins(store: Store) -> None:
    store.put("table", b"old")
    etag = store.get("table")[1]
    won = race(lambda i=i: store.replace("table", b"%d" % i, etag) for i in range(8))  # type: ignore[misc]
    assert sum(won) == 1
    assert store.get("table")[0] == b"%d" % won.index(True)


def test_no_increment_is_lost_to_another_writer(store: Store) -> None:
    store.put("count", b"0")
    assert all(race([partial(increment, store, "count")] * 8))
    assert store.get("count")[0] == b"8"


def test_replace_needs_the_state_it_was_told_of(store: Store) -> None:
    assert not store.replace("table", b"new", "0" * 32)
    assert store.replace("table", b"first", None)
    assert not store.replace("table", b"second", None)
    assert not store.replace("table", b"second", "0" * 32)
    assert store.get("table")[0] == b"first"
    assert store.replace("table", b"second", store.get("table")[1])
    assert store.get("table")[0] == b"second"


def test_the_probe_passes_and_leaves_nothing(store: Store) -> None:
    store.check_conditional_writes()
    assert keys(store) == []


def create_in(root: str, won: Any, number: int) -> None:
    if LocalStore(root).create("shard", b"%d" % number):
        won.put(number)


def test_local_creates_of_several_processes_have_one_winner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    won = context.Queue()
    processes = [context.Process(target=create_in, args=(str(tmp_path), won, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "shard").read_bytes() == b"%d" % won.get(timeout=10)
    assert won.empty()
    assert os.listdir(tmp_path) == ["shard"]


@pytest.mark.parametrize("code", ["EPERM", "EOPNOTSUPP"])
def test_local_create_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), "no links here")

    monkeypatch.setattr("os.link", refuse)
    store = LocalStore(tmp_path)
    assert race(lambda: store.create("shard", b"x") for _ in range(8)).count(True) == 1
    assert keys(store) == ["shard"]


def test_a_failed_local_write_leaves_the_old_bytes_and_no_staged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.put("table", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    kind, message = kind_of(lambda: store.put("table", b"new"))
    assert (kind, message) == (
        Problem.FAILED,
        f"{tmp_path}/table: No space left on device; check the disk",
    )
    assert os.listdir(tmp_path) == ["table"]
    assert (tmp_path / "table").read_bytes() == b"old"


def test_local_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        LocalStore(tmp_path).create("a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# ---- keys and links that lead out of a local folder


LEADING_OUT = ["../secret", "a/../../secret", "/etc/passwd", "", "a//b", "./a", "a/", "nul\0", "out/secret"]


@pytest.mark.parametrize("key", LEADING_OUT)
def test_local_keys_never_leave_the_folder(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    store = LocalStore(tmp_path / "root")
    calls: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.create(key, b""),
        lambda: store.put(key, b""),
        lambda: store.delete(key),
    ]
    for call in calls:
        message = f"{tmp_path}/root: the key {key!r} leads out of the folder"
        assert kind_of(call) == (Problem.ACCESS_DENIED, message)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_a_directory_in_place_of_an_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "products.parquet").mkdir()

    message = f"{tmp_path}/products.parquet: Is a directory; check the path"
    assert kind_of(lambda: LocalStore(tmp_path).create("products.parquet", b"x")) == (Problem.NOT_FOUND, message)


def test_local_listing_follows_links_inside_the_folder_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "real" / "a.jpg").write_bytes(b"12")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "inside.jpg").symlink_to(root / "real" / "a.jpg")
    (root / "outside.jpg").symlink_to(tmp_path / "secret")
    (root / "dangling.jpg").symlink_to(root / "nothing")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"latin-\xe9.jpg")).write_bytes(b"")
    store = LocalStore(root)
    assert [(info.key, info.size) for info in store.list()] == [("inside.jpg", 2), ("real/a.jpg", 2)]
    assert caplog.messages == [
        f"'{root}/dangling.jpg' left out: a broken link",
        f"'{root}/fifo' left out: not a regular file",
        f"'{root}/latin-\\udce9.jpg' left out: its name is not UTF-8",
        f"'{root}/loop' left out: a link to a directory",
        f"'{root}/outside.jpg' left out: a link that leads out of the folder",
    ]
    assert kind_of(lambda: store.get("fifo")) == (Problem.NOT_FOUND, f"{root}/fifo: not a regular file")
    assert kind_of(lambda: store.get("outside.jpg"))[0] is Problem.ACCESS_DENIED


def test_an_unreadable_entry_is_left_out_and_reported_and_the_listing_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "closed/b.jpg", "line\nbreak.jpg", "z.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to("../deep/up/up")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the path of a socket may have 108 bytes
        listener.bind("socket")
    break_scandir(monkeypatch, "closed", errno.EACCES)
    store = LocalStore(tmp_path)
    assert [info.key for info in store.list()] == ["a.jpg", "line\nbreak.jpg", "z.jpg"]
    assert sorted(caplog.messages) == [
        f"'{tmp_path}/{name}' left out: {reason}"
        for name, reason in [
            ("closed", "Permission denied"),
            ("deep/up", "a loop of links"),
            ("device", "a link that leads out of the folder"),
            ("one", "a loop of links"),
            ("self", "a loop of links"),
            ("socket", "not a regular file"),
            ("two", "a loop of links"),
        ]
    ]
    assert kind_of(lambda: store.get("one"))[0] is Problem.NOT_FOUND


def test_of_many_entries_left_out_the_first_are_named_and_all_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(300):
        (tmp_path / f"{number}.jpg").symlink_to("nowhere")
    assert list(LocalStore(tmp_path).list()) == []
    assert len(caplog.messages) == 21
    assert caplog.messages[-1] == "300 entries left out in all: a broken link (300)"


def test_a_directory_that_fails_ends_a_listing_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "broken").mkdir()
    break_scandir(monkeypatch, "broken", errno.EIO)
    assert kind_of(lambda: list(LocalStore(tmp_path).list())) == (
        Problem.FAILED,
        f"{tmp_path}/broken: Input/output error; check the disk",
    )


INSIDE = [  # outer, inner
    ("s3://b", "s3://b/"),
    ("s3://b/", "s3://b"),
    ("s3://b/photos", "s3://b/photos/out"),
    ("s3://b/photos/", "s3://b//photos//out"),
    ("s3://b/photos", "s3://b/x/../photos/out"),
    ("s3://b/photos", "s3://b/photos/../photos"),
    ("s3://b/photos", "s3://b/photos/../out"),  # where the endpoint takes it as it is written
    ("s3://b/photos", "s3://b/./photos"),
    ("{tmp}/photos", "{tmp}/photos"),
    ("{tmp}/photos/", "{tmp}/photos/."),
    ("{tmp}/photos", "{tmp}/other/../photos/out"),
    ("{tmp}/photos", "{tmp}/link/out"),
    ("{tmp}/link", "{tmp}/photos/out"),
    ("{tmp}/photos", "{tmp}/links/deep/out/new"),
    ("{tmp}/photos", "{tmp}//photos///out"),
    ("/", "{tmp}/photos"),
]
APART = [
    ("s3://b/photos", "s3://b/photos2"),
    ("s3://b/photos", "s3://b/phot"),
    ("s3://b/photos", "s3://c/photos/out"),
    ("s3://b/photos", "{tmp}/photos"),
    ("{tmp}/photos", "{tmp}/photos2"),
    ("{tmp}/photos", "{tmp}/photos/../out"),
    ("{tmp}/photos", "{tmp}/out"),
    ("{tmp}/photos", "{tmp}/photos."),
    ("{tmp}/loop", "{tmp}/photos"),
]


@pytest.mark.parametrize(
    ("outer", "inner", "inside"), [(*pair, True) for pair in INSIDE] + [(*p, False) for p in APART]
)
def test_a_place_inside_another_is_seen_however_it_is_written(
    tmp_path: Path, outer: str, inner: str, inside: bool
) -> None:
    for name in ("photos/deep", "other", "links"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "links" / "deep").symlink_to(tmp_path / "photos" / "deep")
    (tmp_path / "loop").symlink_to("loop")
    outer, inner = outer.format(tmp=tmp_path), inner.format(tmp=tmp_path)
    assert contains(outer, inner) is inside
    assert overlap(inner, outer) is inside


def test_a_place_under_two_names_of_one_file_system_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a folder is mounted twice, or names differ in case only."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "PHOTOS").mkdir()
    same = os.path.samestat

    def one_folder(one: os.stat_result, other: os.stat_result) -> bool:
        inodes = {(tmp_path / name).stat().st_ino for name in ("photos", "PHOTOS")}
        return same(one, other) or {one.st_ino, other.st_ino} == inodes

    monkeypatch.setattr("os.path.samestat", one_folder)
    assert contains(str(tmp_path / "photos"), str(tmp_path / "PHOTOS" / "out"))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"old bytes")
    fstat = os.fstat

    def fstat_then_write(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        (tmp_path / "a").write_bytes(b"new bytes, and more")
        return found

    monkeypatch.setattr("os.fstat", fstat_then_write)
    assert kind_of(lambda: store.get("a"))[0] is Problem.FAILED


def test_denied_files_are_access_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"")

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", deny)  # the tests may run as root, whom no mode bits stop
    message = f"{tmp_path}/a: Permission denied; check the permissions"
    assert kind_of(lambda: store.get("a")) == (Problem.ACCESS_DENIED, message)


def test_a_listing_of_a_denied_directory_itself_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"")
    store.put("closed/b", b"")
    break_scandir(monkeypatch, "closed", errno.EACCES)
    message = f"{tmp_path}/closed: Permission denied; check the permissions"
    assert kind_of(lambda: list(store.list("closed"))) == (Problem.ACCESS_DENIED, message)


# ---- opening


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "the URI is empty; give s3://bucket/prefix or a local path"),
        ("s3://bucket/x/../y", "s3://bucket/x/../y: endpoints differ in what `..` means; write the path without it"),
        ("s3://bucket/./y", "s3://bucket/./y: endpoints differ in what `.` means; write the path without it"),
        ("gs://bucket/x", "gs://bucket/x: unknown scheme; use s3://bucket/prefix or a local path"),
        ("file:///tmp", "file:///tmp: unknown scheme; use s3://bucket/prefix or a local path"),
        ("s3:/bucket", "s3:/bucket: unknown scheme; use s3://bucket/prefix or a local path"),
        ("s3://", "s3://: names no bucket; write s3://bucket/prefix"),
        ("s3:///x", "s3:///x: names no bucket; write s3://bucket/prefix"),
        ("s3://ab/x", "s3://ab/x: 'ab' is not a bucket name; it needs 3 or more letters, digits, dots or hyphens"),
        ("s3://no-bucket/x", "s3://no-bucket/x: there is no bucket no-bucket; create it or check the name"),
    ],
)
@pytest.mark.usefixtures("s3_server")
def test_uris_that_cannot_be_opened(uri: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(uri)
    assert str(caught.value) == message


def test_local_paths_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for uri, message in {
        f"{tmp_path}/file": "is a file; name a directory",
        f"{tmp_path}/absent": "no such directory; check the path",
    }.items():
        with pytest.raises(UsageError) as caught:
            open_store(uri, must_exist=True)
        assert str(caught.value) == f"{uri}: {message}"
    for create in (True, False):
        with pytest.raises(UsageError, match=f"{tmp_path}/file: is a file; name a directory"):
            open_store(f"{tmp_path}/file/below", create=create)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match=f"{tmp_path}: permission denied; grant read and write access to it"):
        open_store(str(tmp_path), create=True)


def test_local_directories_are_made_only_when_asked(tmp_path: Path) -> None:
    assert keys(open_store(str(tmp_path / "a" / "b"))) == []
    assert not (tmp_path / "a").exists()
    assert open_store(str(tmp_path / "a" / "b" / ""), create=True).uri == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "no S3 credentials found (NoCredentialsError); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or run where a role is attached",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://user:hidden@127.0.0.1:9"},
            "http://127.0.0.1:9 cannot be reached; check AWS_ENDPOINT_URL and the network",
        ),
        ({"AWS_ENDPOINT_URL": "user:hidden@host"}, "AWS_ENDPOINT_URL is not a URL; write https://host"),
        (
            {"AWS_PROFILE": "absent"},
            "S3 is not set up: The config profile (absent) could not be found; there is no such profile; "
            "check AWS_PROFILE, AWS_CONFIG_FILE and ~/.aws/config",
        ),
    ],
)
def test_s3_that_is_set_up_wrongly(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None], message: str
) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    with pytest.raises(UsageError) as caught:
        open_store(s3_bucket)
    assert str(caught.value) == f"{s3_bucket}: {message}"


# ---- an endpoint that misbehaves


def test_denied_access_says_what_to_grant(s3_bucket: str, s3_server: S3Server) -> None:
    store = open_store(s3_bucket)
    s3_server.fault = DENIED
    for call in (lambda: store.get("a"), lambda: store.create("a", b""), lambda: keys(store)):
        assert kind_of(call)[0] is Problem.ACCESS_DENIED
    assert kind_of(lambda: store.get("a"))[1] == (
        f"{s3_bucket}/a: An error occurred (AccessDenied) when calling the GetObject operation: said the server; "
        "check the credentials and the bucket's policy"
    )
    with pytest.raises(UsageError, match=r"access denied \(AccessDenied\); grant s3:ListBucket or set AWS_ACC"):
        open_store(s3_bucket)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "HTTP_IF_NONE_MATCH",
            "ignores conditional writes, so two runs could overwrite each other; "
            "use an endpoint that honours If-None-Match and If-Match, as AWS S3 does, or a local path",
        ),
        (
            "HTTP_IF_MATCH",
            "ignores conditional writes with If-Match, so two runs could overwrite each other; "
            "use an endpoint that honours it, as AWS S3 does, a local path, or the setting `s3: {lock: true}`",
        ),
    ],
)
def test_an_endpoint_that_ignores_conditions_is_refused(
    s3_store: Store, s3_server: S3Server, header: str, message: str
) -> None:
    s3_server.fault = without(header)
    with pytest.raises(UsageError) as caught:
        s3_store.check_conditional_writes()
    assert str(caught.value) == f"{s3_server.endpoint}: {message}"
    assert keys(s3_store) == []


def broken_bodies(times: int, spoiler: str) -> Fault:
    """Spoils the first `times` bodies of objects."""
    spoil = first(times, spoiled(SPOILERS[spoiler]))
    return where(
        lambda environ: environ["REQUEST_METHOD"] == "GET" and "list-type" not in environ["QUERY_STRING"], spoil
    )


SPOILERS = {"cut": lambda body: body[:-5], "flipped": lambda body: b"X" + body[1:]}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_broken_bodies_are_read_again(s3_store: Store, s3_server: S3Server, tmp_path: Path, spoiler: str) -> None:
    s3_store.put("a", b"0123456789" * 100)
    s3_server.fault = broken_bodies(2, spoiler)
    assert s3_store.get("a")[0] == b"0123456789" * 100
    s3_server.fault = broken_bodies(1, spoiler)
    assert content(read_tree(s3_store.uri, tmp_path / "into")) == {"a": b"0123456789" * 100}


@pytest.mark.usefixtures("no_sleep")
def test_bodies_that_stay_broken_are_given_up(s3_store: Store, s3_server: S3Server) -> None:
    s3_store.put("a", b"0123456789")
    s3_server.fault = broken_bodies(99, "cut")
    message = f"{s3_store.uri}/a: its bytes arrived damaged 5 times; run again"
    assert kind_of(lambda: s3_store.get("a")) == (Problem.FAILED, message)


@pytest.mark.usefixtures("no_sleep")
def test_conflicts_are_retried_and_then_given_up(s3_store: Store, s3_server: S3Server) -> None:
    conflict = refuse("409 Conflict", "ConditionalRequestConflict")
    s3_server.fault = first(2, conflict)
    assert s3_store.create("a", b"x")
    s3_server.fault = conflict
    message = f"{s3_store.uri}/shard: 5 writes collided with other writers; run again"
    assert kind_of(lambda: s3_store.create("shard", b"x")) == (Problem.FAILED, message)


def test_the_probe_says_what_it_needs(s3_store: Store, s3_server: S3Server) -> None:
    s3_server.fault = DENIED
    with pytest.raises(UsageError, match="publishing needs s3:PutObject and s3:GetObject there"):
        s3_store.check_conditional_writes()


def test_an_endpoint_that_is_no_s3_is_refused(s3_bucket: str, s3_server: S3Server) -> None:
    s3_server.fault = refuse("405 Method Not Allowed", "MethodNotAllowed")
    with pytest.raises(UsageError, match="said the server; check the bucket and AWS_ENDPOINT_URL"):
        open_store(s3_bucket)


def test_an_object_is_not_taken_for_absent_where_its_state_is_denied(s3_store: Store, s3_server: S3Server) -> None:
    s3_server.fault = DENIED
    assert kind_of(lambda: s3_store.head("a"))[0] is Problem.ACCESS_DENIED


def test_a_lost_response_makes_the_winner_see_false(s3_store: Store, s3_server: S3Server) -> None:
    error = refuse("500 Internal Server Error", "InternalError")

    def lost(app: WsgiApp, environ: Environ, start_response: Any) -> Iterable[bytes]:
        list(app(environ, lambda *_: None))
        return error(app, {**environ, "CONTENT_LENGTH": "0"}, start_response)

    s3_server.fault = first(1, lost)
    assert not s3_store.create("shard", b"mine")
    assert s3_store.get("shard")[0] == b"mine"


# ---- whole directories


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "train.json").write_bytes(b"{}")
    (folder / "deep" / "er" / "weights").write_bytes(b"w" * 100_000)
    (folder / ".enrich-left").write_bytes(b"")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TREE = {"train.json": b"{}", "deep/er/weights": b"w" * 100_000}


def test_a_tree_is_written_and_read_back(tree: Path, root: str, tmp_path: Path) -> None:
    write_tree(tree, root, last="train.json")
    assert sorted(keys(open_store(root))) == sorted(TREE)
    found = read_tree(root, tmp_path / "into")
    assert content(found) == TREE
    if is_s3(root):
        assert found == tmp_path / "into"
    else:
        assert found == Path(root)
        assert os.listdir(Path(root).parent) == ["root"]


def test_a_tree_replaces_an_older_one_and_a_part_of_itself(tree: Path, root: str, tmp_path: Path) -> None:
    part = open_store(root, create=True)
    part.put("deep/er/weights", b"half")
    write_tree(tree, root, last="train.json")
    assert sorted(keys(part)) == sorted(TREE)
    part.put("stale", b"from an older version")
    write_tree(tree, root, last="train.json")
    assert content(read_tree(root, tmp_path / "into")) == TREE


def test_a_tree_is_not_written_over_other_things(tree: Path, root: str) -> None:
    store = open_store(root, create=True)
    store.put("holiday.jpg", b"precious")
    with pytest.raises(UsageError) as caught:
        write_tree(tree, root, last="train.json")
    assert str(caught.value) == f"{root}: contains other files (holiday.jpg) and no train.json; name an empty location"
    assert keys(store) == ["holiday.jpg"]


def test_a_tree_is_not_written_over_a_file_or_into_itself(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="file: is a file; name a directory"):
        write_tree(tree, str(tmp_path / "file"), last="train.json")
    with pytest.raises(UsageError, match="which is to be copied there; name another location"):
        write_tree(tree, str(tree / "deep"), last="train.json")


def test_a_local_tree_that_fails_leaves_the_older_one(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "adapter"
    write_tree(tree, str(target), last="train.json")
    (tree / "train.json").write_bytes(b"new")
    rename = Path.rename

    def fail_second(path: Path, to: Path) -> Path:
        if to == target and path.name.startswith(".enrich-") and (path / "train.json").read_bytes() == b"new":
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(StorageError, match=f"{target}: Input/output error; check the disk"):
        write_tree(tree, str(target), last="train.json")
    assert content(target) == TREE
    assert os.listdir(target.parent) == ["adapter"]


def test_an_s3_tree_that_fails_half_way_lacks_its_last_file(
    tree: Path, s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_bucket}/adapter"
    write_tree(tree, uri, last="train.json")
    s3_server.fault = where(lambda e: e["REQUEST_METHOD"] == "PUT" and e["PATH_INFO"].endswith("weights"), DENIED)
    with pytest.raises(StorageError):
        write_tree(tree, uri, last="train.json")
    assert keys(open_store(uri)) == ["deep/er/weights"]


@pytest.mark.parametrize("key", ["../outside", "a//b", "/absolute", "a/./b"])
def test_an_s3_tree_with_a_key_that_leads_out_is_refused(s3_store: Store, tmp_path: Path, key: str) -> None:
    s3_store.put(key, b"evil")
    with pytest.raises(UsageError, match="is not a path below it; rename or delete that object"):
        read_tree(s3_store.uri, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_tree_that_is_not_there(s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files there; check the prefix"):
        read_tree(f"{s3_bucket}/absent", tmp_path)
    with pytest.raises(UsageError, match="no such directory; check the path"):
        read_tree(str(tmp_path / "absent"), tmp_path)
