"""moto as an S3 server over HTTP whose conditional writes are atomic."""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any


class Moto:
    """A server in a thread of this process while the context lasts."""

    endpoint: str

    def __enter__(self) -> "Moto":
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # 1 s to import
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                pass

        application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

        def one_at_a_time(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            with lock:  # S3 is atomic for each key; moto lets others between its check of a condition and its write
                return list(application(environ, start_response))

        self._http = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
