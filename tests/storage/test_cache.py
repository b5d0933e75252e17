"""Where unfinished work and merged weights go, on machines whose home cannot be written to as well."""

import errno
import logging
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from enrich.errors import RunFailed, UsageError
from enrich.pipeline.catalogs import fetch_photos
from enrich.settings.catalog import FetchSettings
from enrich.storage import cache, open_store
from enrich.storage.cache import cache_directory, disk_errors
from enrich.storage.tree import work_directory
from tests.testing.badweb import reply, serve


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment that names no place but a TMPDIR, and a home that cannot exist."""
    for name in ("ENRICH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/none")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "tmp"))
    cache._found.cache_clear()
    yield
    cache._found.cache_clear()


FALLBACK = f"tmp/cache-of-enrich-{os.getuid()}"


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "{tmp}/home"}, "home/.cache/enrich"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "xdg/enrich"),
        ({"XDG_CACHE_HOME": "relative"}, FALLBACK),  # to be left out, says its specification
        ({"XDG_CACHE_HOME": "{tmp}/xdg", "ENRICH_CACHE": "{tmp}/named"}, "named"),
    ],
)
def test_the_environment_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    assert cache_directory() == tmp_path / folder
    assert cache_directory().is_dir()


def test_work_towards_s3_needs_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = cache_directory()
        assert cache_directory() == folder  # the next call continues there
    assert folder == tmp_path / FALLBACK
    assert folder.stat().st_mode & 0o777 == 0o700
    (line,) = caplog.messages
    assert line == (
        f"/proc/none/.cache/enrich is not writable: using {folder}; set ENRICH_CACHE to a folder that persists"
    )
    assert work_directory("s3://bucket/adapter", "training").parent == folder


def test_a_user_without_a_home_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    assert cache_directory() == tmp_path / FALLBACK


def test_a_catalog_is_fetched_to_s3_where_the_home_cannot_be_written_to(s3_bucket: str, tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (20, 20), "teal").save(buffer, "PNG")
    with serve() as web:
        web.answers["/a.png"] = reply(200, buffer.getvalue())
        (tmp_path / "source.csv").write_text(f"product_code,imageurl\n1,{web.url}/a.png\n")
        settings = FetchSettings(allow_private=True)
        assert fetch_photos(str(tmp_path / "source.csv"), f"{s3_bucket}/catalog", settings).photos == 1
    assert open_store(f"{s3_bucket}/catalog").head("catalog.csv") is not None
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]  # kept until it was uploaded


@pytest.mark.parametrize("trap", ["link", "open to others", "file"])
def test_what_others_put_in_tmp_is_not_used(tmp_path: Path, trap: str) -> None:
    place = tmp_path / FALLBACK
    if trap == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    elif trap == "file":
        place.touch(mode=0o600)
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(UsageError, match=r"another user owns it.*; set ENRICH_CACHE to one that can$"):
        cache_directory()


def test_a_named_place_that_refuses_files_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENRICH_CACHE", "/proc/none")
    with pytest.raises(UsageError, match=r"^ENRICH_CACHE /proc/none: .*; set it to a writable folder$"):
        cache_directory()
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"^ENRICH_CACHE .*/file: "):
        cache_directory()


def test_no_place_anywhere_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.tempfile, "tempdir", "/proc/none/tmp")
    with pytest.raises(
        UsageError, match=r"^no folder for unfinished work: /proc/none/.cache/enrich, /proc/none/tmp/.*"
    ):
        cache_directory()


def test_a_full_disk_is_one_line_that_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as caught, disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "photo"))
    assert str(caught.value).startswith(f"{tmp_path}/photo: No space left on device; make room there")
    assert "ENRICH_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)
