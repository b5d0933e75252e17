"""Download one photo from an untrusted URL: time-outs, retries, size limits, redirects, no private addresses."""

import base64
import ipaddress
import random
import re
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpcore
import httpx

from enrich.catalog.connect import BUDGET, Budget, Connector, Refused, check_public
from enrich.errors import first_line
from enrich.photos.decode import ImageRefused, inspect
from enrich.photos.decoders import Decoders, DecodingFailed, cores
from enrich.settings.catalog import FetchSettings

_USER_AGENT = "enrich-catalog-fetch/0.1"
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that a later try may not meet
_MOVED = frozenset({301, 302, 303, 307, 308})
_PROCESSES = 4  # at most, to check whether a file is a photo; one checks about 60 a second
# Bytes that a response may take beyond twice the limit of a photo: headers (100 kB at most), TLS, chunk sizes.
_OVERHEAD_BYTES = 1 << 18


@dataclass(frozen=True)
class Pace:
    """Limits on simultaneous requests and on waiting."""

    threads: int = 16
    connect_seconds: float = 10.0
    read_seconds: float = 20.0  # longest silence within a response
    backoff_seconds: float = 0.5  # longest wait before the second try; doubles with each further try
    max_wait_seconds: float = 60.0  # longest wait, whatever Retry-After asks for
    max_redirects: int = 5


USUAL_PACE = Pace()


@dataclass(frozen=True)
class Outcome:
    """The file name of a photo, or the reason why there is none, and the number of tries (0: nothing was requested)."""

    file: str | None
    reason: str
    attempts: int


