"""The same run undisturbed and behind a proxy that disturbs every tenth request, in turn: photos a second, medians.

    python -m benchmarks.disturbed_run.run [--photos 2000] [--seconds-a-photo 0.002 0.03]

Both go through the proxy of the fault tests, to radosgw where it is installed (under a lock object), else to moto. The
engine of the fault tests answers each photo after the time given: the first is faster than any model, so that S3 alone
decides, the second is what a model of the full size takes on one large GPU. After each run the output is checked from
outside; a run that fails is started again under its run id, and the time of all its starts counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import boto3.session

from benchmarks.results import record
from enrich.pipeline.run import enrichment, session
from enrich.pipeline.run.request import RunRequest
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.storage import S3Settings
from tests.testing.faults import job
from tests.testing.faults.harness import Bucket, look, make_place
from tests.testing.faults.invariants import Seen
from tests.testing.faults.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw, installed
from tests.testing.random_adapter import write_random_adapter
from tests.testing.s3_server import serve_s3

# One request in ten fails (503, 500, cut before or after it was served, half of a body, a wrong byte), and one in fifty
# takes 2 s more.
DISTURBED = {
    "slow_down": 0.04, "error": 0.02, "reset": 0.01, "truncate": 0.01, "corrupt": 0.01, "lost": 0.01, "delay": 0.02,
}  # fmt: skip
REPEATS, STARTS, SHARD = 5, 10, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--seconds-a-photo", type=float, nargs="+", default=[0.002, 0.03])
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run(**json.loads(options.job))
        return
    os.environ.update(
        AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        adapter = write_random_adapter(folder / "adapter", TINY_MODEL_PATH, num_crops=1)
        if installed():
            server = Radosgw(folder / "radosgw")
            stack.callback(server.kill)
            endpoint = server.endpoint
        else:
            endpoint = stack.enter_context(serve_s3()).endpoint
        client = boto3.session.Session().client("s3", endpoint_url=endpoint)
        rows = [
            compare(client, endpoint, adapter, folder, options.photos, seconds) for seconds in options.seconds_a_photo
        ]
    record("disturbed_run", {"": rows})


def compare(client: Any, endpoint: str, adapter: Path, folder: Path, photos: int, seconds: float) -> dict[str, Any]:
    place = make_place(client, endpoint, adapter, folder, lock_object=installed(), seed=1, rates={})
    bucket = Bucket(place, "photos")
    for number in range(photos):
        bucket.put(f"{number:06}.png")
    rates: dict[str, list[float]] = {"undisturbed": [], "disturbed": []}
    for repeat in range(REPEATS):
        for how, faults in (("undisturbed", {}), ("disturbed", DISTURBED)):
            output, run_id = f"{how}-{repeat}", "night"
            place.proxy.rates, before = dict(faults), sum(counted(place.proxy.happened).values())
            wall, starts = measured(f"s3://{place.bucket}", output, adapter, place.proxy.endpoint, seconds)
            happened = sum(counted(place.proxy.happened).values()) - before
            place.proxy.rates = {}
            wrong = look(place, output, Seen(), bucket.titles, [run_id])
            rates[how].append(photos / wall)
            print(
                f"{seconds:g} s a photo, {how}: {photos} photos in {wall:.1f} s, {photos / wall:.1f} a second, "
                f"{starts} starts, {happened} faults, {len(wrong)} violations",
                flush=True,
            )
    middle = {how: median(found) for how, found in rates.items()}
    place.proxy.close()
    return {
        "s a photo": seconds,
        "photos/s, undisturbed": middle["undisturbed"],
        "photos/s, disturbed": middle["disturbed"],
        "ratio": middle["disturbed"] / middle["undisturbed"],
        "faults": sum(counted(place.proxy.happened).values()),
    }


def counted(happened: Mapping[str, int]) -> dict[str, int]:
    """What befell requests, without their number."""
    return {fault: count for fault, count in happened.items() if fault != "requests"}


def measured(root: str, output: str, adapter: Path, endpoint: str, seconds: float) -> tuple[float, int]:
    """Wall seconds of a whole run without the interpreter's start, and how often it was started."""
    given = {"images": f"{root}/photos", "output": f"{root}/{output}", "adapter": str(adapter), "seconds": seconds}
    command = [sys.executable, "-m", "benchmarks.disturbed_run.run", "--job", json.dumps(given)]
    environment, total = {**os.environ, "AWS_ENDPOINT_URL": endpoint}, 0.0
    for start in range(1, STARTS + 1):
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
        told = [line for line in answer.stdout.splitlines() if line.startswith("seconds ")]
        total += float(told[-1].split()[1]) if told else 0.0
        if answer.returncode == 0:
            return total, start
        print(answer.stderr.strip().splitlines()[-1], file=sys.stderr)
    raise SystemExit(f"the run failed {STARTS} times")


def run(images: str, output: str, adapter: str, seconds: float) -> None:
    """A whole run in this process, with everything real except the engine."""
    engine = job.ColourEngine(SimpleNamespace(value=0), seconds)  # type: ignore[arg-type]
    session.start_verified_engine = lambda *_: engine  # type: ignore[assignment]
    settings = RunSettings(
        engine="transformers", shard_size=SHARD, gate=GateSettings(enabled=False), s3=S3Settings(lock=installed())
    )
    started = time.perf_counter()
    try:
        enrichment.run_enrichment(RunRequest(images, adapter, output, settings, run_id="night"))
    finally:
        print(f"seconds {time.perf_counter() - started}")


if __name__ == "__main__":
    main()
