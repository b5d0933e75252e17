"""Experiment trackers: tables of samples at each evaluation, offline; and what they are never given."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from enrich.errors import UsageError
from enrich.settings.load import load_settings
from enrich.settings.training import TrainSettings
from enrich.train.evaluate import SamplePrediction
from enrich.train.record import TrainReport
from enrich.train.tracking import COLUMNS, SampleTable, _plain, require_trackers, tracked
from tests.testing.tiny_job import TinyJob

Run = Callable[..., TrainReport]
HOSTILE = "<script>alert(1)</script> | ![x](http://evil/x.png)\n# head\x1b[31m"


@pytest.fixture
def run(job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Fine-tune for four steps, two evaluations, in an empty working directory."""

    def do(tracker: str) -> TrainReport:
        monkeypatch.chdir(tmp_path)
        return job.train(tmp_path / "work", epochs=4, evaluations=2, report_to=tracker, run_name="autumn")[0]

    return do


def test_tensorboard_gets_numbers_in_a_folder_that_stays(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = run("tensorboard")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["autumn"]
    events = EventAccumulator(str(tmp_path / "runs" / "autumn")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("eval/score")] == [
        pytest.approx(evaluation.score) for evaluation in report.evaluations
    ]


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

        def log(data: dict[str, Any], **more: Any) -> None:
            logged.append(data)
            keep(data, **more)

        monkeypatch.setattr(wandb, "log", log)
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


def test_a_run_that_fails_is_ended_as_failed(job: TinyJob, fakes: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=r"^broken$"), tracked(job.settings(report_to="wandb")):
        raise RuntimeError("broken")
    assert fakes["ended"] == ["wandb 1"]


def test_a_run_that_the_caller_opened_is_used_and_left_open(
    job: TinyJob, photo: Path, monkeypatch: pytest.MonkeyPatch, fakes: dict[str, Any]
) -> None:
    monkeypatch.setattr(sys.modules["wandb"], "run", object())
    _show(job.settings(report_to="wandb"), photo, HOSTILE)
    assert len(fakes["tables"]) == 1
    assert (fakes["began"], fakes["ended"]) == ([], [])


def test_the_other_trackers_are_left_to_transformers(job: TinyJob, fakes: dict[str, Any]) -> None:
    with tracked(job.settings(report_to=["mlflow", "trackio"], run_name="spring")) as tracking:
        assert (tracking.report_to, tracking.run_name) == (["mlflow", "trackio"], "spring")
        assert tracking.callbacks == []


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for W&B: what it was told."""
    told: dict[str, Any] = {"ended": [], "began": [], "tables": []}

    class Held(SimpleNamespace):
        """Whatever was passed, by position and name."""

    def wandb_init(project: str, name: str) -> Any:
        told["began"].append((project, name))
        return SimpleNamespace(finish=lambda exit_code: told["ended"].append(f"wandb {exit_code}"))

    fake: Any = ModuleType("wandb")
    vars(fake).update(
        run=None,
        init=wandb_init,
        errors=SimpleNamespace(Error=LookupError),
        Image=lambda image: Held(image=image),
        Table=lambda columns, data: Held(columns=columns, data=data),
        log=lambda data: told["tables"].append(data),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return told


def _show(settings: TrainSettings, image: Path, predicted: str) -> None:
    with tracked(settings) as tracking:
        tracking.keep_samples([SamplePrediction(str(image), "Product: A & B", predicted)] * 20)
        samples = tracking.callbacks[-1]
        samples.on_evaluate(None, SimpleNamespace(global_step=7), None)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (50, 90), (200, 10, 10)).save(path)
    return path


def test_wandb_gets_a_table_of_eight_rows(fakes: dict[str, Any], job: TinyJob, photo: Path) -> None:
    _show(job.settings(report_to="wandb", run_name="spring"), photo, HOSTILE)
    (told,) = fakes["tables"]
    assert told["train/global_step"] == 7
    assert (told["samples"].columns, len(told["samples"].data)) == (list(COLUMNS), 8)
    image, truth, predicted = told["samples"].data[0]
    assert image.image.size == (336, 336)
    assert (truth, predicted) == ("Product: A & B", _plain(HOSTILE))
    assert (fakes["began"], fakes["ended"]) == ([("enrich", "spring")], ["wandb 0"])


def test_wandb_without_an_account_is_a_usage_error(
    fakes: dict[str, Any], job: TinyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise LookupError("api_key not configured (no-tty)")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UsageError) as raised, tracked(job.settings(report_to="wandb")):
        pass
    assert str(raised.value) == (
        "report_to: wandb: api_key not configured (no-tty); log in with `wandb login`, or set WANDB_MODE=offline"
    )


def test_what_the_model_writes_steers_no_terminal() -> None:
    assert _plain(HOSTILE) == HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert _plain("کتاب\u200cها 半袖\u202e") == "کتاب\u200cها 半袖\N{REPLACEMENT CHARACTER}"
    assert _plain("x" * 2000) == "x" * 1000 + "..."


def test_photos_are_read_once(job: TinyJob, photo: Path, fakes: dict[str, Any]) -> None:
    samples = SampleTable(job.settings().limits)
    samples.keep([SamplePrediction(str(photo), "a", "b")])
    for step in (1, 2):
        samples.on_evaluate(None, SimpleNamespace(global_step=step), None)
        photo.unlink(missing_ok=True)
    assert [table["train/global_step"] for table in fakes["tables"]] == [1, 2]


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
def test_report_to_takes_a_name_or_several(written: Any, read: tuple[str, ...]) -> None:
    settings = TrainSettings(report_to=written)
    assert settings.report_to == read
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings
    require_trackers(TrainSettings())


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        load_settings(TrainSettings, report_to="excel")
    assert str(raised.value) == (
        "settings: report_to.0: Input should be 'wandb', 'mlflow', 'trackio' or 'tensorboard'; change that value"
    )
