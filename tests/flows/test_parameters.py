"""The forms that start flows: what they demand, what they take as text, and what a wrong value is told."""

from datetime import UTC, datetime
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from enrich.errors import UsageError
from enrich.settings.models import TINY_MODEL
from enrich.train.recipe import TINY_RECIPE, resolve_model
from flows.demo import demo
from flows.enrich_catalog import enrich_catalog
from flows.finetune import finetune_adapter
from flows.nightly import nightly, sibling
from flows.parameters import (
    ADHOC,
    ANSWERING,
    FINETUNE,
    LOOKING,
    NIGHTLY,
    AdhocSettings,
    FinetuneSettings,
    NightlySettings,
    read_text,
)
from flows.promote_adapter import promote_adapter
from flows.release_held import release_held
from flows.sample_catalog import sample_catalog
from flows.until import seconds_until

FORMS: list[Flow[..., Any]] = [
    enrich_catalog, finetune_adapter, nightly, release_held, promote_adapter, sample_catalog,
]  # fmt: skip


def schema(flow: Flow[..., Any]) -> dict[str, Any]:
    return parameter_schema(flow).model_dump_for_openapi()


def adhoc(text: str) -> AdhocSettings:
    return read_text(AdhocSettings, text, "run", ANSWERING)


def training(text: str) -> FinetuneSettings:
    return read_text(FinetuneSettings, text, "finetune", LOOKING)


def test_flows_have_the_names_that_people_look_for() -> None:
    names = {flow.name for flow in [*FORMS, demo]}

    assert names == {
        "enrich-catalog", "finetune-adapter", "nightly", "release-held", "promote-adapter", "sample-catalog", "demo",
    }  # fmt: skip


@pytest.mark.parametrize("flow", FORMS, ids=lambda flow: flow.name)
def test_the_label_of_a_field_begins_with_its_name_or_says_what_it_is(flow: Flow[..., Any]) -> None:
    for name, field in schema(flow)["properties"].items():
        assert field["title"][0].isupper(), name
        if flow in (enrich_catalog, finetune_adapter, nightly):  # what Prefect says of an empty one names it so
            assert field["title"].lower().startswith(name), name


@pytest.mark.parametrize(
    ("flow", "needed"),
    [
        (enrich_catalog, ["photos", "adapter", "output"]),
        (nightly, ["catalog", "photos", "output"]),
        (finetune_adapter, ["catalog", "adapter"]),
        (release_held, ["output"]),
        (promote_adapter, ["adapters", "adapter"]),
        (sample_catalog, ["catalog", "bucket"]),
    ],
)
def test_what_is_required_is_demanded_before_anything_starts(flow: Flow[..., Any], needed: list[str]) -> None:
    """By the server, whose message the UI shows below the field."""
    assert schema(flow)["required"] == needed
    given = dict.fromkeys(needed, "s3://shop/x")
    assert validate(given, schema(flow), allow_none_with_default=True) == []
    for name in needed:
        [missing] = validate({key: value for key, value in given.items() if key != name}, schema(flow))
        assert missing.message == f"'{name}' is a required property"
        [empty] = validate({**given, name: ""}, schema(flow))
        assert empty.message == "'' should be non-empty"


def test_numbers_have_limits() -> None:
    [error] = validate({"output": "o", "hours": 500}, schema(release_held), allow_none_with_default=True)

    assert error.message == "500 is greater than the maximum of 168"


def test_empty_lines_of_the_form_change_nothing() -> None:
    assert adhoc(ADHOC).run == adhoc("").run
    assert read_text(NightlySettings, NIGHTLY, "run", ANSWERING) == read_text(NightlySettings, ADHOC, "run", ANSWERING)
    assert training(FINETUNE).finetune == training("").finetune
    for text in (ADHOC, NIGHTLY):  # more would not fit on a screen
        assert len(text.splitlines()) == 3


def test_lines_that_are_filled_are_read() -> None:
    more = adhoc("products at most: 500\nuntil when: 17:30\nquality or speed: fastest\nrun: {kv_cache_dtype: auto}")

    assert (more.limit, more.until) == (500, "17:30")
    assert (more.run.quantization, more.run.kv_cache_dtype) == ("fp8", "auto")  # what is written goes first
    assert adhoc("quality or speed: most exact").run.photos_answered == 24
    assert training("quality or speed: most exact").finetune.num_crops == 16


