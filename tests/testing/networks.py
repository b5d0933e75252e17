"""Hosts on one machine: network namespaces with an address each, on one bridge. Needs root and iproute2.

They have ports, addresses and a /tmp/ray of their own, and share all other files and process ids.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
NETWORK = "10.213.77"  # private, and seen inside of the namespaces only


@dataclass(frozen=True)
class Host:
    """A namespace with one address; `link` is its cable, on the side of the bridge."""

    namespace: str
    address: str
    folder: Path
    link: tuple[str, str] | None = None  # namespace and device

    def start(self, command: Sequence[object], env: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
        """Start a process on this host, which writes to the file `output`."""
        own = 'mount --bind "$0" /tmp/ray && exec "$@"'  # seen by this process and its children only
        with output.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "sh", "-c", own, self.folder, *map(str, command)],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def listen(self) -> socket.socket:
        """A socket of this process that listens on this host."""
        ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        theirs = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            _enter(theirs)
            try:
                return socket.create_server((self.address, 0))
            finally:
                _enter(ours)
        finally:
            os.close(ours)
            os.close(theirs)

    def lose(self) -> None:
        """Pull the cable, then the plug: nothing that dies here is heard of elsewhere."""
        if self.link:
            _ip("-n", self.link[0], "link", "set", self.link[1], "down")
        self.kill()

    def kill(self) -> None:
        """End all processes of this host."""
        for pid in _ip("netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def why_not() -> str:
    """What keeps this machine from having such hosts; empty where nothing does."""
    if os.geteuid():
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need iproute2"
    name = f"enrich{os.getpid()}-trial"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made here: {error.stderr.strip()}"
    return ""


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """Hosts that reach each other. The bridge is on the first; what runs on them is killed at the end."""
    names = [f"enrich{os.getpid()}-{number}" for number in range(count)]
    made = [
        Host(name, f"{NETWORK}.{number + 1}", folder / name, (names[0], f"host{number}") if number else None)
        for number, name in enumerate(names)
    ]
    Path("/tmp/ray").mkdir(exist_ok=True)
    try:
        for host in made:
            host.folder.mkdir()
            _connect(host)
        yield made
    finally:
        for host in made:
            with suppress(subprocess.CalledProcessError):
                host.kill()
                _ip("netns", "delete", host.namespace)


def _connect(host: Host) -> None:
    _ip("netns", "add", host.namespace)
    if host.link:
        bridge, device = host.link
        _ip("-n", bridge, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", bridge, "link", "set", device, "master", "eth0", "up")
    else:
        _ip("-n", host.namespace, "link", "add", "eth0", "type", "bridge")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.namespace, "link", "set", device, "up")


def _enter(namespace: int) -> None:
    """Move this thread, and what it starts from then on, to the network namespace of an open file."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
