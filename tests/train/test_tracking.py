"""Experiment trackers: tables of samples at each evaluation, offline; and what they are never given."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from enrich.answers.prompt import Prompt
from enrich.errors import UsageError
from enrich.settings.load import load_settings
from enrich.settings.training import TrainSettings
from enrich.train.evaluate import Said
from enrich.train.record import TrainReport
from enrich.train.run import train
from enrich.train.tracking import COLUMNS, SampleTables, _escaped, _plain, require_trackers, tracked
from enrich.vocabulary import Product
from tests.testing.tiny_phi3v import Tiny

Make = Callable[..., TrainSettings]
Run = Callable[..., TrainReport]
HOSTILE = "<script>alert(1)</script> | ![x](http://evil/x.png)\n# head\x1b[31m"


@pytest.fixture
def run(
    tiny: Tiny,
    products: list[Product],
    prompt: Prompt,
    make_settings: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Fine-tune for four steps, two evaluations, in an empty working directory."""

    def do(*trackers: str, **changes: object) -> TrainReport:
        monkeypatch.chdir(tmp_path)
        settings = make_settings(epochs=4, evaluations=2, report_to=trackers, run_name="autumn", **changes)
        return train(products, products, prompt, settings, tiny.path, tmp_path / "work", data_fingerprint="data")

    return do


