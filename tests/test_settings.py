"""Settings from defaults, files and overrides; errors in them are reported in one line."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from enrich.errors import UsageError
from enrich.settings.base import Settings
from enrich.settings.catalog import Columns, SampleSettings
from enrich.settings.describe import describe
from enrich.settings.load import COMMANDS, S, load_settings
from enrich.settings.models import DEFAULT_MODEL, REVISIONS, TINY_MODEL
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.settings.training import MergeSettings, TrainSettings
from enrich.train.recipe import resolve_model

PHI_3_5 = "microsoft/Phi-3.5-vision-instruct"


def loaded(tmp_path: Path, cls: type[S], text: str | bytes, command: str | None = None, **overrides: object) -> S:
    """The settings that a file of this content gives."""
    path = tmp_path / "settings.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_settings(cls, path, command, **overrides)


def refused(tmp_path: Path, cls: type[Settings], text: str | bytes, command: str | None = None) -> str:
    """The one line that a file of this content is refused with, after the file's name."""
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, cls, text, command)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"settings file {tmp_path}/settings.yaml")
    return str(caught.value).removeprefix(f"settings file {tmp_path}/settings.yaml")


def test_a_file_beats_defaults_and_overrides_beat_the_file(tmp_path: Path) -> None:
    text = "shard_size: 10\nbatch_size: 2\nlimits:\n  max_bytes: 5\n"

    settings = loaded(tmp_path, RunSettings, text, batch_size=3, engine=None)

    assert (settings.shard_size, settings.batch_size, settings.engine) == (10, 3, "auto")
    assert settings.limits.max_bytes == 5
    assert settings.limits.max_pixels == RunSettings().limits.max_pixels


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}"])
def test_no_file_and_an_empty_one_change_nothing(tmp_path: Path, text: str) -> None:
    assert load_settings(RunSettings) == loaded(tmp_path, RunSettings, text) == RunSettings()


@pytest.mark.parametrize(
    ("cls", "text", "message"),
    [
        (
            SampleSettings,
            "product: 3",
            "unknown key 'product'; known keys: products, holdout, bucket, seed, photos, language",
        ),
        (
            RunSettings,
            "review:\n  confidence: 0.5",
            "unknown key 'review.confidence'; known keys: min_confidence, max_price_ratio, titles",
        ),
        (RunSettings, "shard_size: 0", "shard_size: Input should be greater than or equal to 1; change that value"),
        (RunSettings, "shard_size: yes", "shard_size: Input should be a number, not true; change that value"),
        (RunSettings, "refresh: off", "refresh: Input should be a number, not false; change that value"),
        (RunSettings, "limits: 5", "limits: settings are expected below it, not 5; write `key: value` lines"),
        (RunSettings, "vllm: [a]", "vllm: settings are expected below it, not ['a']; write `key: value` lines"),
        (RunSettings, "skip: '*.gif'", "skip: Input should be a list, such as [a, b]; change that value"),
        (
            RunSettings,
            "engine: magic",
            "engine: Input should be 'auto', 'vllm' or 'transformers'; change that value",
        ),
        (
            TrainSettings,
            "price_unit: pence",
            "price_unit: Input should be 'whole', 'cents' or 'auto'; change that value",
        ),
        (
            TrainSettings,
            "fields: {colour: {kind: choice, colum: shade}}",
            "unknown key 'fields.colour.colum'; known keys: kind, column, label",
        ),
        (
            TrainSettings,
            "fields: {colour: choice}",
            "fields.colour: settings are expected below it, not 'choice'; write `key: value` lines",
        ),
        (
            TrainSettings,
            "fields: [colour]",
            "fields: settings are expected below it, not ['colour']; write `key: value` lines",
        ),
        (TrainSettings, "fields: {colour: {label: Shade}}", "fields.colour.kind: it is missing; add it"),
        (
            TrainSettings,
            "fields: {Colour: {kind: choice}}",
            "fields: 'Colour' is not a field name, which has at most 40 of a to z, 0 to 9 and _, a letter first; words "
            "of your own belong in its label, the catalog's in its column; change that value",
        ),
        (
            RunSettings,
            "limits:\n  max_bytes: lots",
            "limits.max_bytes: Input should be a valid integer, unable to parse string as an integer; "
            "change that value",
        ),
        (
            TrainSettings,
            "batch_size: 3\neffective_batch_size: 16",
            "TrainSettings: effective_batch_size 16 is not a multiple of batch_size 3; change that value",
        ),
        (
            RunSettings,
            "group_by: '(?P<product_id>'",
            "group_by: '(?P<product_id>' is not a regular expression: missing ) at position 15; change that value",
        ),
        (
            RunSettings,
            "group_by: '(.*)[.]jpg'",
            "group_by: '(.*)[.]jpg' is neither photo nor folder, and has no group (?P<product_id>...); "
            "change that value",
        ),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, cls: type[Settings], text: str, message: str) -> None:
    assert refused(tmp_path, cls, text) == f": {message}"


def test_switches_are_taken_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("gate: {enabled: off}\nvllm: {enable_prefix_caching: yes}\n")
    settings = load_settings(RunSettings, path)
    assert (settings.gate.enabled, settings.vllm) == (False, {"enable_prefix_caching": True})


def test_a_pattern_with_the_products_group_is_taken() -> None:
    pattern = r"(?P<product_id>[0-9]+)/.*"

    assert load_settings(RunSettings, group_by=pattern).group_by == pattern


def test_a_wrong_override_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(TrainSettings, epochs=-1)

    assert str(caught.value) == "settings: epochs: Input should be greater than 0; change that value"


@pytest.mark.parametrize("text", ["- 1\n- 2", "just words", "7"])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, RunSettings, text) == " is not a mapping; write lines such as `epochs: 3`"


