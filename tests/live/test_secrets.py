"""Credentials come from Secret blocks, and are nowhere else: not in logs, artifacts, parameters, outputs or results."""

import asyncio
import re
from pathlib import Path
from typing import Any

import asyncpg
import boto3
import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from tests.testing.live import DATABASE, PASSWORD, WEBHOOK_SECRET, Live, Shop, wait_for
from tests.testing.s3_server import S3Server

pytestmark = pytest.mark.timeout(900)
PLANTED = "wJalrXUtnFEMI-PLANTED-bPxRfiCYEXAMPLEKEY"
KEY_ID = "AKIAPLANTEDKEYIDTEST"


def save_secrets(live: Live, **secrets: str) -> None:
    """What `Secret(value=...).save(name)` does on anybody's machine."""
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{live.port}/api", PREFECT_API_AUTH_STRING: PASSWORD}):
        for name, value in secrets.items():
            Secret(value=SecretStr(value)).save(name.replace("_", "-"), overwrite=True)


def use_in_pool(live: Live, pool: str, environment: dict[str, str]) -> None:
    """A pool's environment, as the page of the pool sets it (Edit, Advanced), once its worker has read it."""
    template = live.call("GET", f"/work_pools/{pool}")["base_job_template"]
    template["job_configuration"]["env"] = environment
    # The server wants a property for whatever stands in braces; a block's is never set.
    named = re.findall(r"{{ (prefect\.blocks\S+) }}", " ".join(environment.values()))
    template["variables"]["properties"] |= {name: {"type": "null"} for name in named}
    live.call("PATCH", f"/work_pools/{pool}", {"base_job_template": template})
    heartbeats: set[str] = set()

    def read() -> bool:
        """A worker reads its pool before each heartbeat, every 30 s; the next one may be of what it read before."""
        workers = live.call("POST", f"/work_pools/{pool}/workers/filter", {})
        heartbeats.update(worker["last_heartbeat_time"] for worker in workers)
        return len(heartbeats) > 2

    wait_for("two heartbeats of the worker", read)


def files_with(folder: Path, secret: str) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    return sorted(str(path.relative_to(folder)) for path in found)


async def write_tables(url: str, folder: Path) -> None:
    """Each table of a Postgres as a file of its rows; an SQLite's file is in the server's home."""
    folder.mkdir()
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for [name] in await connection.fetch("select tablename from pg_tables where schemaname = 'public'"):
            rows = await connection.fetch(f'select t::text from "{name}" t')
            (folder / name).write_text("\n".join(row for [row] in rows))
    finally:
        await connection.close()


def test_a_secret_is_found_nowhere(live: Live, shop: Shop, s3_server: S3Server, tmp_path: Path) -> None:
    endpoint = s3_server.endpoint
    s3 = boto3.session.Session(KEY_ID, PLANTED, region_name="us-east-1").client("s3", endpoint_url=endpoint)
    s3.create_bucket(Bucket="planted")
    for photo in shop.images.iterdir():
        s3.put_object(Bucket="planted", Key=f"photos/{photo.name}", Body=photo.read_bytes())
    save_secrets(live, planted_secret=PLANTED, planted_id=KEY_ID)
    use_in_pool(
        live,
        "gpu",
        {
            "AWS_ACCESS_KEY_ID": "{{ prefect.blocks.secret.planted-id }}",
            "AWS_SECRET_ACCESS_KEY": "{{ prefect.blocks.secret.planted-secret }}",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    )
    # Links that S3 signs name the key's id, and are credentials themselves.
    more: dict[str, Any] = {"products at most": 4, "run": {"link_hours": 0}}
    parameters = shop.parameters(**more)
    parameters |= {"photos": "s3://planted/photos", "output": "s3://planted/output"}

    run = live.run("enrich-catalog/enrich-adhoc", **parameters)
    failing = live.run("enrich-catalog/enrich-adhoc", **parameters | {"photos": "s3://not-there/photos"})

    assert live.ended(run)["name"] == "Completed"
    state = live.ended(failing)
    assert "there is no bucket not-there" in state["message"], state
    wait_for("the logs", lambda: "state=published" in live.logs(run))
    for found in s3.list_objects_v2(Bucket="planted", Prefix="output/")["Contents"]:
        target = tmp_path / "scan" / found["Key"]
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file("planted", found["Key"], str(target))
    assert (tmp_path / "scan" / "output" / "products.parquet").exists()
    if DATABASE:
        asyncio.run(write_tables(DATABASE, live.home / "tables"))
        assert files_with(live.home / "tables", str(shop.adapter))  # it is in there anyway, in the run's request
    for secret in (PLANTED, KEY_ID):
        assert files_with(tmp_path / "scan", secret) == []
        assert files_with(live.home, secret) == []  # the database, the logs of server and workers, results
    assert files_with(live.home, WEBHOOK_SECRET) == []
    assert files_with(live.home, PASSWORD) == []
    assert not any(path.read_bytes()[:1] == b"\x80" for path in (live.home / "storage").rglob("*") if path.is_file())
    assert live.call("POST", "/block_documents/count") >= 3  # encrypted in there
