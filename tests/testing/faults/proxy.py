"""A proxy before an S3 server that does to some requests what networks and busy servers do.

Raw bytes pass through with their Host header, so signatures stay valid. What befalls a request is drawn from a seed.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

FAULTS = ("slow_down", "error", "reset", "delay", "truncate", "corrupt", "lost")
DELAY_SECONDS = 2.0
_HEAD_BYTES = 1 << 20


class Proxy:
    """Listens on `endpoint` in a thread of its own. `rates` may be changed while it runs."""

    def __init__(self, upstream: str, rates: Mapping[str, float] = {}, seed: int = 0) -> None:
        self.rates, self.happened = dict(rates), Counter[str]()
        self.delay_seconds = DELAY_SECONDS
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES), self._loop
        ).result()
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        with suppress(OSError):
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False to close the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        headers = _headers(head)
        method = head.partition(b" ")[0]
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
        body = await _body(reader, headers)
        fault = self._draw()
        if fault:
            self.happened[fault] += 1
        self.happened["requests"] += 1
        if fault in ("slow_down", "error"):
            code, status = ("SlowDown", "503 Slow Down") if fault == "slow_down" else ("InternalError", "500 Error")
            text = b"" if method == b"HEAD" else f"<Error><Code>{code}</Code><Message>made</Message></Error>".encode()
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
            await writer.drain()
            return True
        if fault == "reset":
            return False
        if fault == "delay":
            await asyncio.sleep(self.delay_seconds)
        answer = await self._forward(head, body, method)
        if answer is None or fault == "lost":
            return False
        split = answer.index(b"\r\n\r\n") + 4
        if fault == "truncate" and len(answer) > split:
            writer.write(answer[: split + (len(answer) - split) // 2])
            await writer.drain()
            return False
        if fault == "corrupt" and method == b"GET" and len(answer) > split:
            at = self._random.randrange(split, len(answer))
            answer = answer[:at] + bytes([answer[at] ^ 0x20]) + answer[at + 1 :]
        writer.write(answer)
        await writer.drain()
        return True

    def _draw(self) -> str | None:
        place = self._random.random()
        for fault, rate in self.rates.items():
            if place < rate:
                return fault
            place -= rate
        return None

    async def _forward(self, head: bytes, body: bytes, method: bytes) -> bytes | None:
        """The whole answer of the server; None where it is down or ends early."""
        try:
            reader, writer = await asyncio.open_connection(*self._upstream, limit=_HEAD_BYTES)
        except OSError:
            return None
        try:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
            writer.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            while answer.startswith(b"HTTP/1.1 100"):
                answer = await reader.readuntil(b"\r\n\r\n")
            headers = _headers(answer)
            if method == b"HEAD" or answer.split(b" ", 2)[1] in (b"204", b"304"):
                return answer
            if "content-length" in headers:
                return answer + await reader.readexactly(int(headers["content-length"]))
            rest = await reader.read(-1)
            return answer + rest
        except (OSError, asyncio.IncompleteReadError):
            return None
        finally:
            writer.close()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        chunks = []
        while True:
            size = await reader.readuntil(b"\r\n")
            chunks.append(size)
            chunks.append(await reader.readexactly(int(size.split(b";")[0], 16) + 2))
            if int(size.split(b";")[0], 16) == 0:
                return b"".join(chunks)
    return await reader.readexactly(int(headers.get("content-length", 0)))
