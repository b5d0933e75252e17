"""What only S3 has: parallel listings, checksums, parts, a lock object, and what buckets ask for."""

import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from enrich.errors import RunFailed, UsageError
from enrich.settings.storage import S3Settings
from enrich.storage import Problem, StorageError, bulk, client, listing, lock, multipart, open_store, s3
from enrich.storage.s3 import S3Store
from tests.testing.rows import increment
from tests.testing.s3_server import (
    DENIED,
    REFUSES_IF_MATCH,
    Environ,
    Fault,
    S3Server,
    WsgiApp,
    first,
    real,
    small_pages,
    spoiled,
    where,
    without,
)


@pytest.fixture
def store(s3_bucket: str) -> S3Store:
    found = open_store(f"{s3_bucket}/a/root")
    assert isinstance(found, S3Store)
    return found


PAGE = 3


LAYOUTS = {
    "flat": [f"{number:03}.jpg" for number in range(40)],
    "flat with odd letters": [*(f"ü{n}" for n in range(9)), "~", "!", "0", "0a", "Z", "日本", "\U0001f600", "a b"],
    "folders": [f"{folder:02}/{number}" for folder in range(30) for number in range(2)],
    "folders of folders": [f"{a}/{b}/{c}" for a in "xyz" for b in "pqr" for c in range(4)],
    "files among folders": ["a", "a/1", "a/2", "a-b", "a0", "b", "b/1/2/3", "c//d", "c/d", "%2F/x", "1+1=2/y"],
}


