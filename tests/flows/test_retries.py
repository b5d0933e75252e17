"""Which errors a task is retried after: those that may pass without anybody changing something."""

from types import SimpleNamespace
from typing import Any

import pytest

from enrich.errors import ParityFailed, PermanentFailure, RunFailed, Unreachable, UsageError
from enrich.storage import Problem, StorageError, open_store
from flows import tasks
from flows.enrich_catalog import enrich_catalog
from flows.tasks import RETRIED, worth_retrying
from tests.testing.fake_world import FakeWorld
from tests.testing.s3_server import DENIED, Fault, S3Server, refuse


def is_retried(error: BaseException) -> bool:
    state: Any = SimpleNamespace(data=error)
    return worth_retrying(*[state] * 3)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (UsageError("adapter gone: no such directory"), False),
        (ParityFailed("another model"), False),
        (PermanentFailure("products.parquet was not written by enrich"), False),
        (TypeError("takes 2 positional arguments"), False),
        (RunFailed("engine vllm: it died 4 times in a row"), True),
        (Unreachable("hub: cannot be fetched"), True),
        (StorageError(Problem.FAILED, "connection reset"), True),
        (TimeoutError(), True),
        (RuntimeError("CUDA error"), True),
    ],
)
def test_only_what_may_pass_is_tried_again(error: BaseException, again: bool) -> None:
    assert is_retried(error) is again


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        (refuse("503 Slow Down", "SlowDown"), True),
        (refuse("500 Internal Server Error", "InternalError"), True),
        (DENIED, False),
        (refuse("404 Not Found", "NoSuchBucket"), False),
    ],
)
def test_a_bucket_that_is_busy_is_tried_again_and_one_that_is_closed_not(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, fault: Fault, again: bool
) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    s3_server.fault = fault
    with pytest.raises(UsageError) as caught:
        open_store(s3_bucket)
    assert is_retried(caught.value) is again


def test_a_run_goes_on_once_an_endpoint_that_was_away_is_back(
    world: FakeWorld, s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    open_store(s3_bucket).put("a.jpg", b"a.jpg")
    there = s3_server.endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    tries = list[Any]()

    def opened(*arguments: Any, **named: Any) -> Any:
        if len(tries) == 1:
            monkeypatch.setenv("AWS_ENDPOINT_URL", there)
        tries.append(arguments)
        return started(*arguments, **named)

    started = tasks.start_run
    monkeypatch.setattr(tasks, "start_run", opened)

    state = enrich_catalog(**{**world.places, "photos": s3_bucket}, return_state=True)

    assert (state.message, len(tries)) == ("1 products: 1 ok, 0 failed", 2)


def test_a_damaged_table_fails_the_publish_at_once(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_photos("a.jpg")
    finished = tasks.finish_run
    tries = []

    def finish(run: Any) -> Any:
        tries.append(run)
        run.output.put("products.parquet", b"no table")
        return finished(run)

    monkeypatch.setattr(tasks, "finish_run", finish)

    state = enrich_catalog(**world.places, return_state=True)

    assert state.message is not None
    assert "products.parquet is not a readable Parquet file" in state.message
    assert len(tries) == 1 < RETRIED["retries"]
