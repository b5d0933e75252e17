"""deployments/iam-policy.json on a server that enforces it: what a run needs is allowed, what it does not is denied."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from enrich.errors import EnrichError
from enrich.settings.storage import S3Settings
from enrich.storage import open_store
from tests.testing.faults.radosgw import Radosgw

POLICY = Path(__file__).parents[3] / "deployments" / "iam-policy.json"
PHOTOS, OUTPUT = "policy-photos", "policy-output"


def violations(server: Radosgw, admin: Any) -> list[str]:
    """What the policy gets wrong, in words. `admin` owns both buckets; the job is another user."""
    server.add_user("job", "job-key", "job-secret")
    text = POLICY.read_text().replace("PHOTOS", PHOTOS).replace("OUTPUT", OUTPUT)
    for bucket in (PHOTOS, OUTPUT):
        admin.create_bucket(Bucket=bucket)
        mine = [
            {**statement, "Principal": {"AWS": ["arn:aws:iam:::user/job"]}}
            for statement in json.loads(text)["Statement"]
            if f":::{bucket}" in str(statement["Resource"]) and statement["Sid"].startswith("Runs")
        ]
        admin.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": mine}))
    admin.put_object(Bucket=PHOTOS, Key="photos/a.jpg", Body=b"photo")
    admin.put_object(Bucket=PHOTOS, Key="secret/a.jpg", Body=b"secret")
    admin.put_object(Bucket=OUTPUT, Key="other/a", Body=b"other")
    with _as_job(server):
        photos = open_store(f"s3://{PHOTOS}/photos")
        output = open_store(f"s3://{OUTPUT}/enriched", s3=S3Settings(lock=True))
        needed: dict[str, Callable[[], object]] = {
            "list photos": lambda: list(photos.list()),
            "read a photo": lambda: photos.get("a.jpg"),
            "probe conditional writes": output.check_conditional_writes,
            "create a shard": lambda: output.create("history/shard-00000.parquet", b"rows"),
            "list the output": lambda: list(output.list()),
            "ask for what is not there": lambda: output.head("products.parquet"),
            "publish": lambda: output.replace("products.parquet", b"table", None),
            "publish again": lambda: output.replace("products.parquet", b"more", output.get("products.parquet")[1]),
        }
        denied: dict[str, Callable[[], object]] = {
            "read other photos": lambda: open_store(f"s3://{PHOTOS}/secret"),
            "write photos": lambda: photos.put("b.jpg", b"x"),
            "delete photos": lambda: photos.delete("a.jpg"),
            "delete a shard": lambda: output.delete("history/shard-00000.parquet"),
            "write next to its output": lambda: open_store(f"s3://{OUTPUT}/other").put("a", b"x"),
        }
        return [
            *(f"policy: not allowed to {what}: {error}" for what, call in needed.items() if (error := _error(call))),
            *(f"policy: allowed to {what}" for what, call in denied.items() if not _error(call)),
        ]


def _error(call: Callable[[], object]) -> str:
    try:
        call()
    except (EnrichError, ClientError) as error:
        return str(error)
    return ""


@contextmanager
def _as_job(server: Radosgw) -> Iterator[None]:
    mine = {
        "AWS_ACCESS_KEY_ID": "job-key", "AWS_SECRET_ACCESS_KEY": "job-secret", "AWS_ENDPOINT_URL": server.endpoint,
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