def test_a_settings_file_can_be_pasted() -> None:
    more = adhoc("finetune: {epochs: 3}\nrun: {shard_size: 8}\nexport: {brand: Plain}\n")

    assert more.run.shard_size == 8


def test_lines_left_empty_take_what_suits_the_base() -> None:
    asked = training(f"finetune: {{learning_rate: 0.00001, model: {TINY_MODEL}}}").finetune

    settings = resolve_model(asked, gpu=False)

    assert (settings.learning_rate, settings.lora_alpha) == (1e-5, TINY_RECIPE["lora_alpha"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "products at most: 0",
            "line 1: products at most: Input should be greater than or equal to 1; change that value",
        ),
        (
            "\nuntil when: tomorrow",
            "line 2: until when: 'tomorrow' is not a time; write 6h, 90m, 07:30 or 07:30 Europe/Berlin; "
            "change that value",
        ),
        (
            "quality or speed: best",
            "line 1: quality or speed: Input should be 'balanced', 'fastest' or 'most exact'; change that value",
        ),
        (
            "run:\n  engine: magic",
            "line 2: run.engine: Input should be 'auto', 'vllm' or 'transformers'; change that value",
        ),
        ("run:\n  gate:\n    max_filed: 1", "line 3: unknown key 'run.gate.max_filed'; known keys: enabled, "),
        (
            "quality or speed: fastest\nrun: 5",
            "line 2: run: settings are expected below it, not 5; write `key: value` lines",
        ),
        ("speed: fastest", "line 1: unknown key 'speed'; known keys: until when, quality or speed, products at most, "),
        ("until when:\nshard_size: 8", "line 2: shard_size is a setting of run; write it below `run:`"),
        ("run: {a", "Settings is not valid YAML: line 1: "),
        ("fast, please", "Settings is not a mapping; write lines such as `epochs: 3`"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong_there(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        adhoc(text)

    assert str(caught.value).startswith(message if message.startswith("Settings") else f"Settings, {message}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("until", ["07:30 Europe", "07:30 Mars/Base", "07:30 ../zone", "40000d"])
def test_what_is_not_a_time(until: str) -> None:
    """Europe is a folder of time zones."""
    with pytest.raises(UsageError, match=f"'{until}' is not a time; write 6h, 90m, 07:30 or 07:30 Europe/Berlin"):
        adhoc(f"until when: {until}")


def test_days_that_no_date_can_be_away() -> None:
    with pytest.raises(UsageError, match=r"line 1: retrain.days: Input should be less than or equal to 36500"):
        read_text(NightlySettings, "retrain: {days: 1.0e+9}", "run", ANSWERING)


def test_settings_that_do_not_go_together_are_reported_in_one_line() -> None:
    with pytest.raises(
        UsageError, match="effective_batch_size 16 is not a multiple of batch_size 5; change that value"
    ):
        training("finetune: {batch_size: 5}")


@pytest.mark.parametrize(
    ("until", "now", "hours"),
    [
        ("6h", "2026-11-30T03:00", 6),
        ("2h30m", "2026-11-30T03:00", 2.5),
        ("07:30 Europe/Berlin", "2026-11-30T03:00", 3.5),  # 04:00 there
        ("07:30 Europe/Berlin", "2026-11-30T05:00", 1.5),  # continued after a crash
        ("07:30 Europe/Berlin", "2026-11-30T07:00", 0),  # so late that nothing is left of the night
        ("2:00 Europe/Berlin", "2026-11-30T03:00", 22),
    ],
)
def test_a_run_ends_after_so_long_or_at_a_time_of_the_day_it_was_due(until: str, now: str, hours: float) -> None:
    due = datetime(2026, 11, 30, 3, tzinfo=UTC)

    assert seconds_until(until, datetime.fromisoformat(now).replace(tzinfo=UTC), due) == hours * 3600


def test_adapters_are_kept_next_to_the_output() -> None:
    assert sibling("demo/output", "adapters") == "demo/adapters"
    assert sibling("s3://shop/night/enriched/", "adapters") == "s3://shop/night/adapters"
    with pytest.raises(
        UsageError, match=r"Output s3://shop is a whole bucket; add a folder, or `adapters: s3://\.\.\.`"
    ):
        sibling("s3://shop", "adapters")
