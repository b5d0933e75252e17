"""Photos a second out of S3: the store that runs use, compared with boto3 in threads, s5cmd and `aws s3 cp`, in one
run.

    python -m benchmarks.download.run --uri s3://bucket/prefix [--objects 2000] [--kib 100]

Writes the objects first where they are not there; credentials and endpoint as for every S3 tool. s5cmd and aws are
measured where they are on the PATH. Every client reads the same objects REPEATS times, in turn; the best counts.
"""

import argparse
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.results import record
from enrich.storage import open_store

THREADS = 32
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--kib", type=int, default=100)
    options = parser.parse_args()
    store = open_store(options.uri)
    keys = [f"{number:06}.jpg" for number in range(options.objects)]
    with ThreadPoolExecutor(THREADS) as pool:
        if sum(1 for _ in store.list()) < len(keys):
            list(pool.map(lambda key: store.put(key, random.randbytes(options.kib << 10)), keys))

        def threads(read: Callable[[str], object]) -> Callable[[], None]:
            return lambda: any(pool.map(lambda key: read(key) is None, keys))

        clients: dict[str, Callable[[], None]] = {
            "store (obstore, verified)": threads(store.get),
            "boto3, verified": threads(lambda key: store._get(key, None)),
        }
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        if shutil.which("s5cmd"):
            command = ["s5cmd", *(["--endpoint-url", endpoint] if endpoint else []), "cp", f"{options.uri}/*"]
            clients["s5cmd cp, to files"] = lambda: to_files(command)
        if shutil.which("aws"):
            copy = ["aws", "s3", "cp", "--recursive", "--quiet", options.uri]
            clients["aws s3 cp, to files"] = lambda: to_files(copy)
        best: dict[str, tuple[float, float]] = {}
        for _ in range(REPEATS):
            for name, run in clients.items():
                cpu, started = cpu_seconds(), time.perf_counter()
                run()
                wall = time.perf_counter() - started
                best[name] = min(best.get(name, (1e9, 0.0)), (wall, cpu_seconds() - cpu))
    others = [wall for name, (wall, _) in best.items() if not name.startswith("store")]
    rows = [
        {
            "client": name,
            "objects/s": options.objects / wall,
            "MiB/s": options.objects * options.kib / 1024 / wall,
            "ms CPU an object": cpu / options.objects * 1e3,
            "speed to the fastest other client": min(others) / wall,
        }
        for name, (wall, cpu) in best.items()
    ]
    record("download", {"": rows})


def to_files(command: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, f"{folder}/"], check=True, stdout=subprocess.DEVNULL)


def cpu_seconds() -> float:
    """Of this process and those that it ran."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == "__main__":
    main()