@pytest.mark.parametrize("first_pages", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_listing_in_pieces_has_every_key_once_and_in_byte_order(
    store: S3Store, s3_server: S3Server, layout: str, first_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    monkeypatch.setattr(listing, "_FIRST_PAGES", first_pages)
    in_order = listing._in_order

    def watched(cut: list[Any]) -> Any:
        pieces.append(len(cut))
        return in_order(cut)

    monkeypatch.setattr(listing, "_in_order", watched)
    keys = LAYOUTS[layout]
    for key in keys:
        store.put(key, b"x")
    s3_server.fault = small_pages(PAGE)
    assert [info.key for info in store.list()] == sorted(keys, key=str.encode)
    assert pieces[0] > 1 or first_pages > 1


def test_a_short_listing_costs_a_request_a_page(store: S3Store, s3_server: S3Server) -> None:
    keys = [f"{number:02}" for number in range(listing._FIRST_PAGES * PAGE)]
    for key in keys:
        store.put(key, b"x")
    requests = requests_seen(s3_server, small_pages(PAGE))
    assert [info.key for info in store.list()] == keys
    assert len(requests) == listing._FIRST_PAGES


@pytest.fixture
def forty(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store of 40 keys, listed in pieces after the first page."""
    monkeypatch.setattr(listing, "_FIRST_PAGES", 1)
    for number in range(40):
        store.put(f"{number:02}", b"x")
    return store


def test_a_listing_that_is_given_up_ends_its_threads(forty: S3Store, s3_server: S3Server) -> None:
    s3_server.fault = small_pages(PAGE)
    found = forty.list()
    assert [next(found).key for _ in range(PAGE + 1)][-1] == f"{PAGE:02}"
    found.close()  # type: ignore[attr-defined]  # waits for its threads; pytest's time limit would tell


def test_an_error_within_a_listing_is_raised_where_it_is_read(forty: S3Store, s3_server: S3Server) -> None:
    s3_server.fault = where(lambda environ: "continuation-token" in environ["QUERY_STRING"], DENIED, small_pages(PAGE))
    with pytest.raises(StorageError) as caught:
        list(forty.list())
    assert caught.value.problem is Problem.ACCESS_DENIED


# ---- reading


def requests_seen(s3_server: S3Server, fault: Fault = real) -> list[Environ]:
    seen: list[Environ] = []

    def watch(app: WsgiApp, environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(dict(environ))
        return fault(app, environ, start_response)

    s3_server.fault = watch
    return seen


@pytest.mark.parametrize("key", ["a b.jpg", "100%.jpg", "%2e%2E/x", "ü/日本.jpg", "q?x=1#y", "back\\slash", "k/" * 505])
def test_the_fast_client_reads_what_boto3_reads(store: S3Store, s3_server: S3Server, key: str) -> None:
    key = key.rstrip("/")
    store.put(key, key.encode())
    seen = requests_seen(s3_server)
    assert store.get(key) == store._get(key, None)
    assert ["Boto3" in request["HTTP_USER_AGENT"] for request in seen] == [False, True]


@pytest.mark.parametrize("key", ["a//b", "/leading", "../up", "trailing/"])
def test_keys_that_the_fast_client_cannot_name_are_read_by_boto3(store: S3Store, s3_server: S3Server, key: str) -> None:
    store.put(key, b"data")
    assert [info.key for info in store.list()] == [key]
    seen = requests_seen(s3_server)
    assert store.get(key)[0] == b"data"
    assert all("Boto3" in request["HTTP_USER_AGENT"] for request in seen)


def test_what_is_too_large_is_refused_by_its_header(store: S3Store, s3_server: S3Server) -> None:
    store.put("a", b"x" * 1000)
    seen = requests_seen(s3_server)
    with pytest.raises(StorageError, match="1,000 bytes, more than the limit of 999"):
        store.get("a", max_bytes=999)
    assert len(seen) == 1


def test_a_multipart_object_is_read_by_boto3_since_its_etag_is_no_checksum(store: S3Store, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(6 << 20)
    (tmp_path / "big").write_bytes(data)
    store.client.upload_file(str(tmp_path / "big"), store.bucket, f"{store.base}big")
    assert store.get("big")[0] == data


def test_bytes_under_kms_are_taken_though_their_etag_is_no_md5(store: S3Store, s3_server: S3Server) -> None:
    store.put("a", b"data")

    def kms(app: WsgiApp, environ: Environ, start_response: Any) -> Iterable[bytes]:
        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [pair for pair in headers if pair[0].lower() != "etag" and "checksum" not in pair[0].lower()]
            extra = [("ETag", f'"{"ab" * 16}"'), ("x-amz-server-side-encryption", "aws:kms")]
            return start_response(status, kept + extra, *rest)

        return app(environ, answer)

    s3_server.fault = kms
    assert store.get("a") == (b"data", "ab" * 16)
    assert store._bulk is None  # nothing more is read twice


def test_bytes_that_disagree_with_an_md5_are_given_up(
    store: S3Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enrich.storage.client.time.sleep", lambda _: None)
    store.put("a", b"data")

    def flipped(app: WsgiApp, environ: Environ, start_response: Any) -> Iterable[bytes]:
        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [pair for pair in headers if "checksum" not in pair[0].lower()], *rest)

        return [b"dat4" if part == b"data" else part for part in app(environ, answer)]

    s3_server.fault = flipped
    with pytest.raises(StorageError, match="its bytes arrived damaged 5 times; run again"):
        store.get("a")


def test_retries_have_a_budget(s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enrich.storage.client.time.sleep", lambda _: None)
    monkeypatch.setattr(s3, "RETRIES", 2)
    store = open_store(s3_bucket)
    assert isinstance(store, S3Store)
    store.put("a", b"data")
    broken = where(lambda environ: environ["REQUEST_METHOD"] == "GET", spoiled(lambda body: body[:-1]))
    s3_server.fault = broken
    with pytest.raises(StorageError, match="too often to retry; check the network"):
        store.get("a")
    for fault, times in ((real, 10), (first(1, broken), 1)):  # ten successes allow one more retry
        s3_server.fault = fault
        assert [store._get("a", None)[0] for _ in range(times)] == [b"data"] * times


def test_credentials_that_were_renewed_are_used(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = iter(range(1000))

    class Renewed:
        def get_frozen_credentials(self) -> Any:
            from botocore.credentials import ReadOnlyCredentials

            return ReadOnlyCredentials(f"key-{next(keys)}", "secret", None)

    session, s3_client = client.make_client(s3_bucket)
    monkeypatch.setattr(session, "get_credentials", lambda: Renewed())
    monkeypatch.setattr(bulk, "_REFRESH", bulk.timedelta(seconds=0))
    reader = bulk.BulkReader(session, s3_client, s3_bucket.removeprefix("s3://"), S3Settings())
    open_store(s3_bucket).put("a", b"data")
    seen = requests_seen(s3_server)
    for _ in range(3):
        assert reader.get("a", "a", None)
    users = [request["HTTP_AUTHORIZATION"].partition("Credential=")[2].partition("/")[0] for request in seen]
    assert len(set(users)) == 3


# ---- large files


def test_a_large_file_goes_in_parts_and_comes_in_pieces(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "ONE_PUT_BYTES", 1 << 20)
    data = random.Random(0).randbytes(11 << 20)
    (tmp_path / "big").write_bytes(data)
    store.put("big", tmp_path / "big")
    found = store.head("big")
    assert found is not None
    assert found.etag.endswith("-3")
    assert store.download("big", tmp_path / "copy") == found
    assert (tmp_path / "copy").read_bytes() == data
    assert not store.create("big", tmp_path / "big")
    assert not store.replace("big", tmp_path / "big", "0" * 32)
    assert store.replace("big", tmp_path / "big", found.etag)
    assert [info.key for info in store.list()] == ["big"]
    assert not store.client.list_multipart_uploads(Bucket=store.bucket).get("Uploads")


def test_parts_are_not_used_where_their_completion_ignores_conditions(
    store: S3Store, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ONE_PUT_BYTES", 1)
    completes = where(lambda environ: environ["REQUEST_METHOD"] == "POST", without("HTTP_IF_NONE_MATCH"))
    s3_server.fault = completes  # moto ignores If-Match there by itself
    (tmp_path / "big").write_bytes(b"first")
    assert store.create("big", tmp_path / "big")
    (tmp_path / "big").write_bytes(b"second")
    assert not store.create("big", tmp_path / "big")
    assert store.get("big")[0] == b"first"


# ---- what buckets ask for


def test_requester_pays_and_kms_settings_pass_through(s3_bucket: str, s3_server: S3Server) -> None:
    seen = requests_seen(s3_server)
    asks = S3Settings(requester_pays=True, encryption="aws:kms", kms_key_id="key-1")
    paid = open_store(s3_bucket, s3=asks)
    paid.put("a", b"data")
    list(paid.list())
    paid.get("a")
    paid.head("a")
    reads = [request for request in seen if request["REQUEST_METHOD"] in ("GET", "HEAD")]
    assert all(request.get("HTTP_X_AMZ_REQUEST_PAYER") == "requester" for request in reads)
    [write] = [request for request in seen if request["REQUEST_METHOD"] == "PUT"]
    assert write["HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION"] == "aws:kms"
    assert write["HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION_AWS_KMS_KEY_ID"] == "key-1"


def test_of_a_versioned_bucket_the_newest_version_counts(store: S3Store) -> None:
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    store.put("a", b"old")
    old = store.get("a")[1]
    store.put("a", b"new")
    assert not store.replace("a", b"later", old)
    store.put("gone", b"x")
    store.delete("gone")
    assert [info.key for info in store.list()] == ["a"]
    assert store.get("a")[0] == b"new"
    assert store.head("gone") is None


# ---- the lock object


def test_a_lock_object_makes_up_for_if_match(s3_bucket: str, s3_server: S3Server) -> None:
    s3_server.fault = REFUSES_IF_MATCH
    with pytest.raises(UsageError, match="ignores conditional writes with If-Match"):
        open_store(s3_bucket).check_conditional_writes()
    store = open_store(s3_bucket, s3=S3Settings(lock=True))
    store.check_conditional_writes()
    store.put("count", b"0")
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda _: increment(store, "count"), range(6)))
    assert store.get("count")[0] == b"6"
    assert [info.key for info in store.list()] == ["count"]


def test_a_lock_whose_holder_died_is_taken_when_its_lease_is_over(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create(lock._key(7), b"held by nobody")
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.5)
    with pytest.raises(RunFailed, match="others held its lock"), lock.locked(store):
        pass
    monkeypatch.setattr(lock, "LEASE_SECONDS", -5.0)
    with lock.locked(store):
        assert store.head(lock._key(8))
    assert store.get(lock._key(8))[0] == b"done"
    assert store.head(lock._key(7)) is None


def test_one_who_comes_late_with_an_old_number_does_not_hold_the_lock(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number was free again, as it was tidied away; it must see that there is a greater one."""
    store.create(lock._key(9), b"held by another")
    answers = iter([(4, True)])
    real = lock._greatest
    monkeypatch.setattr(lock, "_greatest", lambda store: next(answers, None) or real(store))
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.3)
    with pytest.raises(RunFailed, match="others held its lock"), lock.locked(store):
        pass


def test_a_lock_that_lets_two_in_is_refused(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.fault = REFUSES_IF_MATCH
    store = open_store(s3_bucket, s3=S3Settings(lock=True))
    store.check_conditional_writes()
    monkeypatch.setattr(lock, "LEASE_SECONDS", -5.0)  # as on an endpoint whose clock runs ahead of its listing
    monkeypatch.setattr(s3, "monotonic", lambda: -1e12)
    with pytest.raises(UsageError, match="lets two in at once"):
        store.check_conditional_writes()


def test_a_holder_that_slept_does_not_write(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(s3_bucket, s3=S3Settings(lock=True))
    store.put("a", b"old")
    monkeypatch.setattr(s3, "monotonic", lambda: 1e12)
    assert not store.replace("a", b"new", store.get("a")[1])
    assert store.get("a")[0] == b"old"
