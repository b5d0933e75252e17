"""The enrichment as a flow: task runs, retries, the state it ends in, the artifact it leaves."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State, StateType

import flows.enrich_catalog
from enrich.answers.postprocess import Prediction
from enrich.engines.predictor import Shown
from enrich.errors import RunFailed, UsageError
from enrich.pipeline.run.deadline import Deadline
from flows.enrich_catalog import enrich_catalog, shard_groups
from flows.tasks import RETRIED
from tests.testing.fake_world import FakeWorld
from tests.testing.forms import text

TWO_A_SHARD = text(run={"shard_size": 2})


def flow_run_id(state: State) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def artifacts(client: SyncPrefectClient, state: State) -> dict[str, Any]:
    """By key; the progress is the last one sent."""
    run = ArtifactFilterFlowRunId(any_=[flow_run_id(state)])
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=run))
    return {str(artifact.key): artifact for artifact in found}


@pytest.fixture
def client(prefect_server: None) -> SyncPrefectClient:
    return get_client(sync_client=True)


def test_a_bucket_is_enriched_and_reported(world: FakeWorld, client: SyncPrefectClient) -> None:
    world.add_photos("a.jpg", "b.jpg", "c.jpg", "bad.jpg")

    state = enrich_catalog(**world.places, settings=TWO_A_SHARD, return_state=True)

    assert (state.name, state.message) == ("Completed", "4 products: 3 ok, 1 failed")
    products = pl.read_parquet(world.root / "output" / "products.parquet")
    assert sorted(products["product_id"]) == ["a", "b", "bad", "c"]
    assert world.sessions == 1
    run = client.read_flow_run(flow_run_id(state))
    assert run.name == f"enrich {world.root}/images"
    shown = artifacts(client, state)
    assert set(shown) == {"progress", "enrichment", "counts", "contact-sheet", "report"}
    assert "| failed with not\\_an\\_image | 1 |" in shown["enrichment"].data
    assert shown["progress"].data == 100.0
    assert shown["progress"].description is not None
    assert shown["progress"].description.startswith("products: 4 of 4, ")
    table = {(row["what"], row["which"]): row["products"] for row in json.loads(shown["counts"].data)}
    assert table == {
        ("why processed", "new"): 4, ("outcome", "ok"): 3, ("outcome", "failed"): 1,
        ("failed with", "not_an_image"): 1,
    }  # fmt: skip
    assert "(http://127.0.0.1:8420/runs/" in shown["report"].data
    assert f"\nenrich serve --output \\\n  {world.root}/output\n" in shown["report"].data


def test_what_was_slow_is_added_up_over_task_runs_and_sessions(
    world: FakeWorld, client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    world.add_photos("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    world.faults = [None, None, *[RunFailed("gone")] * (1 + RETRIED["retries"])]
    settings = text(run_id="night", run={"shard_size": 2, "decode_processes": 2, "download_threads": 4})
    enrich_catalog(**world.places, settings=settings, return_state=True)  # its second shard fails

    state = enrich_catalog(**world.places, settings=settings, return_state=True)

    record = json.loads((world.root / "output" / "runs" / "night" / "run.json").read_text())
    assert world.sessions == 2
    assert record["stages"]["photos"] == 5
    seconds = {use["stage"]: use["seconds"] for use in record["stages"]["uses"]}
    assert (seconds["download"], seconds["decode"], seconds["engine"]) == (0.0, 1.0, 1.0)
    assert record["stages"]["bottleneck"] == "engine"
    assert "bottleneck: the run was too short to tell;" in caplog.text
    assert "| bottleneck | the run was too short to tell |" in artifacts(client, state)["enrichment"].data


def test_places_may_have_odd_names(world: FakeWorld) -> None:
    world.add_photos("a.jpg")

    state = enrich_catalog(**world.places | {"output": f"{world.root}/50% off + more"}, return_state=True)

    assert state.message == "1 products: 1 ok, 0 failed"


def test_a_second_run_has_nothing_to_do_and_starts_no_engine(world: FakeWorld) -> None:
    world.add_photos("a.jpg")
    enrich_catalog(**world.places)

    state = enrich_catalog(**world.places, return_state=True)

    assert state.message == "nothing to do: every product has its answer"
    assert world.sessions == 1


def test_a_shard_that_fails_is_retried_with_the_same_engine(world: FakeWorld) -> None:
    world.add_photos("a.jpg", "b.jpg", "c.jpg")
    world.faults = [RunFailed("the endpoint was away")] * 2

    state = enrich_catalog(**world.places, settings=TWO_A_SHARD, return_state=True)

    assert state.name == "Completed"
    assert (world.sessions, sorted(world.asked)) == (1, ["a", "b", "c"])


def test_a_group_that_is_retried_does_its_missing_shards_only(world: FakeWorld) -> None:
    world.add_photos("a.jpg", "b.jpg", "c.jpg")
    world.faults = [None, RunFailed("the endpoint was away")]

    state = enrich_catalog(**world.places, settings=text(run={"shard_size": 1}), return_state=True)

    assert state.message == "3 products: 3 ok, 0 failed"
    assert world.asked == ["a", "b", "c"]


def test_an_engine_gets_the_next_shard_s_photos_before_the_last_one_s_answers(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_photos("a.jpg", "b.jpg", "bad.jpg", "c.jpg", "d.jpg")
    inner = world.answer

    def answer(images: Iterable[Shown]) -> Iterator[tuple[str, Prediction]]:
        yield from reversed([*inner(images)])

    monkeypatch.setattr(world, "answer", answer)

    state = enrich_catalog(**world.places, settings=TWO_A_SHARD, return_state=True)

    assert state.message == "5 products: 4 ok, 1 failed"
    shards = sorted((world.root / "output" / "history").rglob("*.parquet"))
    assert [set(pl.read_parquet(shard)["product_id"]) for shard in shards] == [
        {"a", "b"}, {"bad", "c"}, {"d"},
    ]  # fmt: skip


def test_a_run_that_was_interrupted_continues_under_its_run_id(world: FakeWorld) -> None:
    world.add_photos("a.jpg", "b.jpg", "c.jpg")
    world.faults = [RunFailed("gone")] * (1 + RETRIED["retries"])
    broken = enrich_catalog(**world.places, settings=text(run_id="night", run={"shard_size": 2}), return_state=True)

    state = enrich_catalog(**world.places, settings=text(run_id="night", run={"shard_size": 2}), return_state=True)

    assert broken.is_failed()
    assert broken.message == "Flow run encountered an exception: RunFailed: gone"
    assert state.message == "3 products: 3 ok, 0 failed"


def test_a_deadline_publishes_what_is_done_and_the_run_continues(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_photos("a.jpg", "b.jpg", "c.jpg")
    night = {"run_id": "night", "run": {"shard_size": 1}}
    monkeypatch.setattr(Deadline, "passed", lambda self: self.until < math.inf and self.last > 0)

    first = enrich_catalog(**world.places, settings=text(**night, **{"until when": "1h"}), return_state=True)
    asked = list(world.asked)
    second = enrich_catalog(**world.places, settings=text(**night), return_state=True)

    assert first.message == "1 products: 1 ok, 0 failed; 2 of 3 shards are left"
    assert asked == ["a"]
    assert second.message == "3 products: 3 ok, 0 failed"
    assert pl.read_parquet(world.root / "output" / "products.parquet").height == 3


def test_a_deadline_that_has_passed_before_the_first_shard_is_reported(world: FakeWorld) -> None:
    world.add_photos("a.jpg")

    settings = text(run_id="night", **{"until when": "0m"})
    state = enrich_catalog(**world.places, settings=settings, return_state=True)

    assert state.message == "0 products: 0 ok, 0 failed; 1 of 1 shards are left"


def test_an_inventory_is_read_instead_of_the_listing(world: FakeWorld) -> None:
    world.add_photos("a.jpg", "b.jpg")
    rows = [("images", "a.jpg", 5, "0" * 32)]
    table = pl.DataFrame(rows, schema=["bucket", "key", "size", "e_tag"], orient="row")
    table.write_parquet(world.root / "listed.parquet")
    data = (world.root / "listed.parquet").read_bytes()
    manifest = {
        "sourceBucket": "images", "destinationBucket": "arn:aws:s3:::lists", "fileFormat": "Parquet",
        "fileSchema": "message s3.inventory { ... }",
        "files": [{"key": "listed.parquet", "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}],
    }  # fmt: skip
    (world.root / "manifest.json").write_text(json.dumps(manifest))

    state = enrich_catalog(
        **world.places, settings=text(inventory=str(world.root / "manifest.json")), return_state=True
    )

    assert state.message == "1 products: 1 ok, 0 failed"


def test_wrong_usage_fails_at_once_with_one_line(world: FakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    world.add_photos("a.jpg")
    world.faults = [UsageError("engine vllm: not here")]

    state = enrich_catalog(**world.places, return_state=True)

    assert state.message == "Flow run encountered an exception: UsageError: engine vllm: not here"
    assert world.asked == []
    assert "engine vllm: not here" in caplog.text
    assert "Traceback" not in caplog.text


def test_no_photos_is_reported_in_one_line(world: FakeWorld) -> None:
    state = enrich_catalog(**world.places, return_state=True)

    assert state.message == (
        "Flow run encountered an exception: UsageError: "
        f"images {world.root}/images: no photos there; check the bucket and the prefix"
    )


def test_a_run_held_back_ends_as_held(world: FakeWorld) -> None:
    world.add_photos("a.jpg", "bad.jpg")
    settings = text(run_id="night", run={"gate": {"min_rows": 1}})

    state = enrich_catalog(**world.places, settings=settings, return_state=True)

    assert (state.type, state.name) == (StateType.CANCELLED, "Held")
    assert state.message is not None
    assert state.message.startswith("run night is held back: 1 of 2 products failed, most often with not_an_image:")
    assert state.message.endswith(f"release it with `enrich publish --output {world.root}/output --run-id night`")
    assert not (world.root / "output" / "products.parquet").exists()


def test_task_runs_are_named_after_their_shards(
    world: FakeWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_photos(*(f"{number}.jpg" for number in range(5)))
    monkeypatch.setattr(flows.enrich_catalog, "shard_groups", partial(shard_groups, least=2))

    enrich_catalog(**world.places, settings=text(run={"shard_size": 1}), return_state=True)

    names = [getattr(record, "task_run_name", "") for record in caplog.records]
    named = [name for name in names if "shard" in name]
    assert list(dict.fromkeys(named)) == ["shard 0", "shards 1-2", "shards 3-4"]


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=2000).map(sorted), st.integers(1, 600), st.integers(1, 20))
def test_shard_groups_keep_every_shard_in_order(shards: list[int], most: int, least: int) -> None:
    groups = shard_groups(shards, most, least)

    assert [shard for group in groups for shard in group] == shards
    assert len(groups) == min(most, math.ceil(len(shards) / least))
    sizes = {len(group) for group in groups}
    assert not sizes or max(sizes) - min(sizes) <= 1
