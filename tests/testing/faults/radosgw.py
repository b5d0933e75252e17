"""Debian's radosgw, with a monitor and one OSD in a directory: a real S3 server that keeps its objects through SIGKILL.

`apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common`; 20 s to start, 290 MiB of memory.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError
from uuid import uuid4

ACCESS_KEY, SECRET_KEY = "fault-key", "fault-secret"
_START_SECONDS = 120.0
_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "ceph-authtool", "monmaptool", "ceph", "radosgw-admin")


def installed() -> bool:
    """Whether its programs are there."""
    return all(shutil.which(name) for name in _PROGRAMS)


class Radosgw:
    """A server that can be killed and started again."""

    def __init__(self, folder: Path, *, in_memory: bool = False) -> None:
        self.folder, self._processes = folder, list[subprocess.Popen[bytes]]()
        folder.mkdir(parents=True)
        mon, mon_v1, self.port = _free_ports(3)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        fsid, osd = str(uuid4()), str(uuid4())
        (folder / "ceph.conf").write_text(_CONFIGURATION.format(
            folder=folder, fsid=fsid, mon=mon, mon_v1=mon_v1, store="memstore" if in_memory else "bluestore",
        ))  # fmt: skip
        for name in ("mon", "osd", "run"):
            (folder / name).mkdir()
        keyring = str(folder / "keyring")
        self._call("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        caps = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
        self._call("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *caps)
        address = f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_v1}]"
        monmap = str(folder / "monmap")
        self._call("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, monmap)
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._start("ceph-mon", "-f", "-i", "a")
        self._ceph("osd", "new", osd)
        self._ceph(
            "auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *", "-o", keyring + ".osd"
        )
        self._call("ceph-authtool", keyring, "--import-keyring", keyring + ".osd")
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._start_rest()
        self.add_user("t", ACCESS_KEY, SECRET_KEY)

    def add_user(self, name: str, access_key: str, secret_key: str) -> None:
        """A user without rights to the buckets of others."""
        self._call(
            "radosgw-admin", "-n", "client.admin", "user", "create", f"--uid={name}", f"--display-name={name}",
            f"--access-key={access_key}", f"--secret={secret_key}",
        )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL to every daemon."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def restart(self) -> None:
        """Starts the daemons of a killed server again, on what it had written."""
        self._start("ceph-mon", "-f", "-i", "a")
        self._start_rest()

    def restart_gateway(self) -> None:
        """Kills and starts the S3 front only: requests under way are lost, what they wrote is not. Some 5 s."""
        gateway = self._processes.pop()
        gateway.kill()
        gateway.wait()
        self._start_gateway()

    def _start_rest(self) -> None:
        self._start("ceph-osd", "-f", "-i", "0")
        self._start_gateway()

    def _start_gateway(self) -> None:
        self._start(
            "radosgw", "-f", "-n", "client.admin", f"--rgw-frontends=beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1"
        )
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
                return
            except HTTPError:
                return  # it speaks
            except (URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"radosgw did not start; see {self.folder}/*.log")

    def _start(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}.out", "ab")  # noqa: SIM115
        environment = {**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")}
        self._processes.append(
            subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        )
        log.close()

    def _ceph(self, *words: str) -> None:
        """A command to the monitor, which may not be up yet; it would try forever by itself."""
        for _ in range(12):
            try:
                self._call("ceph", "--connect-timeout", "10", *words)
                return
            except subprocess.CalledProcessError:
                time.sleep(0.5)
        self._call("ceph", "--connect-timeout", "10", *words)

    def _call(self, *command: Sequence[str] | str) -> None:
        environment = {**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")}
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=60)  # type: ignore[arg-type]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_v1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
osd objectstore = {store}
bluestore block size = 10737418240
osd memory target = 939524096
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
rgw data = {folder}/run
rgw enable usage log = false
"""
