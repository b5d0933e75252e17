"""Connections to public addresses only, under one deadline, even with hostile tables, name servers or web servers.

httpcore asks its network backend for connections. The one here resolves a name once, checks every address found and
connects to one of them, so no second look-up can return another address.
"""

import ipaddress
import socket
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from contextvars import ContextVar
from typing import Any

import httpcore

# Blocks within the public ranges that reach a cloud's own services, the inside of a relay, or nothing.
_SPECIAL = [
    ipaddress.ip_network(block)
    for block in (
        "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32",  # protocols, 6to4 relays, Azure's host
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",  # Teredo and others, examples, 6to4, examples
    )
]  # fmt: skip
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")  # the only block from which public addresses are given out
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the last 32 bits are the IPv4 address that a gateway connects to


class Refused(Exception):
    """An attempt failed. `again`: another may succeed; `wait`: seconds that the server asked for."""

    def __init__(self, reason: str, again: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.wait = again, wait


class Budget:
    """The seconds and the bytes on the wire that one attempt may still take."""

    def __init__(self, seconds: float, wire_bytes: int) -> None:
        self._seconds, self._deadline, self._bytes = seconds, time.monotonic() + seconds, wire_bytes

    def left(self, timeout: float | None = None) -> float:
        """Seconds that the next step may take, `timeout` at most. Raises Refused if none are left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Refused(f"not done in {self._seconds:g} seconds", again=True)
        return left if timeout is None else min(left, timeout)

    def extend(self, seconds: float) -> None:
        """Extend the deadline by the time that this program itself made the attempt wait."""
        self._deadline += seconds

    def read(self, count: int) -> None:
        """Count bytes that came from the wire. Raises Refused if they are too many."""
        self._bytes -= count
        if self._bytes < 0:
            raise Refused("the response is mostly padding, far more than a photo may have")


# The budget of what the current thread reads and waits for. A kept-alive connection serves attempts of any thread.
BUDGET: ContextVar[Budget] = ContextVar("BUDGET")


class Connector(httpcore.NetworkBackend):
    """Opens connections within the thread's `BUDGET`.

    Args:
        resolver: runs look-ups, which have no time-out of their own.
        any_address: also connect to addresses that are not public.
    """

    def __init__(self, resolver: Executor, any_address: bool) -> None:
        self._inner = httpcore.SyncBackend()
        self._resolver, self._any_address = resolver, any_address

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception | None = None
        for address in self._addresses(host):
            try:
                left = BUDGET.get().left(timeout)
                return _Stream(self._inner.connect_tcp(address, port, left, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def _addresses(self, host: str) -> list[str]:
        """The addresses of a name, in the operating system's order. Raises Refused if any of them is not public."""
        pending = self._resolver.submit(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        try:
            found = pending.result(BUDGET.get().left())
        except TimeoutError as error:
            raise Refused(f"host {host[:100]} not resolved in time", again=True) from error
        except OSError as error:
            raise Refused(f"host {host[:100]} not found", again=True) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._any_address:
            for address in addresses:
                check_public(ipaddress.ip_address(address.partition("%")[0]))  # without an IPv6 zone
        return addresses


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends by the deadline of the try that uses it."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        budget = BUDGET.get()
        data = self._inner.read(max_bytes, budget.left(timeout))
        budget.read(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, BUDGET.get().left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, BUDGET.get().left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def check_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Raises Refused for an address outside the public internet, itself or by the IPv4 address it stands for.

    These are loopback, private, link-local, shared (100.64.0.0/10), multicast, reserved and unspecified addresses, and
    IPv6 forms that a gateway may turn into one of them: 6to4, Teredo, local-use NAT64, IPv4-compatible.
    """
    reached = address
    if isinstance(address, ipaddress.IPv6Address):
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped
        reached = embedded or address
    public = reached in _UNICAST_IPV6 if reached.version == 6 else reached.is_global and not reached.is_multicast
    if not public or any(reached in block for block in _SPECIAL):
        raise Refused(f"{address} is not a public address; allow_private permits it")