@pytest.mark.parametrize("data", [b"a: [1, 2", b"a: \xff\xfe", b"a: !!python/object/apply:os.getcwd []"])
def test_a_file_that_is_not_yaml_is_reported_in_one_line(tmp_path: Path, data: bytes) -> None:
    message = refused(tmp_path, RunSettings, data)
    assert message.startswith(" is not valid YAML: ")
    assert message.endswith("; fix it")


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    for path, reason in ((missing, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError) as caught:
            load_settings(RunSettings, path)
        assert str(caught.value) == f"settings file {path}: {reason}; name a readable YAML file"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunSettings().shard_size = 3


@pytest.mark.parametrize(
    ("asked", "gpu", "expected"),
    [
        ({}, True, {"model": DEFAULT_MODEL, "revision": REVISIONS[DEFAULT_MODEL], "learning_rate": 1e-4, "lora_r": 16}),
        ({}, False, {"model": TINY_MODEL, "revision": None, "learning_rate": 1e-3, "effective_batch_size": 8}),
        ({"model": PHI_3_5}, True, {"model": PHI_3_5, "revision": REVISIONS[PHI_3_5], "learning_rate": 1e-4}),
        ({"model": "Qwen/Qwen3-VL-4B-Instruct"}, True, {"revision": None, "learning_rate": 1e-4}),
        ({"model": TINY_MODEL}, True, {"model": TINY_MODEL, "learning_rate": 1e-3}),
        ({"learning_rate": 5e-4}, False, {"learning_rate": 5e-4, "lora_r": 16, "price_weight": 4}),
        ({"model": DEFAULT_MODEL, "revision": "0" * 40}, False, {"revision": "0" * 40, "learning_rate": 1e-4}),
        ({"model": "./mine"}, True, {"model": "./mine", "revision": None, "learning_rate": 1e-4}),
        # A requested batch size must still divide the recipe's step.
        ({"batch_size": 16}, False, {"batch_size": 16, "effective_batch_size": 16}),
        ({"batch_size": 4}, False, {"batch_size": 4, "effective_batch_size": 8}),
        ({"effective_batch_size": 24}, False, {"batch_size": 8, "effective_batch_size": 24}),
    ],
)
def test_the_model_brings_its_recipe(asked: dict[str, Any], gpu: bool, expected: dict[str, Any]) -> None:
    resolved = resolve_model(TrainSettings.model_validate(asked), gpu=gpu)

    assert {name: getattr(resolved, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("rows", "epochs"), [(10, 12.0), (300, 12.0), (500, 12.0), (1000, 10.0), (8000, 1.25), (50_000, 1.0)]
)
def test_a_small_catalog_is_shown_more_often_to_the_tiny_base(rows: int, epochs: float) -> None:
    assert resolve_model(TrainSettings(), gpu=False, rows=rows).epochs == epochs
    assert resolve_model(TrainSettings(), gpu=True, rows=rows).epochs == TrainSettings().epochs
    assert resolve_model(TrainSettings(epochs=5), gpu=False, rows=rows).epochs == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 2026-01-01", ": seed: Input should be a valid integer"),
        ("seed: 2026-99-99", ": seed: Input should be a valid integer"),
        ("1: 2", "line 1: a key that is not a name"),
        ("? [a]\n: 3", "line 1: a key that is not a name"),
        ("seed: 1\nseed: 2", "line 2: duplicate key 'seed'"),
        ("a: &a [x, x]\nb: [*a, *a]", "line 2: it has an alias"),
        ("epochs: .nan", "epochs: Input should be a finite number"),
        ("epochs: .inf", "epochs: Input should be a finite number"),
        ("seed: " + "9" * 5000, "is not valid YAML: Exceeds the limit"),
        ("[" * 20_000, "nested too deep"),
        ("# " + "x" * (2 << 20), "more than 1,048,576 bytes"),
        ("x: !!timestamp 2", "is not valid YAML"),
    ],
)
def test_what_yaml_makes_of_a_value_is_reported_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, TrainSettings, text)


