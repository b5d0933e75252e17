"""The long form of the fault tests: `make test-faults`, or `python -m tests.testing.faults.long --kills 500`.

Runs publish in pairs, on radosgw under a lock object and on moto with If-Match. Then runs over photos in radosgw,
behind a proxy that disturbs every tenth request, are killed until so many kills are done; now and then the server is
killed and started again. What must hold is checked from outside after every run. Ends with 1 where something did not.

With --state FILE it may be stopped at any time: started again, it does what is left.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3.session

from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.faults import policy
from tests.testing.faults.harness import Place, make_place, nights, rivals
from tests.testing.faults.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw, installed
from tests.testing.random_adapter import write_random_adapter
from tests.testing.s3_server import serve_s3

PHOTOS, KILLS_A_NIGHT, PAIRS_AT_A_TIME = 40, 6, 5


@dataclass
class Done:
    """What was done so far, over all starts. `found` are the violations: with one it ends."""

    rounds: int = 0  # of some nights each
    pairs: Counter[str] = field(default_factory=Counter)  # that published at once, by server
    kills: Counter[str] = field(default_factory=Counter)
    processes: int = 0  # that took up a killed or failed run
    servers: Counter[str] = field(default_factory=Counter)  # killed and started again
    faults: Counter[str] = field(default_factory=Counter)  # of the proxy
    seconds: float = 0.0
    found: list[str] = field(default_factory=list)

    def add(self, place: Place, seconds: float) -> None:
        place.proxy.close()
        self.kills += place.kills
        self.processes += place.restarts
        self.faults += place.proxy.happened
        self.seconds += seconds
        self.found += place.found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--rivals", type=int, default=100, help="pairs that publish at once, half on each server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="file that keeps what was done")
    options = parser.parse_args()
    if not installed():
        print("radosgw is missing: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common")
        return 2
    os.environ.update(
        AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true", AWS_MAX_ATTEMPTS="5",
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end too
    done = read(options.state)
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        adapter = write_random_adapter(folder / "adapter", TINY_MODEL_PATH, num_crops=1)
        server = Radosgw(folder / "radosgw")
        try:
            denied = policy.violations(server, client_of(server.endpoint))
            print(f"deployments/iam-policy.json: {len(denied)} violations", flush=True)
            done.found += denied
            with serve_s3() as moto:
                race("radosgw, lock object", server.endpoint, True, adapter, folder, options, done)
                race("moto, If-Match", moto.endpoint, False, adapter, folder, options, done)
            kill(server, adapter, folder, options, done)
        finally:
            server.kill()
        for log in folder.glob("*.log"):
            if done.found:
                print(log.read_text()[-4000:])
    for one in done.found:
        print(f"VIOLATION: {one}")
    print(f"{len(done.found)} violations")
    return 1 if done.found else 0


def race(
    name: str, endpoint: str, lock_object: bool, adapter: Path, folder: Path, options: argparse.Namespace, done: Done
) -> None:
    """Half of the pairs, on one of the servers."""
    while done.pairs[name] < options.rivals // 2 and not done.found:
        seed, started = options.seed * 10_000 + done.pairs[name], time.monotonic()
        place = make_place(client_of(endpoint), endpoint, adapter, folder, lock_object=lock_object, seed=seed)
        pairs = min(PAIRS_AT_A_TIME, options.rivals // 2 - done.pairs[name])
        rivals(place, "rivals", pairs)
        done.pairs[name] += pairs
        tell(done, place, time.monotonic() - started, options.state)


def kill(server: Radosgw, adapter: Path, folder: Path, options: argparse.Namespace, done: Done) -> None:
    """Nights, until there are kills enough."""
    while sum(done.kills.values()) < options.kills and not done.found:
        seed, started = options.seed * 10_000 + done.rounds, time.monotonic()
        endpoint = server.endpoint
        place = make_place(client_of(endpoint), endpoint, adapter, folder, lock_object=True, seed=seed)

        def between(place: Place = place) -> None:
            if place.random.random() < 0.3:
                server.restart_gateway()
                done.servers["gateway"] += 1
            elif place.random.random() < 0.1:
                server.kill()
                server.restart()
                done.servers["whole server"] += 1

        nights(place, "nights", photos=PHOTOS, kills_a_night=KILLS_A_NIGHT, between=between)
        done.rounds += 1
        tell(done, place, time.monotonic() - started, options.state)


def tell(done: Done, place: Place, seconds: float, state: Path | None) -> None:
    done.add(place, seconds)
    print(
        f"{done.seconds / 60:6.1f} min: pairs {dict(done.pairs)}; {sum(done.kills.values())} kills {dict(done.kills)}, "
        f"{done.processes} processes, servers {dict(done.servers)}; faults {dict(done.faults)}",
        flush=True,
    )
    if state:
        written = state.with_suffix(".new")
        written.write_text(json.dumps(vars(done), indent=1))
        written.rename(state)


def read(state: Path | None) -> Done:
    if state is None or not state.exists():
        return Done()
    kept: dict[str, Any] = json.loads(state.read_text())
    kept |= {name: Counter(value) for name, value in kept.items() if isinstance(value, dict)}
    return Done(**kept)


def client_of(endpoint: str) -> Any:
    return boto3.session.Session().client("s3", endpoint_url=endpoint)


if __name__ == "__main__":
    sys.exit(main())
