"""The long form of the fault tests: `make test-faults`, or `python -m faults.long --kills 500` from tests/.

Runs over photos in radosgw, behind a proxy that disturbs every tenth request, are killed until so many kills are done;
now and then the server is killed and started again. Then runs publish in pairs, there under a lock object and on moto
with If-Match. What must hold is checked from outside after every run. Ends with 1 where something did not.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3.session
from faults import policy
from faults.atomic_moto import Moto
from faults.harness import Place, make_place, nights, rivals
from faults.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw, installed
from random_adapter import write_random_adapter

from enrich.settings import TINY_MODEL_PATH

PHOTOS, KILLS_A_NIGHT = 40, 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--rivals", type=int, default=100, help="pairs that publish at once, half on each server")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not installed():
        print("radosgw is missing: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common")
        return 2
    os.environ.update(
        AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true", AWS_MAX_ATTEMPTS="5",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        adapter = write_random_adapter(folder / "adapter", TINY_MODEL_PATH, num_crops=1)
        server = Radosgw(folder / "radosgw")
        try:
            found = policy.violations(server, client_of(server.endpoint))
            print(f"deployments/iam-policy.json: {len(found)} violations", flush=True)
            found = found or kill(server, adapter, folder, options.kills, options.seed)
            found = found or race(server, adapter, folder, options.rivals, options.seed)
        finally:
            server.kill()
        for log in folder.glob("*.log"):
            if found:
                print(log.read_text()[-4000:])
    for one in found:
        print(f"VIOLATION: {one}")
    print(f"{len(found)} violations")
    return 1 if found else 0


def kill(server: Radosgw, adapter: Path, folder: Path, kills: int, seed: int) -> list[str]:
    kinds, runs, servers, happened = Counter[str](), 0, Counter[str](), Counter[str]()
    started, round_number = time.monotonic(), 0
    while sum(kinds.values()) < kills:
        place = make_place(
            client_of(server.endpoint),
            server.endpoint,
            adapter,
            folder,
            lock_object=True,
            seed=seed * 10_000 + round_number,
        )

        def between(place: Place = place) -> None:
            if place.random.random() < 0.3:
                server.restart_gateway()
                servers["gateway"] += 1
            elif place.random.random() < 0.1:
                server.kill()
                server.restart()
                servers["whole server"] += 1

        nights(place, "nights", photos=PHOTOS, kills_a_night=KILLS_A_NIGHT, between=between)
        place.proxy.close()
        kinds += place.kills
        happened += place.proxy.happened
        runs, round_number = runs + place.restarts, round_number + 1
        minutes = (time.monotonic() - started) / 60
        counts = f"{sum(kinds.values())} kills {dict(kinds)}, {runs} processes, servers {dict(servers)}"
        print(f"{minutes:6.1f} min: {counts}, faults {dict(happened)}", flush=True)
        if place.found:
            return place.found
    return []


def race(server: Radosgw, adapter: Path, folder: Path, rounds: int, seed: int) -> list[str]:
    with Moto() as moto:
        for name, endpoint, lock_object in (
            ("radosgw, lock", server.endpoint, True),
            ("moto, If-Match", moto.endpoint, False),
        ):
            place = make_place(client_of(endpoint), endpoint, adapter, folder, lock_object=lock_object, seed=seed)
            rivals(place, "rivals", rounds // 2)
            place.proxy.close()
            print(f"{name}: {rounds // 2} pairs published at once, {len(place.found)} violations", flush=True)
            if place.found:
                return place.found
    return []


def client_of(endpoint: str) -> Any:
    return boto3.session.Session().client("s3", endpoint_url=endpoint)


if __name__ == "__main__":
    sys.exit(main())
