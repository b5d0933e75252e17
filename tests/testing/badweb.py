"""A web server with bad manners, on a free port of this machine."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

Answer = Callable[[BaseHTTPRequestHandler, int], None]


class Web:
    """How each path is answered, by a function of the request and of how often the path was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.hits: Counter[str] = Counter()
        self.headers: dict[str, str] = {}  # of the last request
        self.closing = threading.Event()
        self.url = ""


def send(request: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    """The same answer to every request."""
    return lambda request, hit: send(request, status, body, **headers)


def reset(request: BaseHTTPRequestHandler) -> None:
    """Close with a TCP reset instead of an answer."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    request.wfile = BytesIO()  # what the base class flushes afterwards


@contextmanager
def serve() -> Iterator[Web]:
    web = Web()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                web.hits[self.path] += 1
                hit = web.hits[self.path]
                web.headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                answer = web.answers.get(self.path)
                if answer is None:
                    send(self, 404, b"gone")
                else:
                    answer(self, hit)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has had enough

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        web.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
