"""What a hostile table, name server or web server can make of a fetch: nothing but a failed row."""

import csv
import gzip
import http.server
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from enrich.catalog.download import Pace
from enrich.catalog.fetch import FetchSummary, fetch_catalog
from enrich.errors import RunFailed
from enrich.settings.catalog import FetchSettings
from enrich.settings.photos import PhotoLimits
from tests.testing.badweb import Web, reply, send, serve
from tests.testing.photo_files import encoded

Request = BaseHTTPRequestHandler
PUBLIC = "93.184.215.14"


JPEG = encoded(Image.new("RGB", (20, 20), "teal"), "JPEG")


def _fetch(tmp_path: Path, cells: list[str], **changes: Any) -> FetchSummary:
    """Fetches a table with these cells in its URL column, with one quick try for each."""
    pace = Pace(read_seconds=2, connect_seconds=2)
    pace = replace(pace, **{name: changes.pop(name) for name in list(changes) if name in Pace.__annotations__})
    settings = FetchSettings.model_validate({"allow_private": True, "attempts": 1, **changes})
    source = tmp_path / "source.csv"
    pl.DataFrame({"product_code": [str(n) for n in range(len(cells))], "imageurl": cells}).write_csv(source)
    return fetch_catalog(str(source), tmp_path / "out", settings, lambda done, total: None, pace)


def _failure(tmp_path: Path, url: str, **changes: Any) -> str:
    """The reason that failures.csv gives for this URL."""
    with pytest.raises(RunFailed):
        _fetch(tmp_path, [url], **changes)
    with (tmp_path / "out/failures.csv").open(newline="") as file:
        return next(csv.DictReader(file))["reason"]


