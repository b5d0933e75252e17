"""What killed processes leave goes with the next one; what a living one holds stays, and so does what is not ours."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import boto3.session
import pytest

from enrich.pipeline.tidying import tidy
from enrich.settings.run import RunSettings
from enrich.storage import open_store, scratch, staged, write_tree
from enrich.storage.s3 import S3Store
from tests.testing.s3_server import DENIED, S3Server

HOLD = """
import sys, time
from pathlib import Path
{0}
print("held", flush=True)
time.sleep(600)
"""
SCRATCH = """
from enrich.storage.scratch import Scratch
kept = Scratch()
(kept.path / "rows.parquet").write_bytes(b"rows")
"""
STAGED = """
from contextlib import ExitStack
from enrich.storage.staged import staged_file, staged_folder
stack = ExitStack()
output = Path(sys.argv[1])
stack.enter_context(staged_file(str(output / "history" / "shard-00000.parquet"), b"rows"))
stack.enter_context(staged_folder(output))
"""


@contextmanager
def holding(code: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds what `code` makes; killed on leaving where it still lives."""
    command = [sys.executable, "-c", HOLD.format(code), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def age(*paths: Path, seconds: float = 120.0) -> None:
    then = time.time() - seconds
    for path in paths:
        os.utime(path, (then, then))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of its own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_killed_process_leaves_a_folder_and_the_next_one_removes_it(temporary: Path) -> None:
    with holding(SCRATCH, TMPDIR=str(temporary)) as process:
        [folder] = temporary.iterdir()
        age(folder)
        assert scratch.remove_abandoned() == 0  # its owner lives
        assert (folder / "files" / "rows.parquet").read_bytes() == b"rows"
        kill(process)
        with holding(SCRATCH, TMPDIR=str(temporary)):  # what any command does first
            [other] = temporary.iterdir()
            assert other != folder


def test_a_folder_that_was_made_a_moment_ago_stays(temporary: Path) -> None:
    with holding(SCRATCH, TMPDIR=str(temporary)) as process:
        kill(process)
        assert scratch.remove_abandoned() == 0
        [folder] = temporary.iterdir()
        age(folder)
        assert scratch.remove_abandoned() == 1
        assert list(temporary.iterdir()) == []


def test_only_what_is_ours_is_removed_from_tmpdir(temporary: Path, tmp_path: Path) -> None:
    names = ["enrich-mine", "enrich-scratch-of-mine", "enrich-abcdefgh", "other", "enrich-scratch-12345678x"]
    for name in names:
        (temporary / name).mkdir()
        (temporary / name / ".enrich-owner").write_bytes(b"")
        age(temporary / name)
    full = temporary / "enrich-scratch-abcdefgh"  # named as ours, with files and without a lock
    full.mkdir()
    (full / "data").write_bytes(b"")
    age(full)
    (temporary / "enrich-scratch-bcdefghi").symlink_to(tmp_path)
    (temporary / "enrich-scratch-cdefghij").write_bytes(b"a file")
    before = sorted(temporary.rglob("*"))
    assert scratch.remove_abandoned() == 0
    assert sorted(temporary.rglob("*")) == before


def test_a_scratch_folder_is_gone_when_it_is_left(temporary: Path) -> None:
    with scratch.scratch() as folder:
        assert folder.is_relative_to(temporary)
        assert list(folder.iterdir()) == []  # what a directory is read into must hold nothing else
    assert list(temporary.iterdir()) == []


def staged_names(output: Path) -> list[Path]:
    return sorted(path for path in output.rglob(".enrich-*") if path.name != ".enrich-lock")


def test_files_staged_by_a_killed_writer_are_removed_from_an_output(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "output"), create=True)
    output.put("products.parquet", b"table")
    with holding(STAGED, output.uri) as process:
        left = staged_names(tmp_path)
        assert len(left) == 2
        age(*left)
        assert output.remove_abandoned() == 0  # their writer lives
        assert staged_names(tmp_path) == left
        kill(process)
        assert output.remove_abandoned() == 2
    assert staged_names(tmp_path) == []
    assert output.get("products.parquet")[0] == b"table"


