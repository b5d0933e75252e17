"""One photo from one URL of unknown manners: time-outs, retries, size caps, redirects, no private addresses."""

import ipaddress
import random
import socket
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from PIL import Image, UnidentifiedImageError

from enrich.settings import FetchSettings

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may pass
_MOVED = frozenset({301, 302, 303, 307, 308})


class Refused(Exception):
    """This try brought no photo. `again`: another may; `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, again: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait = reason, again, wait


@dataclass(frozen=True)
class Outcome:
    """A photo's file name, or why there is none; and after how many tries (0: it was there before)."""

    file: str | None
    reason: str
    attempts: int


class Downloader:
    """Fetches photos into a directory. Safe to use from several threads."""

    def __init__(self, directory: Path, settings: FetchSettings) -> None:
        self._directory = directory
        self._settings = settings
        # Through a proxy this machine may not resolve hosts and does not see their addresses: the proxy has to.
        self._directory = directory
        self._settings = settings
        # Through a proxy this machine neither resolves hosts nor sees their addresses: that is the proxy's to police.
        self._direct = not {"http", "https", "all"} & urllib.request.getproxies().keys()
        self._slots: dict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(settings.per_host))
        self._lock = threading.Lock()
        self._client = httpx.Client(
            timeout=httpx.Timeout(settings.read_seconds, connect=settings.connect_seconds, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.threads),
            # No compression on the way: the bytes are kept as they come, and Content-Length counts them.
            headers={"User-Agent": settings.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )

    def close(self) -> None:
        self._client.close()

    def fetch(self, url: str, stem: str) -> Outcome:
        """The photo at `url` as `stem` plus the extension of what it is, whole or not at all."""
        part = self._directory / f"{stem}.part"
        for attempt in range(1, self._settings.attempts + 1):
            try:
                self._download(url, part)
                return Outcome(self._finish(part, stem), "", attempt)
            except Refused as refused:
                part.unlink(missing_ok=True)
                if not refused.again or attempt == self._settings.attempts:
                    return Outcome(None, refused.reason, attempt)
                time.sleep(self._wait(attempt, refused.wait))
        raise AssertionError("at least one attempt")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Full jitter (Brooker, AWS 2015) on a doubling ceiling, after what the server asked for, all capped."""
        jitter = random.uniform(0, self._settings.backoff_seconds * 2 ** (attempt - 1))
        return min((asked or 0.0) + jitter, self._settings.max_wait_seconds)

    def _download(self, url: str, part: Path) -> None:
        deadline = time.monotonic() + self._settings.total_seconds
        try:
            target = httpx.URL(url)
            for _ in range(self._settings.max_redirects + 1):
                self._check_address(target)
                with self._slot(target.host), self._client.stream("GET", target) as response:
                    self._check_peer(response)
                    if response.status_code not in _MOVED or "location" not in response.headers:
                        self._save(response, part, deadline)
                        return
                    target = target.join(response.headers["location"])
        except httpx.TimeoutException as error:
            raise Refused(f"no answer in time ({_words(error)})", again=True) from error
        except httpx.RequestError as error:
            raise Refused(f"connection failed ({_words(error)})", again=True) from error
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise Refused("not a valid URL") from error
        raise Refused(f"more than {self._settings.max_redirects} redirects")

    def _save(self, response: httpx.Response, part: Path, deadline: float) -> None:
        if response.status_code != 200:
            reason = f"HTTP {response.status_code} {httpx.codes.get_reason_phrase(response.status_code)}".rstrip()
            raise Refused(reason, response.status_code in _BUSY, _retry_after(response.headers.get("retry-after")))
        limit = self._settings.limits.max_bytes
        length = response.headers.get("content-length", "")
        stated = int(length) if length.isascii() and length.isdigit() else None
        if stated is not None and stated > limit:
            raise Refused(f"{stated:,} bytes, more than the limit of {limit:,}")
        size = 0
        with part.open("wb") as file:
            for chunk in response.iter_bytes():  # as they arrive; a body shorter than Content-Length raises
                size += len(chunk)
                if size > limit:
                    raise Refused(f"more than the limit of {limit:,} bytes")
                if time.monotonic() > deadline:
                    raise Refused(f"not done in {self._settings.total_seconds:g} seconds", again=True)
                file.write(chunk)

    def _finish(self, part: Path, stem: str) -> str:
        """Names the file after what its header says it is, not after what the server says."""
        limits = self._settings.limits
        try:
            with Image.open(part, formats=limits.formats) as image:
                image_format, (width, height) = image.format or "", image.size
        except UnidentifiedImageError as error:
            with part.open("rb") as file:
                page = file.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html"))
            raise Refused("a web page, not a photo" if page else "no image of an accepted format") from error
        except Exception as error:  # on hostile bytes Pillow's plugins raise whatever their parsing runs into
            raise Refused(f"no readable image ({type(error).__name__})") from error
        if width * height > limits.max_pixels:
            raise Refused(f"{width} x {height} pixels, more than the limit of {limits.max_pixels:,}")
        name = f"{stem}.{EXTENSIONS.get(image_format, image_format.lower())}"
        part.replace(part.with_name(name))
        return name

    @contextmanager
    def _slot(self, host: str) -> Iterator[None]:
        with self._lock:
            slot = self._slots[host]
        with slot:
            yield

    def _check_address(self, url: httpx.URL) -> None:
        """Refuses what is not the public web before anything is sent."""
        if url.scheme not in ("http", "https") or not url.host:
            raise Refused(f"not an http or https URL ({url.scheme[:20] or 'no scheme'})")
        if self._settings.allow_private:
            return
        host = url.host.strip("[]")
        try:
            addresses = {host} if _is_address(host) else _resolve(host)
        except OSError as error:
            if self._direct:
                raise Refused(f"host {host[:100]} not found", again=True) from error
            return
        for address in addresses:
            _check_public(address)

    def _check_peer(self, response: httpx.Response) -> None:
        """Again on the open connection: a name may resolve to another address the second time."""
        if self._settings.allow_private or not self._direct:
            return
        stream = response.extensions.get("network_stream")
        peer = stream.get_extra_info("server_addr") if stream is not None else None
        if peer is not None:
            _check_public(str(peer[0]))


EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "AVIF": "avif"}


def _resolve(host: str) -> set[str]:
    return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_public(address: str) -> None:
    """Refuses loopback, private, link-local, multicast and reserved addresses."""
    parsed = ipaddress.ip_address(address.split("%")[0])  # without an IPv6 zone
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    if not (mapped or parsed).is_global or parsed.is_multicast:
        raise Refused(f"{parsed} is not a public address; allow_private permits it")


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


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
