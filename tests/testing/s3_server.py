"""moto as an S3 server over HTTP: conditional writes are atomic, and a test can make it misbehave."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class S3Server:
    """Where `fault` is set it answers instead of the real application."""

    endpoint: str = ""
    fault: Callable[[WsgiApp, dict[str, Any], Callable[..., Any]], Iterable[bytes]] | None = None


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """A server in a thread of this process while the context lasts."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # 1 s, only where needed
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    application = DomainDispatcherApplication(create_backend_app)
    server = S3Server()
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if server.fault:
            return server.fault(one_at_a_time, environ, start_response)
        return one_at_a_time(environ, start_response)

    def one_at_a_time(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock:  # S3 is atomic for each key; moto lets other requests between its check of a condition and its write
            return list(application(environ, start_response))

    http = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=Quiet)
    server.endpoint = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()


def without_if_match(app: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """As radosgw 16 does: If-None-Match is honoured, If-Match refuses the right etag too."""
    if "HTTP_IF_MATCH" in environ and environ["REQUEST_METHOD"] == "PUT":
        start_response("412 Precondition Failed", [])
        return [b"<Error><Code>PreconditionFailed</Code></Error>"]
    return app(environ, start_response)


def without_conditions(app: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Writes whatever is there."""
    if environ["REQUEST_METHOD"] == "PUT":
        for name in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"):
            environ.pop(name, None)
    return app(environ, start_response)
