"""Places that a command must not mix, without a model: the checks come before anything is read."""

from pathlib import Path
from typing import Any

import pytest

from enrich.errors import UsageError
from enrich.pipeline.finetuning import finetune, rehearse
from enrich.pipeline.merging import merge
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import dry_run, start_run
from enrich.pipeline.scoring import score_adapter
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from enrich.settings.training import MergeSettings, TrainSettings
from tests.testing.random_adapter import write_random_adapter


@pytest.mark.parametrize(
    ("adapter", "output", "message"),
    [
        ("adapter", "photos/out", "overlap"),
        ("adapter", "other/../photos/out", "overlap"),
        ("adapter", "link/out", "overlap"),
        ("adapter", ".", "overlap"),
        ("link/adapter", "out", "is inside the images"),
        ("adapter", "other/../adapter/out", "is inside the adapter"),
    ],
)
def test_a_run_refuses_places_that_share_files(tmp_path: Path, adapter: str, output: str, message: str) -> None:
    for name in ("photos", "other", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("photos")
    places = str(tmp_path / "photos"), f"{tmp_path}/{adapter}", f"{tmp_path}/{output}"
    with pytest.raises(UsageError, match=message):
        start_run(RunRequest(*places, RunSettings())).__enter__()
    with pytest.raises(UsageError, match=message):
        dry_run(RunRequest(*places, RunSettings()))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter", "link", "other", "photos"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"limit": 0}, "limit 0: a run needs at least 1 product; omit the limit to process all"),
        ({"limit": -1}, "limit -1: a run needs at least 1 product; omit the limit to process all"),
        ({"run_id": "../x"}, "run id '../x' is not valid: use 1 to 100 letters, digits, dots, dashes and underscores"),
        ({"run_id": ""}, "run id '' is not valid: use 1 to 100 letters, digits, dots, dashes and underscores"),
        ({"adapter": ""}, "the URI of the adapter is empty; give s3://bucket/prefix or a local path"),
        ({"output": " "}, "the URI of the output is empty; give s3://bucket/prefix or a local path"),
        ({"output": "file/out"}, "file: is a file; name a directory"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").touch()
    adapter = write_random_adapter(tmp_path / "adapter", TINY_MODEL_PATH, num_crops=1)
    places = {"images": "photos", "adapter": str(adapter), "output": "out"}
    request = RunRequest(**{**places, "settings": RunSettings(engine="transformers"), **changed})
    for start in (dry_run, lambda asked: start_run(asked).__enter__()):
        with pytest.raises(UsageError) as error:
            start(request)
        assert str(error.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_what_is_written_whole_never_replaces_what_it_is_made_from(tmp_path: Path) -> None:
    shop, adapter = tmp_path / "all" / "shop", tmp_path / "all" / "adapter"
    (shop / "images").mkdir(parents=True)
    adapter.mkdir()
    (tmp_path / "link").symlink_to("all")
    settings = TrainSettings()
    for out in (tmp_path / "all", tmp_path / "link", shop / "..", shop):
        with pytest.raises(UsageError, match="is inside, and would be replaced"):
            finetune(str(shop), str(out), settings)
    with pytest.raises(UsageError, match="is inside the photos"):
        finetune(str(shop), f"{tmp_path}/link/shop/images/adapter", settings)
    for out in (tmp_path / "all", tmp_path / "link" / "adapter"):
        with pytest.raises(UsageError, match="is inside, and would be replaced"):
            merge(str(adapter), str(out), MergeSettings())
    with pytest.raises(UsageError, match="is the adapter itself"):
        score_adapter(str(adapter), str(shop), RunSettings(), out=f"{tmp_path}/link/adapter/")


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "shop" / "images").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    catalog, full = str(tmp_path / "shop"), str(tmp_path / "full")
    for work in (
        lambda out: finetune(catalog, out, TrainSettings()),
        lambda out: rehearse(catalog, out, TrainSettings()),
        lambda out: merge(str(tmp_path / "no-adapter"), out, MergeSettings()),
    ):
        with pytest.raises(
            UsageError, match=r"full: contains other files \(thesis\.txt\) and no \w+\.json; name an empty"
        ):
            work(full)
        with pytest.raises(UsageError, match=r"thesis\.txt: is a file; name a directory"):
            work(f"{full}/thesis.txt/below")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
