"""S3 endpoints that keep less than they should: faults for the fixture `s3_server`."""

from collections.abc import Iterable
from typing import Any


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