def test_tensorboard_gets_numbers_and_tables(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = run("tensorboard")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["autumn"]
    events = EventAccumulator(str(tmp_path / "runs" / "autumn")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("eval/score")] == [
        pytest.approx(evaluation.score) for evaluation in report.evaluations
    ]
    tables = events.Tensors("samples/text_summary")
    assert [event.step for event in tables] == [2, 4]
    lines = tables[0].tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == ["| Row | Ground Truth Text | Predicted Text |", "| --- | --- | --- |"]
    assert lines[2].startswith("| 0 | Product: Red<br>Category: WARM<br>Full Price: 12 | ")
    assert len(lines) == 2 + 5
    images = events.Images("samples/4")
    assert [(event.step, event.width, event.height) for event in images] == [(2, 336, 336), (4, 336, 336)]


def test_weights_and_biases_gets_numbers_and_tables_offline(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for place in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(tmp_path / "places"))
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t" * 7)
    logged: list[dict[str, Any]] = []
    init = wandb.init

    def watched(**arguments: Any) -> Any:
        made = init(**arguments)
        assert (made.project, made.name) == ("enrich", "autumn")
        keep = made.log
        monkeypatch.setattr(wandb, "log", lambda data, **more: (logged.append(data), keep(data, **more)))
        return made

    monkeypatch.setattr(wandb, "init", watched)
    run("wandb")
    assert wandb.run is None  # ended: the next run in this process is another
    assert [data["train/global_step"] for data in logged if "train/loss" in data] == [1, 2, 3, 4]
    assert len([data for data in logged if "eval/score" in data]) == 2
    tables = [data["samples"] for data in logged if "samples" in data]
    assert [(table.columns, len(table.data)) for table in tables] == [(list(COLUMNS), 5)] * 2
    image, truth, _ = tables[0].data[0]
    assert (image.image.size, truth) == ((336, 336), "Product: Red\nCategory: WARM\nFull Price: 12")
    written = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert written
    assert not any(b"s3cr3t" in path.read_bytes() for path in written)


def test_a_run_that_fails_is_ended_as_failed(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Any]
) -> None:
    for tracker in ("wandb", "mlflow", "trackio"):
        with pytest.raises(RuntimeError, match=r"^broken$"), tracked(make_settings(report_to=tracker)):
            raise RuntimeError("broken")
    assert fakes["ended"] == ["wandb 1", "mlflow FAILED", "trackio"]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for the trackers: what they were told."""
    told: dict[str, Any] = {"ended": [], "began": [], "tables": [], "trackio run": "open"}

    class Held(SimpleNamespace):
        """Whatever was passed, by position and name."""

    def module(name: str, **attributes: Any) -> None:
        made = ModuleType(name)
        made.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        for attribute, value in attributes.items():
            setattr(made, attribute, value)
        monkeypatch.setitem(sys.modules, name, made)

    def wandb_init(project: str, name: str) -> Any:
        told["began"].append(("wandb", project, name))
        return SimpleNamespace(finish=lambda exit_code: told["ended"].append(f"wandb {exit_code}"))

    module(
        "wandb",
        run=None,
        init=wandb_init,
        errors=SimpleNamespace(Error=LookupError),
        Image=lambda image: Held(image=image),
        Table=lambda columns, data: Held(columns=columns, data=data),
        log=lambda data: told["tables"].append(data),
    )
    module(
        "mlflow",
        active_run=lambda: None,
        set_experiment=lambda name: told["began"].append(("mlflow", name)),
        start_run=lambda run_name: told["began"].append(("mlflow", run_name)),
        end_run=lambda status: told["ended"].append(f"mlflow {status}"),
        Image=lambda image: Held(image=image),
        log_table=lambda data, artifact_file: told["tables"].append((artifact_file, data)),
    )
    module(
        "trackio",
        context_vars=SimpleNamespace(current_run=SimpleNamespace(get=lambda: told["trackio run"])),
        finish=lambda: told["ended"].append("trackio"),
        Image=lambda image: Held(image=image),
        Table=lambda columns, data: Held(columns=columns, data=data),
        log=lambda data: told["tables"].append(data),
    )
    return told


def _show(settings: TrainSettings, image: Path, predicted: str) -> None:
    with tracked(settings) as tracking:
        tracking.said([Said(str(image), "Product: A & B", predicted)] * 20)
        samples = tracking.callbacks[-1]
        samples.on_evaluate(None, SimpleNamespace(global_step=7), None)  # type: ignore[arg-type]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (50, 90), (200, 10, 10)).save(path)
    return path


def test_wandb_gets_a_table_of_eight_rows(fakes: dict[str, Any], make_settings: Make, photo: Path) -> None:
    _show(make_settings(report_to="wandb", run_name="spring"), photo, HOSTILE)
    (told,) = fakes["tables"]
    assert told["train/global_step"] == 7
    assert (told["samples"].columns, len(told["samples"].data)) == (list(COLUMNS), 8)
    image, truth, predicted = told["samples"].data[0]
    assert image.image.size == (336, 336)
    assert (truth, predicted) == ("Product: A & B", _plain(HOSTILE))
    assert (fakes["began"], fakes["ended"]) == ([("wandb", "enrich", "spring")], ["wandb 0"])


def test_wandb_without_an_account_is_a_usage_error(
    fakes: dict[str, Any], make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise LookupError("api_key not configured (no-tty)")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UsageError) as raised, tracked(make_settings(report_to="wandb")):
        pass
    assert str(raised.value) == (
        "report_to: wandb: api_key not configured (no-tty); log in with `wandb login`, or set WANDB_MODE=offline"
    )


def test_mlflow_gets_a_table_for_each_step(fakes: dict[str, Any], make_settings: Make, photo: Path) -> None:
    _show(make_settings(report_to="mlflow", run_name="spring"), photo, HOSTILE)
    ((artifact, data),) = fakes["tables"]
    assert artifact == "samples/step-000007.json"
    assert list(data) == list(COLUMNS)
    assert data["Predicted Text"] == [_plain(HOSTILE)] * 8
    assert data["Image"][0].image.size == (336, 336)
    assert fakes["began"] == [("mlflow", "enrich"), ("mlflow", "spring")]
    assert fakes["ended"] == ["mlflow FINISHED"]


def test_trackio_gets_escaped_markdown(fakes: dict[str, Any], make_settings: Make, photo: Path) -> None:
    fakes["trackio run"] = None  # as when training ended, and the integration the run with it
    _show(make_settings(report_to="trackio"), photo, HOSTILE)
    (told,) = fakes["tables"]
    _, truth, predicted = told["samples"].data[0]
    assert truth == "Product: A &amp; B"
    assert predicted == _escaped(_plain(HOSTILE))
    assert fakes["ended"] == []


def test_what_the_model_writes_is_no_markup() -> None:
    assert _escaped(_plain(HOSTILE)) == (
        "&lt;script\\&gt;alert\\(1\\)&lt;/script\\&gt; \\| \\!\\[x\\]\\(http://evil/x\\.png\\)<br>"
        "\\# head\N{REPLACEMENT CHARACTER}\\[31m"
    )
    assert _plain("x" * 2000) == "x" * 1000 + "..."


def test_photos_are_read_once(make_settings: Make, photo: Path) -> None:
    seen: list[Any] = []
    samples = SampleTables([lambda step, rows: seen.append((step, rows))], make_settings().limits)
    samples.said([Said(str(photo), "a", "b")])
    for step in (1, 2):
        samples.on_evaluate(None, SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]
        photo.unlink(missing_ok=True)
    assert [step for step, _ in seen] == [1, 2]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_else(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enrich.train.tracking.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as raised:
        run("trackio")
    assert str(raised.value) == "report_to: trackio is not installed; run `pip install trackio`"
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("written", "read"),
    [("none", ()), (None, ()), ("wandb", ("wandb",)), (["wandb", "tensorboard"], ("wandb", "tensorboard")), ([], ())],
)
def test_report_to_takes_a_name_or_several(written: object, read: tuple[str, ...]) -> None:
    settings = TrainSettings(report_to=written)  # type: ignore[arg-type]
    assert settings.report_to == read
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings
    require_trackers(TrainSettings())


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        load_settings(TrainSettings, report_to="excel")
    assert str(raised.value) == (
        "settings: report_to.0: Input should be 'wandb', 'mlflow', 'trackio' or 'tensorboard'; change that value"
    )
