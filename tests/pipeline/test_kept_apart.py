"""Places that a command must not mix, without a model: the checks come before anything is read."""

from pathlib import Path

import pytest

from enrich.errors import UsageError
from enrich.pipeline.finetuning import finetune
from enrich.pipeline.merging import merge
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import dry_run, start_run
from enrich.pipeline.scoring import score_adapter
from enrich.settings.run import RunSettings
from enrich.settings.training import MergeSettings, TrainSettings


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