def test_what_another_machine_stages_is_removed_after_a_day_without_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [".enrich-0123abcd-" + "a" * 32, ".enrich-" + "b" * 32]  # of another kernel; of an earlier version
    kept = [".enrich-lock", ".enrich-mine", ".enrich-0123abcd-" + "a" * 31]
    for name in (*names, *kept):
        (tmp_path / name).write_bytes(b"")
        age(tmp_path / name, seconds=23 * 3600)
    output = open_store(str(tmp_path))
    assert output.remove_abandoned() == 0
    for name in (*names, *kept):
        age(tmp_path / name, seconds=25 * 3600)
    assert output.remove_abandoned() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_where_a_file_system_has_no_locks_the_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with staged.staged_file(str(tmp_path / "a"), b"") as path:
        age(Path(path), seconds=3600)
        assert not staged.is_abandoned(path, time.time())
        age(Path(path), seconds=25 * 3600)
        assert staged.is_abandoned(path, time.time())


def test_a_directory_whose_swap_was_cut_short_is_put_back(tmp_path: Path) -> None:
    """Killed after the old one was moved away and before the new one was in its place."""
    left = tmp_path / (".enrich-" + "c" * 32)
    (left / staged.NEW).mkdir(parents=True)
    (left / staged.OLD / "adapter").mkdir(parents=True)
    (left / staged.OLD / "adapter" / "train.json").write_text("old")
    age(left, seconds=25 * 3600)
    assert staged.remove_abandoned(tmp_path) == 1
    assert (tmp_path / "adapter" / "train.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_writing_a_directory_removes_what_a_killed_one_left_next_to_it(tmp_path: Path) -> None:
    made, shop = tmp_path / "made", tmp_path / "shop"
    made.mkdir()
    (made / "train.json").write_text("{}")
    shop.mkdir()
    with holding(STAGED, shop) as process:
        [left] = shop.glob(".enrich-*")
        age(left)
        write_tree(made, str(shop / "adapter"), last="train.json")
        assert left.is_dir()  # its writer lives
        kill(process)
        age(left)
        write_tree(made, str(shop / "adapter"), last="train.json")
        assert not left.exists()
    assert (shop / "adapter" / "train.json").is_file()


def test_tidy_removes_and_counts_what_killed_processes_left(temporary: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    with holding(SCRATCH + STAGED, output, TMPDIR=str(temporary)) as process:
        kill(process)
    age(*staged_names(output), *temporary.iterdir())
    assert tidy(str(output), RunSettings(), grace=timedelta(0), keep=None).litter == 3
    assert staged_names(output) == []
    assert list(temporary.iterdir()) == []


# ---- S3


def test_probes_and_uploads_that_a_killed_writer_left_are_removed_after_a_day(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, bucket = boto3.session.Session().client("s3"), s3_bucket.removeprefix("s3://")
    output = open_store(f"{s3_bucket}/output")
    assert isinstance(output, S3Store)
    own = ("output/.enrich-probe-1", "output/.enrich-lock-000000000001", "x/.enrich-probe-1")
    for key in (*own, "output/products.parquet"):
        admin.put_object(Bucket=bucket, Key=key, Body=b"1")
    for name in ("output/products.parquet", "output/history/run_date=1/x.parquet", "output/mine.bin"):
        admin.create_multipart_upload(Bucket=bucket, Key=name)
    admin.create_multipart_upload(Bucket=bucket, Key="other/products.parquet")
    monkeypatch.setattr("enrich.storage.s3.FOREIGN", timedelta(days=36500))  # this server's uploads are from 2010
    assert output.remove_abandoned() == 0  # all of them are young
    monkeypatch.setattr("enrich.storage.s3.FOREIGN", timedelta(seconds=-5))
    assert output.remove_abandoned() == 3
    left = sorted(upload["Key"] for upload in admin.list_multipart_uploads(Bucket=bucket)["Uploads"])
    assert left == ["other/products.parquet", "output/mine.bin"]
    there = sorted(found["Key"] for found in admin.list_objects_v2(Bucket=bucket)["Contents"])
    assert there == ["output/.enrich-lock-000000000001", "output/products.parquet", "x/.enrich-probe-1"]


def test_anyone_who_may_not_look_for_what_was_left_is_not_stopped(s3_bucket: str, s3_server: S3Server) -> None:
    output = open_store(f"{s3_bucket}/output")
    s3_server.fault = DENIED
    assert output.remove_abandoned() == 0
