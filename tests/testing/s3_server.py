"""moto as an S3 server over HTTP: conditional writes are atomic, and a test can make it misbehave."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from socket import create_server, socket
from typing import Any

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Any], Iterable[bytes]]
Fault = Callable[[WsgiApp, Environ, Any], Iterable[bytes]]


@dataclass
class S3Server:
    """Where `fault` is set it answers instead of the real application."""

    application: WsgiApp
    endpoint: str = ""
    fault: Fault | None = None

    @contextmanager
    def listening(self, listener: socket | None = None) -> Iterator[str]:
        """The endpoint of a server in a thread of this process; without a socket that listens, on the loopback."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                pass

        listener = listener or create_server(("127.0.0.1", 0))
        host, port = listener.getsockname()
        http = make_server(
            host, port, self.application, threaded=True, request_handler=Quiet, fd=listener.fileno()
        )  # which closes a copy of the socket
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{port}"
        finally:
            http.shutdown()
            thread.join()
            listener.close()


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """A server in a thread of this process while the context lasts."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # 1 s, only where needed

    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def serve(environ: Environ, start_response: Any) -> Iterable[bytes]:
        return (server.fault or real)(one_at_a_time, environ, start_response)

    def one_at_a_time(environ: Environ, start_response: Any) -> Iterable[bytes]:
        with lock:  # S3 is atomic for each key; moto lets other requests between its check of a condition and its write
            return list(application(environ, start_response))

    server = S3Server(serve)
    with server.listening() as server.endpoint:
        yield server


# ---- faults


def real(app: WsgiApp, environ: Environ, start_response: Any) -> Iterable[bytes]:
    """No fault."""
    return app(environ, start_response)


def where(condition: Callable[[Environ], bool], fault: Fault, otherwise: Fault = real) -> Fault:
    """A fault of the requests that meet a condition."""
    return lambda app, environ, start: (fault if condition(environ) else otherwise)(app, environ, start)


def first(times: int, fault: Fault) -> Fault:
    """A fault of the first requests only."""
    numbers = count()
    return where(lambda _: next(numbers) < times, fault)


def refuse(status: str, code: str, message: str = "said the server") -> Fault:
    """Answers with an error as S3 words it."""

    def fault(_: WsgiApp, environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    return fault


def without(*headers: str) -> Fault:
    """Overlooks headers of the request, named as WSGI does."""
    return lambda app, environ, start: app({k: v for k, v in environ.items() if k not in headers}, start)


def spoiled(spoil: Callable[[bytes], bytes]) -> Fault:
    """Changes the body of the answer; its Content-Length and checksum stay."""
    return lambda app, environ, start: [spoil(b"".join(app(environ, start)))]


def small_pages(size: int) -> Fault:
    """Lists at most `size` keys a page."""
    return lambda app, environ, start: app(
        {**environ, "QUERY_STRING": f"{environ['QUERY_STRING']}&max-keys={size}"}, start
    )


DENIED = refuse("403 Forbidden", "AccessDenied")
# As radosgw 16 does: If-None-Match is honoured, If-Match refuses the right etag too.
REFUSES_IF_MATCH = where(
    lambda environ: "HTTP_IF_MATCH" in environ, refuse("412 Precondition Failed", "PreconditionFailed")
)
IGNORES_CONDITIONS = without("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")
