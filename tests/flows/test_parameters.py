"""The forms that start flows: every field has a title and a description, and defaults pass."""

from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError

from enrich.errors import UsageError
from enrich.settings.models import TINY_MODEL
from enrich.train.recipe import TINY_RECIPE, resolve_model
from flows.demo import demo
from flows.enrich_catalog import enrich_catalog
from flows.finetune import finetune_adapter
from flows.nightly import nightly
from flows.parameters import Training
from flows.release_held import release_held
from flows.sample_catalog import sample_catalog

FORMS: list[Flow[..., Any]] = [enrich_catalog, finetune_adapter, nightly, release_held, sample_catalog]


def schema(flow: Flow[..., Any]) -> dict[str, Any]:
    return parameter_schema(flow).model_dump_for_openapi()


def test_flows_have_the_names_that_people_look_for() -> None:
    names = {flow.name for flow in [*FORMS, demo]}

    assert names == {"enrich-catalog", "finetune-adapter", "nightly", "release-held", "sample-catalog", "demo"}


@pytest.mark.parametrize("flow", FORMS, ids=lambda flow: flow.name)
def test_every_field_of_a_form_has_a_title_a_description_and_a_default(flow: Flow[..., Any]) -> None:
    for name, field in schema(flow)["properties"].items():
        assert field["title"][0].isupper(), name
        assert field["description"].endswith("."), name
        assert "default" in field, name


@pytest.mark.parametrize("flow", FORMS, ids=lambda flow: flow.name)
def test_fields_of_a_group_have_titles_and_defaults_that_the_form_can_show(flow: Flow[..., Any]) -> None:
    for group in schema(flow)["definitions"].values():
        assert group["description"]
        for name, field in group["properties"].items():
            assert "title" in field or "$ref" in field, name
            assert "default" in field, name


def test_a_choice_is_a_list_to_choose_from() -> None:
    engine = schema(enrich_catalog)["definitions"]["RunSettings"]["properties"]["engine"]

    assert engine["enum"] == ["auto", "vllm", "transformers"]


@pytest.mark.parametrize(
    ("flow", "parameters", "message"),
    [
        (enrich_catalog, {"images": ""}, "at least 1 character"),
        (enrich_catalog, {"limit": 0}, "greater than or equal to 1"),
        (enrich_catalog, {"deadline": 0}, "greater than 0"),
        (enrich_catalog, {"settings": {"engine": "magic"}}, "'auto', 'vllm' or 'transformers'"),
        (enrich_catalog, {"settings": {"engin": "auto"}}, "settings.engin: Extra inputs are not permitted"),
        (nightly, {"training": {"epochs": -1}}, "greater than 0"),
    ],
)
def test_a_wrong_field_is_named(flow: Flow[..., Any], parameters: dict[str, Any], message: str) -> None:
    defaults = {name: field["default"] for name, field in schema(flow)["properties"].items()}

    with pytest.raises(Exception, match=message):
        flow.validate_parameters(defaults | parameters)
    flow.validate_parameters(defaults)


@pytest.mark.parametrize(
    ("flow", "parameters", "message"),
    [
        (enrich_catalog, {"limit": 0}, "0 is less than the minimum of 1"),
        (enrich_catalog, {"settings": {"ray": {"workers": 0}}}, "0 is less than the minimum of 1"),
        (enrich_catalog, {"settings": {"machine_price_per_hour": 0}}, "0 is less than or equal to the minimum of 0"),
        (nightly, {"training": {"epochs": -1}}, "-1 is less than or equal to the minimum of 0"),
        (nightly, {"training": {"run_name": ""}}, "'' should be non-empty"),
        (release_held, {"hours": 500}, "500 is greater than the maximum of 168"),
    ],
)
def test_the_form_says_what_may_be_entered(flow: Flow[..., Any], parameters: dict[str, Any], message: str) -> None:
    """The server's check, whose message the UI shows."""
    errors = validate(parameters, schema(flow), allow_none_with_default=True)

    assert [error.message for error in errors] == [message]
    nothing = {name: None for name, value in parameters.items() if not isinstance(value, dict)}
    if flow is not release_held:
        assert validate(nothing, schema(flow), allow_none_with_default=True) == []


def test_fields_left_empty_take_what_suits_the_base() -> None:
    asked = Training.model_validate(Training(learning_rate=1e-5).model_dump()).settings(TINY_MODEL)

    settings = resolve_model(asked, gpu=False)

    assert (settings.learning_rate, settings.lora_alpha) == (1e-5, TINY_RECIPE["lora_alpha"])


def test_fields_that_do_not_go_together_are_told_in_one_line() -> None:
    with pytest.raises(
        UsageError, match="effective_batch_size 16 is not a multiple of batch_size 5; change that value"
    ):
        Training(batch_size=5).settings("auto")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Training.model_validate({"epoch": 3})