def test_a_date_is_the_text_it_is(tmp_path: Path) -> None:
    settings = loaded(tmp_path, TrainSettings, "run_name: 2026-01-01\ncolumns: {title: 2026-02-30}")
    assert (settings.run_name, settings.columns.title) == ("2026-01-01", "2026-02-30")


@pytest.mark.parametrize(("given", "meant"), [("JPG", "write JPEG"), (".tif", "write TIFF"), ("HEIC", "choose from")])
def test_a_format_that_pillow_does_not_know_is_refused_with_the_name_that_is_meant(
    tmp_path: Path, given: str, meant: str
) -> None:
    assert meant in refused(tmp_path, RunSettings, f"limits: {{formats: [{given}, PNG]}}\n")


def test_formats_are_named_in_any_case_and_at_least_one() -> None:
    assert PhotoLimits(formats=("jpeg", "Png")).formats == ("JPEG", "PNG")
    with pytest.raises(ValueError, match="formats is empty"):
        PhotoLimits(formats=())


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_is_a_settings_file_of_the_defaults(command: str, tmp_path: Path) -> None:
    file, cls = tmp_path / "settings.yaml", COMMANDS[command]
    for text in (describe(cls), "".join(describe(other, name) for name, other in COMMANDS.items())):
        file.write_text(text)
        assert load_settings(cls, file, command) == cls()


def test_what_is_printed_has_every_setting_with_its_limits() -> None:
    text = describe(RunSettings)
    assert "# Attempts at a product whose failure may be temporary (>= 1, <= 100)\nmax_attempts: 3\n" in text
    assert "(one of merged, lora)\nserved: merged\n" in text
    assert "\n  max_pixels: 64000000\n" in text
    assert all(f"\n{name}:" in text for name in RunSettings.model_fields)


def test_a_file_may_hold_the_settings_of_several_commands(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("finetune: {epochs: 7}\nrun: {shard_size: 5}\nscore: {batch_size: 2}\nreview: {title: name}\n")
    assert load_settings(TrainSettings, file, "finetune").epochs == 7
    assert load_settings(RunSettings, file, "run", batch_size=3) == RunSettings(shard_size=5, batch_size=3)
    assert load_settings(RunSettings, file, "tidy").shard_size == 5
    assert load_settings(RunSettings, file, "score") == RunSettings(batch_size=2)
    assert load_settings(Columns, file, "review").title == "name"
    assert load_settings(MergeSettings, file, "merge") == MergeSettings()
    file.write_text("review: {max_price_ratio: 3}\n")  # a setting of runs, not a section for a command
    assert load_settings(RunSettings, file, "run").review.max_price_ratio == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {}\nepochs: 3", "key 'epochs' is outside of the sections; move it below a command's name"),
        ("run: 3", "run: settings are expected below it, not 3; write `key: value` lines"),
        ("run: {shards: 1}", "unknown key 'shards'; known keys: "),
    ],
)
def test_sections_that_cannot_be_read_are_reported_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, RunSettings, text, "run").startswith(f": {message}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("looks: [4, 1]", "[4, 1]: the first look must take fewer crops than the second; write [1, 4]"),
        ("looks: [4, 4]", "[4, 4]: the first look must take fewer crops than the second; write [1, 4]"),
        ("looks: [1, 2, 4]", "[1, 2, 4] is not two numbers of crops from 1 to 16; write [1, 4]"),
        ("looks: [0, 4]", "[0, 4] is not two numbers of crops from 1 to 16; write [1, 4]"),
        ("looks: [250, 750]", "[250, 750] is not two numbers of crops from 1 to 16; write [1, 4]"),
        ("looks: 2", "2 is not two numbers of crops from 1 to 16; write [1, 4]"),
        ("looks: [1, 4]\nnum_crops: 9", "looks and num_crops both set the resolution of photos; drop num_crops"),
        (
            "looks: [1, 4]\nphoto_tokens: 500",
            "looks and photo_tokens both set the resolution of photos; drop photo_tokens",
        ),
    ],
)
def test_looks_that_make_no_sense_are_reported_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    assert line in refused(tmp_path, TrainSettings, text)


def test_the_second_look_stands_for_the_number_of_crops(tmp_path: Path) -> None:
    assert loaded(tmp_path, TrainSettings, "looks: [1, 9]").close_crops == 9
    assert loaded(tmp_path, TrainSettings, "looks: [4, 9]\nnum_crops: 9").looks == (4, 9)
    assert loaded(tmp_path, TrainSettings, "num_crops: 2").close_crops == 2
    assert loaded(tmp_path, TrainSettings, "").looks is None
    again = TrainSettings.model_validate(loaded(tmp_path, TrainSettings, "looks: [1, 9]").model_dump(mode="json"))
    assert (again.looks, again.close_crops) == ((1, 9), 9)
