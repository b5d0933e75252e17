"""`enrich serve`: what it shows, what it does not, and to whom it answers."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from enrich.errors import UsageError
from enrich.pipeline import serving
from enrich.pipeline.serving import PageServer, policy_of
from enrich.pipeline.site import Site
from enrich.storage import Store, open_store
from tests.testing.cli import RunCli
from tests.testing.rows import enrich_night, finish, listing, make_run

SECRET = "do-not-show"


def fill(output: Store) -> None:
    """Two finished runs with reports, one that was held, one that is not finished, and files that are not pages."""
    for number, state in enumerate(("published", "held")):
        run = enrich_night(output, make_run(f"night-{number}", 60 * number, fingerprint=f"f{number}"), listing("a.jpg"))
        finish(output, run, 60 * number, state)
        output.put(f"{run.folder}report.html", f"<!doctype html><title>report {number}</title>".encode())
    output.put("runs/night-2/manifest.parquet", b"")
    for key in ("secrets.txt", "runs/night-0/notes.html", "runs/night-0/scores.txt", "runs/.hidden/report.html"):
        output.put(key, SECRET.encode())
    output.put("runs/night-9/run.json", b"{}")
    output.put("review.html", b"<!doctype html><title>queue</title>")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    (root / "outside.html").write_text(SECRET)
    (root / "output").mkdir()
    fill(open_store(str(root / "output")))
    (root / "output" / "runs" / "night-2" / "report.html").symlink_to(root / "outside.html")
    return root / "output"


@pytest.fixture(scope="module")
def server(output: Path) -> Iterator[PageServer]:
    with PageServer(Site(open_store(str(output))), "127.0.0.1", 0, ["pages.shop.example"]) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), {name.lower(): value for name, value in answer.getheaders()}


def raw(server: PageServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_first_page_lists_runs_and_links_their_pages(server: PageServer, output: Path) -> None:
    status, page, _ = ask(server, "/")
    assert status == 200
    assert str(output) in page
    for words in ("night-0", "published", "held", "not finished", "run.json cannot be read", "4 runs"):
        assert words in page, words
    assert [page.index(f"<b>night-{number}") for number in (2, 1, 0)] == sorted(
        page.index(f"<b>night-{number}") for number in (2, 1, 0)
    )
    for link in ("/runs/night-0/report.html", "/runs/night-1/report.html", "/review.html"):
        assert f'href="{link}"' in page
        assert ask(server, link)[0] == 200


def test_a_changed_record_shows(server: PageServer, output: Path) -> None:
    path = output / "runs" / "night-0" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(record | {"cost": {"per_hour": 2.0, "per_1000_photos": 1.0, "total": 12.5, "currency": "USD"}})
    )
    assert "12.50 USD" in ask(server, "/")[1]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "path",
    [
        "/secrets.txt", "/products.parquet", "/runs/night-0/run.json", "/runs/night-0/notes.html", "/runs/night-0/",
        "/runs/night-0/scores.txt", "/runs/.hidden/report.html", "/runs/../secrets.txt", "/..%2foutside.html",
        "/runs/..%2f..%2foutside.html/report.html", "/runs/%2e%2e/report.html", "/../outside.html", "//etc/passwd",
        "/runs/night-0/report.html/", "/runs/night-0/report.html%00", "/runs/night-0//report.html", "/%ff", "/%",
        "/REVIEW.HTML", "review.html", "/runs/night-2/report.html", "/runs/night-5/report.html", "/favicon.ico",
        "/runs\\night-0\\report.html", "/scores.html", "http://evil.example/review.html", "/review.html;x",
    ],
)  # fmt: skip
def test_nothing_else_is_shown(server: PageServer, path: str) -> None:
    status, text, headers = ask(server, path)
    assert status in (404, 421, 502), path
    assert SECRET not in text
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_pages_are_only_read(server: PageServer, method: str) -> None:
    status, _, headers = ask(server, "/review.html", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_head_says_what_get_would_without_the_page(server: PageServer) -> None:
    status, text, headers = ask(server, "/review.html", "HEAD")
    assert (status, text, headers["content-length"]) == (200, "", str(len("<!doctype html><title>queue</title>")))


def test_browsers_are_told_to_keep_a_page_to_itself(server: PageServer) -> None:
    for path in ("/", "/review.html", "/none"):
        _, _, headers = ask(server, path)
        assert headers["content-security-policy"].startswith("default-src 'none'; img-src data:;")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert headers["server"] == "enrich"


def test_a_page_permits_itself_its_own_scripts_and_nothing_more() -> None:
    script = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    greedy = f"<meta content=\"script-src {script} 'unsafe-inline' https://evil.example; connect-src *\">".encode()
    assert policy_of(greedy).endswith(f"; script-src {script}")
    assert "evil" not in policy_of(greedy)
    assert "unsafe-inline" not in policy_of(greedy).partition("script-src")[2]


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1", True), ("localhost:8420", True), ("LOCALHOST", True), ("[::1]:9", True), ("127.8.9.1:80", True),
        ("pages.shop.example", True), ("pages.shop.example:443", True), ("evil.example", False),
        ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("10.0.0.7", False), ("", False),
        ("evil.example@localhost", False), ("localhost/evil", False), ("localhost evil", False), ("[::1", False),
    ],
)  # fmt: skip
def test_only_names_of_its_own_are_answered(server: PageServer, host: str, answered: bool) -> None:
    """A site whose name was made to point at 127.0.0.1 could otherwise read the pages in a visitor's browser."""
    assert ask(server, "/review.html", Host=host)[0] == (200 if answered else 421)


