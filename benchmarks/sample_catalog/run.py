"""How fast the sample catalog is drawn, and that its memory does not depend on the number of products.

Photos a second on one core, at a few sides, drawn and encoded as the catalog's are; then a catalog of each size asked
for, on all cores, in a process of its own: time by the clock and of the CPU (parent and workers together), peak
memory of the parent and of its largest worker, and bytes on disk.

    python -m benchmarks.sample_catalog.run --products 2000 10000 100000 --out scratch
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.results import record
from sample.dialects import DEMO
from sample.draw import render
from sample.encode import encode
from sample.generate import write_sample
from sample.products import sample_product

SIDES = (256, 512, 1024, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, nargs="*", default=[2000, 10_000], help="sizes of catalogs to write")
    parser.add_argument("--photos", type=int, default=200, help="for the rate of one core")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="an empty or missing folder; emptied again")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        write_and_tell(arguments.out, arguments.one)
        return
    drawing, writing = [], []
    for side in SIDES:
        runs = [rates(arguments.photos, side) for _ in range(arguments.repeats)]
        drawn, encoded, wall = (sorted(column)[len(column) // 2] for column in zip(*runs, strict=True))
        name = f"{side} px" if side else "as in a catalog, 400 to 2,000 px"
        drawing.append(
            {
                "longer side": name,
                "drawn, photos/s of CPU time": drawn,
                "drawn and encoded": encoded,
                "drawn and encoded, of wall time": wall,
            }
        )
    for products in arguments.products:
        folder = arguments.out / str(products)
        command = [sys.executable, "-m", "benchmarks.sample_catalog.run", "--one", str(products), "--out", str(folder)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        shutil.rmtree(folder)
        writing.append(
            {
                "products": products,
                "photos": told["photos"],
                "seconds": told["seconds"],
                "CPU seconds": told["cpu_seconds"],
                "photos/s of CPU time": told["photos"] / told["cpu_seconds"],
                "MB on disk": told["bytes"] / 1e6,
                "peak MB, parent": told["parent_mb"],
                "peak MB, largest worker": told["worker_mb"],
            }
        )
    record("sample_catalog", {"Photos": drawing, "Catalogs": writing})


def rates(photos: int, side: int | None) -> tuple[float, float, float]:
    """Photos a second of CPU time: drawn; drawn and encoded; and the latter by the clock."""
    drawing, cpu, wall = 0.0, time.process_time(), time.perf_counter()
    for index in range(photos):
        before = time.process_time()
        image = render(sample_product(11, index, DEMO), 11, side)
        drawing += time.process_time() - before
        encode(image, "jpg", np.random.default_rng(index))
    return photos / drawing, photos / (time.process_time() - cpu), photos / (time.perf_counter() - wall)


def write_and_tell(out: Path, products: int) -> None:
    """Writes one catalog and prints what it took as JSON."""
    start = time.perf_counter()
    summary = write_sample(out, products, seed=11, holdout=products // 10)
    seconds = time.perf_counter() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    scale = 1024 if sys.platform != "darwin" else 1  # ru_maxrss in bytes
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used),
                "photos": summary.products + summary.holdout,
                "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
                "parent_mb": used[0].ru_maxrss * scale / 1e6,
                "worker_mb": used[1].ru_maxrss * scale / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main()
