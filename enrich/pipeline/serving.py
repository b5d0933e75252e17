"""The HTTP server of `enrich serve`: GET and HEAD of one output's pages, for a few people at a time.

The server is the standard library's: uvicorn, which Prefect installs, has no limit on the time in which a request has
to arrive, and an event loop is of no use to a handful of files. Added here are that limit, one on connections, a check
of the Host header (a site whose name is made to point here, DNS rebinding, gets no answer), and headers for browsers.
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import BoundedSemaphore, Timer
from typing import Any
from urllib.parse import unquote, urlsplit

from enrich.errors import RunFailed, UsageError, one_line
from enrich.pipeline.site import Site
from enrich.storage import StorageError

REQUEST_SECONDS = 10.0  # in which a request has to arrive whole
PIECE_SECONDS, PIECE = 30.0, 1 << 20  # in which a browser has to take each piece of a page, in bytes
CONNECTIONS = 16  # at a time; one more is closed unanswered
_HASH = re.compile(rb"'sha256-[A-Za-z0-9+/]{43}='")
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Serves a site at an address; `url` says where. `names` are further host names that it answers to."""

    daemon_threads = True

    def __init__(self, site: Site, host: str, port: int, names: Iterable[str] = ()) -> None:
        """Raises UsageError where the address cannot be listened to."""
        self.site = site
        self._room = BoundedSemaphore(CONNECTIONS)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            self.address_family = family
            super().__init__((str(address[0]), port), _Handler)
        except (OSError, OverflowError) as error:
            raise _unusable(host, port, error) from error
        bound = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0])
        self.loopback = bound.is_loopback
        here = socket.gethostname() if bound.is_unspecified else f"[{bound}]" if bound.version == 6 else str(bound)
        self.url = f"http://{here}:{self.server_address[1]}/"
        own = () if self.loopback else (socket.gethostname(), socket.getfqdn())
        self._names = {name.lower().rstrip(".") for name in ("localhost", host, *own, *names)}

    def server_bind(self) -> None:
        """Without the look-up of a name that HTTPServer makes here, which may take many seconds."""
        TCPServer.server_bind(self)

    def answers_to(self, host: str) -> bool:
        """Whether a Host header is ours: an IP address, which no name can be made to stand for, or one of our names.

        The port may be another: that of a tunnel or of a proxy.
        """
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if not name or re.search(r"[/?#@\s\\]", host):
            return False
        with suppress(ValueError):
            address = ipaddress.ip_address(name)
            return address.is_loopback or not self.loopback
        return name.rstrip(".") in self._names

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away needs no traceback, and a page that fails says so itself."""


def _unusable(host: str, port: int, error: Exception) -> UsageError | RunFailed:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return UsageError(f"port {port} of {host} is in use; name another with --port, or 0 for any that is free")
    if isinstance(error, PermissionError):
        return UsageError(f"port {port} of {host}: not permitted to this user; name one above 1023 with --port")
    if isinstance(error, OverflowError):
        return UsageError(f"port {port}: not a port; name one from 0 to 65535")
    return UsageError(f"{host}: cannot listen on it ({one_line(str(error))}); name an address of this machine")


class _Handler(BaseHTTPRequestHandler):
    """One request; the connection is closed after it."""

    server: PageServer
    timeout = PIECE_SECONDS

    def handle(self) -> None:
        limit = Timer(REQUEST_SECONDS, self._give_up)
        limit.daemon = True
        limit.start()
        self._limit = limit
        try:
            with suppress(OSError):
                super().handle()
        finally:
            limit.cancel()

    def _give_up(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        self._limit.cancel()
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.answers_to(hosts[0]):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "this server does not answer to that host name; see --name")
            return
        path = unquote(self.path.partition("?")[0])
        try:
            page = self.server.site.index() if path == "/" else self.server.site.page(path.removeprefix("/"))
        except StorageError as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, str(error))
            return
        if page is None or not path.startswith("/"):
            self.send_error(HTTPStatus.NOT_FOUND, "no such page; see / for the list of pages")
            return
        self._send(HTTPStatus.OK, page, "text/html; charset=utf-8", policy_of(page))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "pages are read-only: GET and HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_CONNECT = do_TRACE = _refuse

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One line of plain text: nothing of a request is repeated as HTML."""
        status = HTTPStatus(code)
        text = message if message and status != HTTPStatus.BAD_REQUEST else status.phrase
        self._send(status, f"{one_line(text)}\n".encode(), "text/plain; charset=utf-8", _POLICY)

    def _send(self, status: HTTPStatus, body: bytes, media_type: str, policy: str) -> None:
        self.send_response(status)
        about = {"Content-Type": media_type, "Content-Length": str(len(body)), "Content-Security-Policy": policy}
        for name, value in (about | _HEADERS).items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(body), PIECE):
                self.wfile.write(body[start : start + PIECE])

    def version_string(self) -> str:
        return "enrich"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a server of pages has no need to record people's addresses."""


def policy_of(page: bytes) -> str:
    """The Content-Security-Policy of a page: the scripts whose hashes its own policy names, and nothing from elsewhere.

    A page can so be the work of another version of this package, and can permit itself no more than its own scripts.
    """
    hashes = b" ".join(_HASH.findall(page[:4096])).decode()
    return f"{_POLICY}; script-src {hashes}" if hashes else _POLICY
