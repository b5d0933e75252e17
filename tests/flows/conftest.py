"""A Prefect server for the session, and a bucket that is enriched by a fake engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_MEMO_STORE_PATH,
    temporary_settings,
)

from enrich.pipeline.run import enrichment, start
from flows import tasks
from tests.testing.fake_world import FakeWorld, fake_adapter


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness  # 7 s, which workers without flows save

    home = tmp_path_factory.mktemp("prefect")
    settings = {
        PREFECT_HOME: home,
        PREFECT_LOCAL_STORAGE_PATH: home / "storage",
        PREFECT_SERVER_MEMO_STORE_PATH: home / "memo_store.toml",
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        # Now and then two writers of the server's SQLite block each other until one gives up, after 60 s. A flow whose
        # last request ends before that, which by default is after 60 s too, gets a state without its result.
        PREFECT_API_REQUEST_TIMEOUT: 120.0,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread is joined at the end of every flow, which takes a second
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def world(prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    """Enrichment with all but model, photos and waiting between retries as it is."""
    fake = FakeWorld(tmp_path)
    for name in ("images", "adapter"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(enrichment, "open_session", fake.open_session)
    monkeypatch.setattr(start, "read_adapter", fake_adapter)
    monkeypatch.setattr(start, "open_adapter", lambda path, base: fake_adapter(path))
    for task in (tasks.find_adapter, tasks.train, tasks.plan, tasks.answer, tasks.publish):
        monkeypatch.setattr(task, "retry_delay_seconds", [0] * tasks.RETRIED["retries"])
    return fake