@pytest.mark.parametrize("coding", ["gzip, gzip", "gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "none"])
def test_an_encoded_answer_is_refused_unread(web: Web, tmp_path: Path, coding: str) -> None:
    bomb = gzip.compress(gzip.compress(bytes(64 << 20), mtime=0), mtime=0)  # 64 MB in less than 1 kB
    web.answers["/a"] = reply(200, bomb, Content_Encoding=coding)
    tracemalloc.start()
    reason = _failure(tmp_path, f"{web.url}/a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason == f"content-encoding {coding!r}, which was not requested"
    assert web.headers["accept-encoding"] == "identity"
    assert peak < 8 << 20


def test_two_lines_of_content_encoding_are_no_way_around(web: Web, tmp_path: Path) -> None:
    def answer(request: Request, _: int) -> None:
        request.send_response(200)
        for coding in ("identity", "gzip"):
            request.send_header("Content-Encoding", coding)
        request.end_headers()
        request.wfile.write(gzip.compress(JPEG, mtime=0))

    web.answers["/a"] = answer
    assert "content-encoding" in _failure(tmp_path, f"{web.url}/a")


def _slow_headers(request: Request, _: int) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(200):
        request.wfile.write(f"X-{number}: a\r\n".encode())
        time.sleep(0.1)


def _slow_status(request: Request, _: int) -> None:
    for byte in b"HTTP/1.1 200 " + b"x" * 200:
        request.wfile.write(bytes([byte]))
        time.sleep(0.1)


def _never_a_final_status(request: Request, _: int) -> None:
    for _ in range(200):
        request.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        time.sleep(0.1)


def _slow_redirects(request: Request, hit: int) -> None:
    time.sleep(0.4)
    send(request, 302, Location=f"/a?{hit}")


@pytest.mark.parametrize("answer", [_slow_headers, _slow_status, _never_a_final_status, _slow_redirects])
def test_no_server_outlives_the_deadline_of_a_try(
    web: Web, tmp_path: Path, answer: Callable[[Request, int], None]
) -> None:
    web.answers |= dict.fromkeys(("/a", "/a?1"), answer)
    started = time.monotonic()
    assert _failure(tmp_path, f"{web.url}/a", total_seconds=0.6, max_redirects=20) == "not done in 0.6 seconds"
    assert time.monotonic() - started < 1.5


def test_a_slow_handshake_is_cut_at_the_deadline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # takes connections and says nothing
        started = time.monotonic()
        reason = _failure(tmp_path, f"https://127.0.0.1:{port}/a", total_seconds=0.5, connect_seconds=30)
    assert reason == "not done in 0.5 seconds"
    assert time.monotonic() - started < 1.5


def test_a_slow_name_server_is_cut_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(10) and [])
    started = time.monotonic()
    reason = _failure(tmp_path, "http://shop.example/a", total_seconds=0.3)
    assert time.monotonic() - started < 1.5
    answered.set()
    assert reason == "host shop.example not resolved in time"


def test_waiting_for_our_own_turn_is_not_the_servers_time(web: Web, tmp_path: Path) -> None:
    def lingering(request: Request, _: int) -> None:
        time.sleep(0.2)
        send(request, 200, JPEG)

    web.answers |= {f"/{number}": lingering for number in range(6)}
    urls = [f"{web.url}/{number}" for number in range(6)]
    assert _fetch(tmp_path, urls, per_host=1, total_seconds=0.6).photos == 6


def test_headers_and_padding_have_a_limit(web: Web, tmp_path: Path) -> None:
    sent = {"headers": 0, "chunks": 0}

    def headers(request: Request, _: int) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            sent["headers"] += request.wfile.write(f"X-{number}: {'a' * 1000}\r\n".encode())

    def chunks(request: Request, _: int) -> None:
        request.protocol_version = "HTTP/1.1"
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3000):
            sent["chunks"] += request.wfile.write(b"1;" + b"x" * 30_000 + b"\r\na\r\n")

    web.answers |= {"/headers": headers, "/chunks": chunks}
    limits = PhotoLimits(max_bytes=100_000)
    assert "connection failed" in _failure(tmp_path, f"{web.url}/headers", limits=limits)
    assert "mostly padding" in _failure(tmp_path, f"{web.url}/chunks", limits=limits)
    assert max(sent.values()) < 20 << 20  # what the kernel's buffers took; 100 and 90 MB were to come


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.7", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "192.0.0.192", "192.88.99.1", "168.63.129.16", "198.18.0.1", "203.0.113.5", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "fec0::1",
        "ff02::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.7", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001::1", "2001:db8::1",
        "3fff::1", "100::1", "5f00::1",
    ],
)  # fmt: skip
def test_a_name_with_one_address_inside_is_not_connected_to(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: _answers(PUBLIC, address))
    dialled = _dialling(monkeypatch, web)
    reason = _failure(tmp_path, "http://shop.example/a", allow_private=False)
    assert "is not a public address; allow_private permits it" in reason
    assert dialled == []


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:21f::1", "::ffff:93.184.215.14", "64:ff9b::93.184.215.14"])
def test_public_addresses_are_connected_to(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    web.answers["/a"] = reply(200, JPEG)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: _answers(address))
    dialled = _dialling(monkeypatch, web)
    assert _fetch(tmp_path, ["http://shop.example/a"], allow_private=False).photos == 1
    assert dialled == [(address, 80)]
    assert web.headers["host"] == "shop.example"


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "localhost", "[::ffff:7f00:1]"])
def test_other_spellings_of_this_machine_are_refused(web: Web, tmp_path: Path, host: str) -> None:
    web.answers["/a"] = reply(200, JPEG)
    port = web.url.rsplit(":", 1)[1]
    assert "is not a public address" in _failure(tmp_path, f"http://{host}:{port}/a", allow_private=False)
    assert not web.hits