def test_a_request_names_one_host(server: PageServer) -> None:
    assert b" 421 " in raw(server, b"GET / HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 421 " in raw(server, two).split(b"\r\n")[0]


def test_large_and_slow_requests_end(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert b" 414 " in raw(server, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n").split(b"\r\n")[0]
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(200))
    assert b" 431 " in raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n").split(b"\r\n")[0]
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.3)
    start = time.monotonic()
    assert b" 200 " not in raw(server, b"GET / HTTP/1.1\r\nHost: local")
    assert time.monotonic() - start < 5


def test_so_many_connections_and_no_more(server: PageServer) -> None:
    address: Any = ("127.0.0.1", server.server_address[1])
    held = [socket.create_connection(address, timeout=20) for _ in range(serving.CONNECTIONS)]
    try:
        deadline = time.monotonic() + 10
        while server._room._value and time.monotonic() < deadline:
            time.sleep(0.01)
        assert raw(server, b"") == b""  # closed at once
    finally:
        for one in held:
            one.close()
    deadline = time.monotonic() + 10
    while server._room._value < serving.CONNECTIONS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(server, "/review.html")[0] == 200


def test_an_output_in_s3_is_shown_too(s3_bucket: str) -> None:
    store = open_store(f"{s3_bucket}/out")
    fill(store)
    with PageServer(Site(store), "127.0.0.1", 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        status, page, _ = ask(server, "/")
        assert (status, f"{s3_bucket}/out" in page) == (200, True)
        assert ask(server, "/runs/night-1/report.html")[1] == "<!doctype html><title>report 1</title>"
        assert ask(server, "/runs/..%2fsecrets.txt")[0] == 404
        server.shutdown()


def test_what_cannot_be_served_is_said_in_one_line(run_cli: RunCli, tmp_path: Path, output: Path) -> None:
    assert run_cli("serve --output", tmp_path / "none")[0] == 2
    code, _, said = run_cli("serve --output", tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert "no runs; make one with `enrich run`" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, said = run_cli("serve --output", output, "--port", port)
        assert (code, said.strip()) == (
            2, f"error: port {port} of 127.0.0.1 is in use; name another with --port, or 0 for any that is free",
        )  # fmt: skip
    for host, port in (("203.0.113.9", 0), ("127.0.0.1", 70_000), ("no such host", 0)):
        with pytest.raises(UsageError):
            PageServer(Site(open_store(str(output))), host, port)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_command_says_where_it_is_and_stops_on_ctrl_c(output: Path, host: str, warned: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "enrich.cli", "serve", "--output", str(output), "--host", host, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"pages of {output}: http://")
        port = int(line.split()[3].rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/review.html")
        assert connection.getresponse().status == 200
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "stopped\n")
    assert ("no password" in err) is warned