class Downloader:
    """Fetches photos into a directory. Safe to use from several threads."""

    def __init__(self, directory: Path, settings: FetchSettings, pace: Pace) -> None:
        self._directory, self._settings, self._pace = directory, settings, pace
        self._slots: dict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(settings.per_host))
        self._lock = threading.Lock()
        self._decoders = Decoders(inspect, settings.limits, min(_PROCESSES, cores()), most_pixels=0)
        self._resolver = ThreadPoolExecutor(pace.threads, thread_name_prefix="resolve")
        # Through a proxy this machine neither resolves hosts nor sees their addresses; the proxy must check them.
        connector = Connector(self._resolver, any_address=settings.allow_private or settings.proxy is not None)
        # httpcore without httpx: no cookies, no proxies from the environment and no content codings.
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            proxy=None if settings.proxy is None else _proxy(settings.proxy),
            max_connections=None,
            max_keepalive_connections=pace.threads,
            network_backend=connector,
        )

    def close(self) -> None:
        self._decoders.close()
        self._pool.close()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    def fetch(self, url: str, stem: str) -> Outcome:
        """Save the photo at `url` as `stem` plus the extension of its format, whole or not at all.

        A URL without a scheme is requested by https, and by http if the server does not speak https.
        """
        part = self._directory / f"{stem}.part"
        for attempt in range(1, self._settings.attempts + 1):
            try:
                self._download(url, part)
                return Outcome(self._finish(part, stem), "", attempt)
            except Refused as refused:
                part.unlink(missing_ok=True)
                if not refused.again or attempt == self._settings.attempts:
                    return Outcome(None, str(refused), attempt)
                time.sleep(self._wait(attempt, refused.wait))
        raise AssertionError("at least one attempt")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait: what the server asked for plus full jitter (Brooker, AWS 2015), at most max_wait_seconds."""
        jitter = random.uniform(0, self._pace.backoff_seconds * 2 ** (attempt - 1))
        return min((asked or 0.0) + jitter, self._pace.max_wait_seconds)

    def _download(self, url: str, part: Path) -> None:
        """One attempt: from the first look-up to the last byte, including redirects, within total_seconds."""
        budget = Budget(self._settings.total_seconds, 2 * self._settings.limits.max_bytes + _OVERHEAD_BYTES)
        BUDGET.set(budget)
        try:
            if not url.startswith("//"):
                self._follow(httpx.URL(url), part, budget)
                return
            try:
                self._follow(httpx.URL(f"https:{url}"), part, budget)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                if isinstance(error.args[0], ssl.SSLCertVerificationError):
                    raise  # the server speaks https, but may not be the one that the URL names
                self._follow(httpx.URL(f"http:{url}"), part, budget)
        except httpcore.TimeoutException as error:
            budget.left()  # raises its own message if the total time is used up
            raise Refused(f"no answer in time ({_reason(error)})", again=True) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            raise Refused(f"connection failed ({_reason(error)})", again=True) from error
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise Refused("not a valid URL") from error

    def _follow(self, url: httpx.URL, part: Path, budget: Budget) -> None:
        target = url
        for _ in range(self._pace.max_redirects + 1):
            self._check(target)
            # A password in the table's URL is for that server only, not for those that it redirects to.
            mine = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port)
            with self._slot(target.host, budget), self._ask(target, url.userinfo if mine else b"") as response:
                headers = httpx.Headers(response.headers)
                if response.status not in _MOVED or "location" not in headers:
                    self._save(response, headers, part)
                    return
                target = target.join(headers["location"])
        raise Refused(f"more than {self._pace.max_redirects} redirects")

    @contextmanager
    def _ask(self, url: httpx.URL, userinfo: bytes) -> Iterator[httpcore.Response]:
        headers = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": _USER_AGENT,
            "Accept": "image/*",
            "Accept-Encoding": "identity",  # the bytes are saved as they arrive, and Content-Length counts them
        }
        if userinfo:
            login = f"{url.username}:{url.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(login).decode('ascii')}"
        pace = self._pace
        times = {"connect": pace.connect_seconds, "read": pace.read_seconds, "write": pace.read_seconds}
        more = {"timeout": times}
        with self._pool.stream("GET", _core(url), headers=list(headers.items()), extensions=more) as response:
            yield response

    def _save(self, response: httpcore.Response, headers: httpx.Headers, part: Path) -> None:
        if response.status != 200:
            reason = f"HTTP {response.status} {httpx.codes.get_reason_phrase(response.status)}".rstrip()
            raise Refused(reason, response.status in _BUSY, _retry_after(headers.get("retry-after")))
        coding = headers.get("content-encoding", "").strip()
        if coding.lower() not in ("", "identity"):
            raise Refused(f"content-encoding {coding[:40]!r}, which was not requested")
        limit = self._settings.limits.max_bytes
        length = headers.get("content-length", "")
        stated = int(length) if length.isascii() and length.isdigit() else None
        if stated is not None and stated > limit:
            raise Refused(f"{stated:,} bytes, more than the limit of {limit:,}")
        size = 0
        with part.open("wb") as file:
            for chunk in response.iter_stream():  # a body shorter than Content-Length raises an error
                size += len(chunk)
                if size > limit:
                    raise Refused(f"more than the limit of {limit:,} bytes")
                file.write(chunk)

    def _finish(self, part: Path, stem: str) -> str:
        """Give the file the extension of its format, whatever the server says."""
        data = part.read_bytes()
        try:
            image_format = self._decoders.decode(data).format
        except DecodingFailed as error:
            raise Refused(str(error), again=True) from error
        except ImageRefused as refusal:
            page = data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html"))
            raise Refused("a web page, not a photo" if page else str(refusal)) from refusal
        name = f"{stem}.{EXTENSIONS.get(image_format, image_format.lower())}"
        part.replace(part.with_name(name))
        return name

    @contextmanager
    def _slot(self, host: str, budget: Budget) -> Iterator[None]:
        """Wait until fewer than per_host requests to the host are in flight. The wait does not count towards the
        attempt."""
        with self._lock:
            slot = self._slots[host]
        started = time.monotonic()
        with slot:
            budget.extend(time.monotonic() - started)
            yield

    def _check(self, url: httpx.URL) -> None:
        """Refuse other schemes, and private addresses that a proxy would have to refuse, before anything is sent."""
        if url.scheme not in ("http", "https") or not url.host:
            raise Refused(f"not an http or https URL ({url.scheme[:20] or 'no scheme'})")
        if self._settings.proxy is not None and not self._settings.allow_private:
            with suppress(ValueError):  # a name, which the proxy resolves
                check_public(ipaddress.ip_address(url.host))


EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "AVIF": "avif"}
# Separates the URLs of a cell: a separator before the start of a URL, or one with blanks, which URLs cannot contain. A
# comma alone may be part of a URL ("w_300,h_200").
_NEXT_URL = re.compile(r"""["'\s,;|]+(?=(?:https?:)?//)|["']?\s*[,;|]\s+|\s*[\r\n]+|["']\s*,""", re.IGNORECASE)
_BARE_HOST = re.compile(r"(?:[^\s/:@.]+\.)+(?:[^\W\d_][\w-]+|\d{1,3})\.?(?::\d+)?/|localhost(?::\d+)?/")


def urls_of(cell: str) -> list[str]:
    """The URLs of a cell, separated by commas, semicolons, bars, blanks or line breaks, or written as a list.

    A URL without a scheme, `//host/photo` or `host.example/photo`, is returned with a leading //.
    """
    text = cell.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = (part.strip(" \t\"'<>,;|") for part in _NEXT_URL.split(text))
    return [f"//{part}" if _BARE_HOST.match(part) else part for part in parts if part]


def without_login(url: str) -> str:
    """A URL, or a text with URLs, without the user names and passwords in them."""
    return re.sub(r"//[^/?#\s]*@", "//***@", url)


def _proxy(address: str) -> httpcore.Proxy:
    parsed = httpx.Proxy(address)
    return httpcore.Proxy(_core(parsed.url), auth=parsed.raw_auth)


def _core(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header in either of its two forms (RFC 9110, 10.2.3)."""
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _reason(error: Exception) -> str:
    return first_line(error)[:120]