def test_a_name_that_changes_its_address_reaches_only_the_one_that_was_checked(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.answers["/a"] = reply(200, JPEG)
    answers = iter([_answers(PUBLIC)])
    real = socket.create_connection
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: next(answers, _answers("127.0.0.1")))
    connected: list[object] = []

    def dial(where: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        connected.append(where[0])
        if where[0] == PUBLIC:
            raise ConnectionRefusedError(111, "Connection refused")
        return real(("127.0.0.1", int(web.url.rsplit(":", 1)[1])), *args, **options)

    monkeypatch.setattr(socket, "create_connection", dial)
    assert "refused" in _failure(tmp_path, "http://shop.example/a", allow_private=False)
    assert connected == [PUBLIC]
    assert not web.hits


def test_a_redirect_is_checked_as_the_url_itself(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers |= {"/a": reply(302, Location="http://inside.example/b")}
    where = {"shop.example": PUBLIC, "inside.example": "10.0.0.7"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: _answers(where[host]))
    dialled = _dialling(monkeypatch, web)
    reason = _failure(tmp_path, "http://shop.example/a", allow_private=False)
    assert reason == "10.0.0.7 is not a public address; allow_private permits it"
    assert dialled == [(PUBLIC, 80)]


def test_the_next_address_is_tried_where_one_is_dead(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers["/a"] = reply(200, JPEG)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: _answers("2606:2800:21f::1", PUBLIC))
    dialled = _dialling(monkeypatch, web, dead=("2606:2800:21f::1",))
    assert _fetch(tmp_path, ["http://shop.example/a"], allow_private=False).photos == 1
    assert dialled == [("2606:2800:21f::1", 80), (PUBLIC, 80)]


def test_the_certificate_is_the_names_and_not_the_addresss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _secure_web(tmp_path, "shop.example") as port:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        real = socket.getaddrinfo
        here = {"shop.example": "127.0.0.1", "other.example": "127.0.0.1"}
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: real(here.get(host, host), *rest, **more)
        )
        assert _fetch(tmp_path, [f"https://shop.example:{port}/a", f"//shop.example:{port}/a"]).photos == 2
        reason = _failure(tmp_path, f"https://other.example:{port}/a")
    assert "certificate" in reason.lower()


def test_the_proxy_of_the_environment_is_not_asked(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers |= {"/a": reply(200, JPEG)}
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert _fetch(tmp_path, [f"{web.url}/a"]).photos == 1


def test_a_proxy_that_the_settings_name_is_asked_and_finds_the_hosts(web: Web, tmp_path: Path) -> None:
    web.answers["http://shop.invalid/a"] = reply(200, JPEG)
    assert _fetch(tmp_path, ["http://shop.invalid/a"], proxy=web.url, allow_private=False).photos == 1
    assert "not a public address" in _failure(tmp_path, "http://169.254.169.254/a", proxy=web.url, allow_private=False)
    assert web.hits.total() == 1


def test_a_password_in_a_url_goes_to_its_server_and_nowhere_else(web: Web, tmp_path: Path) -> None:
    seen: dict[str, str | None] = {}

    def note(request: Request, _: int) -> None:
        seen[request.path] = request.headers.get("Authorization")
        send(request, 200, JPEG)

    with serve() as other:
        other.answers["/away"] = note
        web.answers |= {"/a": note, "/gone": reply(404)}
        web.answers |= {"/moved": reply(302, Location=f"{other.url.replace('//', '//o:p@')}/away")}
        mine = web.url.replace("//", "//user:s3cret@")
        assert _fetch(tmp_path, [f"{mine}/a", f"{mine}/moved", f"{mine}/gone"]).photos == 2
    assert seen == {"/a": "Basic dXNlcjpzM2NyZXQ=", "/away": None}
    told = (tmp_path / "out/failures.csv").read_text()
    assert "s3cret" not in told
    assert f"{web.url.replace('//', '//***@')}/gone" in told


def test_cookies_are_not_kept(web: Web, tmp_path: Path) -> None:
    web.answers |= {
        "/a": reply(302, Location="/b", Set_Cookie="who=me"),
        "/b": reply(200, JPEG),
    }
    assert _fetch(tmp_path, [f"{web.url}/a"]).photos == 1
    assert "cookie" not in web.headers


@pytest.mark.parametrize(
    "cell",
    [
        "{0}/1.jpg, {0}/2.jpg", "{0}/1.jpg,{0}/2.jpg", "{0}/1.jpg;{0}/2.jpg", "{0}/1.jpg | {0}/2.jpg",
        "{0}/1.jpg|{0}/2.jpg", "{0}/1.jpg {0}/2.jpg", "{0}/1.jpg\n{0}/2.jpg",
        '["{0}/1.jpg", "{0}/2.jpg"]', "['{0}/1.jpg','{0}/2.jpg']",
        '["{0}/1.jpg"]', '"{0}/1.jpg"', "<{0}/1.jpg>", "{0}/1.jpg,", "//{1}/1.jpg, //{1}/2.jpg", "{1}/1.jpg, {1}/2.jpg",
    ],
)  # fmt: skip
def test_all_urls_of_a_cell_are_fetched(web: Web, tmp_path: Path, cell: str) -> None:
    web.answers |= {"/1.jpg": reply(200, JPEG), "/2.jpg": reply(200, JPEG)}
    summary = _fetch(tmp_path, [cell.format(web.url, web.url.removeprefix("http://"))])
    count = 1 + cell.count("2.jpg")
    assert summary == FetchSummary(photos=count, failed=0, resumed=0)
    assert dict(web.hits) == {f"/{number}.jpg": 1 for number in range(1, count + 1)}


def test_photos_of_a_row_are_in_order_and_one_that_is_missing_costs_only_itself(web: Web, tmp_path: Path) -> None:
    web.answers |= {f"/{number}.jpg": reply(200, JPEG + bytes([number])) for number in (1, 3, 4)}
    source = tmp_path / "table.csv"
    cells = [", ".join(f"{web.url}/{number}.jpg" for number in (1, 2, 3)), f"{web.url}/4.jpg {web.url}/1.jpg"]
    pl.DataFrame([["00101", *cells]], ["product_code", "main", "more"], orient="row").write_csv(source)
    settings = FetchSettings.model_validate(
        {"allow_private": True, "image_url": ["main", "more"], "photos_per_product": 4}
    )
    done = fetch_catalog(str(source), tmp_path / "out", settings, lambda done, all: None)
    assert done == FetchSummary(photos=3, failed=1, resumed=0)
    [paths] = pl.read_csv(tmp_path / "out/catalog.csv")["local_image_path"]
    assert [(tmp_path / "out" / path).read_bytes()[-1] for path in paths.split("|")] == [1, 3, 4]
    assert "00101," + f"{web.url}/2.jpg,HTTP 404 Not Found,1" in (tmp_path / "out/failures.csv").read_text()


@pytest.mark.parametrize(
    "path", ["/w_300,h_200/a.jpg", "/a.jpg?size=1,2;3", "/red%20shirt.jpg", "/red shirt.jpg", "/a|b"]
)
def test_separators_within_a_url_belong_to_it(web: Web, tmp_path: Path, path: str) -> None:
    web.answers[path.replace(" ", "%20")] = reply(200, JPEG)
    assert _fetch(tmp_path, [f"{web.url}{path}"]) == FetchSummary(photos=1, failed=0, resumed=0)


def test_a_url_without_a_scheme_is_fetched_by_http_if_the_server_does_not_support_https(
    web: Web, tmp_path: Path
) -> None:
    web.answers["/a.jpg"] = reply(200, JPEG)
    host = web.url.removeprefix("http://")
    assert _fetch(tmp_path, [f"//{host}/a.jpg", f"{host}/a.jpg"]).photos == 2


def test_a_bad_certificate_is_no_reason_to_ask_without_one(tmp_path: Path) -> None:
    with _secure_web(tmp_path, "shop.example") as port:
        assert "certificate" in _failure(tmp_path, f"//127.0.0.1:{port}/a").lower()


def _answers(*addresses: str) -> list[tuple[Any, ...]]:
    """What getaddrinfo says."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]


def _dialling(monkeypatch: pytest.MonkeyPatch, web: Web, dead: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """The addresses that are connected to from now on; `web` answers instead of all that are not dead."""
    dialled: list[tuple[str, int]] = []

    def dial(where: tuple[str, int], timeout: float | None = None, **_: Any) -> socket.socket:
        dialled.append(where)
        if where[0] in dead:
            raise ConnectionRefusedError(111, "Connection refused")
        connection = socket.socket()
        connection.settimeout(timeout)
        connection.connect(("127.0.0.1", int(web.url.rsplit(":", 1)[1])))
        return connection

    monkeypatch.setattr(socket, "create_connection", dial)
    return dialled


class _secure_web:
    """A web server of this machine that answers every path with a photo, under a certificate of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                send(self, 200, JPEG)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
