"""Connections to public addresses only, under one deadline, whatever tables, name servers or web servers say.

httpcore asks its network backend for connections. The one here resolves a name once, checks every address found and
connects to one of them, so no second look-up can return another address.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from typing import Any

import httpcore

# IPv4 addresses that the standard library calls global, and that reach a cloud's own services or a relay's inside.
_SPECIAL_IPV4 = [
    ipaddress.IPv4Network(block)
    for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")  # protocols, 6to4 relays, Azure's host
]
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")  # the only block from which public addresses are given out
_SPECIAL_IPV6 = [
    ipaddress.IPv6Network(block)
    for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")  # Teredo and others, examples, 6to4, examples
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the last 32 bits are the IPv4 address that a gateway connects to


class Refused(Exception):
    """A try failed. `again`: another may succeed; `wait`: seconds that the server asked for."""

    def __init__(self, reason: str, again: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait = reason, again, wait


class Budget:
    """The seconds and the bytes on the wire that one try may still take."""

    def __init__(self, seconds: float, wire_bytes: int) -> None:
        self._seconds, self._deadline, self._bytes = seconds, time.monotonic() + seconds, wire_bytes

    def left(self, timeout: float | None = None) -> float:
        """Seconds that the next step may take, `timeout` at most. Raises Refused where none are left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Refused(f"not done in {self._seconds:g} seconds", again=True)
        return left if timeout is None else min(left, timeout)

    def extend(self, seconds: float) -> None:
        """Extend the deadline by the time that this program itself made the try wait."""
        self._deadline += seconds

    def read(self, count: int) -> None:
        """Takes bytes that came from the wire. Raises Refused where they are too many."""
        self._bytes -= count
        if self._bytes < 0:
            raise Refused("its answer is mostly padding, and far more than the photo may have")


class Connector(httpcore.NetworkBackend):
    """Opens connections for the try that `begin` named in the same thread.

    Args:
        resolver: runs look-ups, which know no time-out of their own.
        any_address: connects anywhere; the name is then resolved by the operating system.
    """

    def __init__(self, resolver: Executor, any_address: bool) -> None:
        self._inner = httpcore.SyncBackend()
        self._resolver, self._any_address = resolver, any_address
        self._current = threading.local()

    def begin(self, budget: Budget) -> None:
        """What this thread reads and waits for from now on goes to `budget`."""
        self._current.budget = budget

    def budget(self) -> Budget:
        budget: Budget = self._current.budget
        return budget

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
                left = self.budget().left(timeout)
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
                return _Stream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def _addresses(self, host: str) -> list[str]:
        """Where to connect. Raises Refused if a single one of a name's addresses is not public."""
        pending = self._resolver.submit(resolve, host)
        try:
            found = pending.result(self.budget().left())
        except NotInTime as error:
            raise Refused(f"host {host[:100]} not resolved in time", again=True) from error
        except OSError as error:
            raise Refused(f"host {host[:100]} not found", again=True) from error
        if not self._any_address:
            for address in found:
                check_public(address)
        return found


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends by the deadline of the try that uses it."""

    def __init__(self, inner: httpcore.NetworkStream, connector: Connector) -> None:
        self._inner, self._connector = inner, connector

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        budget = self._connector.budget()
        data = self._inner.read(max_bytes, budget.left(timeout))
        budget.read(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._connector.budget().left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._connector.budget().left(timeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._connector)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def resolve(host: str) -> list[str]:
    """The addresses of a name, or of a number in any of its spellings, in the operating system's order."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def check_public(address: str) -> None:
    """Raises Refused for an address outside the public internet, itself or by the IPv4 address it stands for.

    These are loopback, private, link-local, shared (100.64.0.0/10), multicast, reserved and unspecified addresses, and
    IPv6 forms that a gateway may turn into one of them: 6to4, Teredo, local-use NAT64, IPv4-compatible.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])  # without an IPv6 zone
    if not _is_public(parsed):
        raise Refused(f"{parsed} is not a public address; allow_private permits it")


def is_address(host: str) -> bool:
    """Whether a host is written as an IP address."""
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return _is_public(address.ipv4_mapped)
        if address in _NAT64:
            return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _UNICAST_IPV6 and not any(address in block for block in _SPECIAL_IPV6)
    return address.is_global and not address.is_multicast and not any(address in block for block in _SPECIAL_IPV4)
