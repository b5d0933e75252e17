"""How tests are ordered and measured; the command in this process; a local S3 server and buckets in it."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from enrich import cli
from tests.testing.cli import RunCli
from tests.testing.s3_server import S3Server, serve_s3

# The same examples every time, with no limit on their time: what fails here fails for everybody, on any machine.
# --hypothesis-profile=default looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


# The slowest start first; pipeline/test_cli.py makes the catalog and the adapter that the rest of `pipeline` waits for.
FIRST = (
    "flows", "test_ten_nights.py", "pipeline/test_cli.py", "train", "test_fuzz_files.py", "test_faults.py", "pipeline",
)  # fmt: skip
# These run whole commands. Coverage, which makes them take half as long again, is measured by the tests of the parts.
WHOLE = (
    "flows", "test_ten_nights.py", "pipeline/run/test_enrichment_whole.py", "pipeline/run/test_parity_gate.py",
    "pipeline/test_cli.py", "pipeline/test_finetuning_whole.py", "test_faults.py", "test_fuzz_files.py",
    "train/test_run.py", "train/test_ways.py",
)  # fmt: skip


class FilesAndFlows(LoadScopeScheduling):
    """A worker of pytest-xdist takes a file at a time, but all of `flows` at once: they share a Prefect server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return str(Path(file).parent) if "flows" in Path(file).parts else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndFlows:
    return FilesAndFlows(config, log)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named after their argument: files can hold the time at which they were made, and pytest-xdist ends
    without running a test if two workers name one differently."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((at for at, name in enumerate(FIRST) if _within(item, name)), len(FIRST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """As pytest-cov's marker `no_cover`, which leaves fixtures out."""
    plugin = item.config.pluginmanager.get_plugin("_cov") if any(_within(item, name) for name in WHOLE) else None
    coverage = plugin.cov_controller if plugin else None
    if coverage:
        coverage.pause()
    try:
        return (yield)
    finally:
        if coverage:
            coverage.resume()


def pytest_collection_finish() -> None:
    """What the imports left is not garbage, and each of the many full collections would take 0.9 s to find that out."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # extensions report what is never collected as leaked


def _within(item: pytest.Item, name: str) -> bool:
    return item.path.is_relative_to(Path(__file__).parent / name)


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Runs `enrich` in this process: exit code, standard output, standard error. Words without spaces, or one each."""

    def run(words: str = "", *more: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["enrich", *words.split(), *map(str, more)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def _running_s3_server() -> Iterator[S3Server]:
    with serve_s3() as server:
        yield server


@pytest.fixture
def s3_server(_running_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """The server, with the environment set so that boto3 and polars find it and nothing else."""
    nowhere = str(tmp_path / "no-aws-files")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", nowhere)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", nowhere)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", _running_s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield _running_s3_server
    _running_s3_server.fault = None


@pytest.fixture(scope="session")
def _s3_admin(_running_s3_server: S3Server) -> Any:
    """One client for all buckets: to make one takes 0.2 s."""
    import boto3.session

    keys: dict[str, Any] = {
        "aws_access_key_id": "test-key",
        "aws_secret_access_key": "test-secret",
        "region_name": "us-east-1",
    }
    return boto3.session.Session(**keys).client("s3", endpoint_url=_running_s3_server.endpoint)


@pytest.fixture
def s3_bucket(s3_server: S3Server, _s3_admin: Any) -> str:
    """The URI of a fresh bucket."""
    name = f"bucket-{uuid4().hex}"
    _s3_admin.create_bucket(Bucket=name)
    return f"s3://{name}"
