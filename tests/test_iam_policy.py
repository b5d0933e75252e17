"""deployments/iam-policy.json before an S3 server that enforces it: each job can do its work, and nothing else."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from PIL import Image

from enrich.errors import EnrichError
from enrich.pipeline.catalogs import fetch_photos
from enrich.pipeline.tidying import tidy
from enrich.settings.catalog import FetchSettings
from enrich.settings.run import RunSettings
from enrich.settings.storage import S3Settings
from enrich.storage import open_store, read_tree, write_tree
from enrich.storage.tree import local_tree
from tests.testing.badweb import reply, serve
from tests.testing.photo_files import encoded
from tests.testing.rows import enrich_night, finish, listing, make_run
from tests.testing.s3_server import Environ, S3Server, WsgiApp, refuse

POLICY = json.loads((Path(__file__).parents[1] / "deployments" / "iam-policy.json").read_text())
PHOTOS, ADAPTERS = "s3://policy-photos/photos", "s3://policy-adapters/adapters"
CATALOGS, OUTPUT = "s3://policy-catalogs/catalogs", "s3://policy-output/enriched"
_ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": "s3:PutObject"}


def _allowed(sids: tuple[str, ...], action: str, resource: str, prefix: str | None) -> bool:
    """Whether the statements of a role (those whose Sid begins with one of `sids`) allow a request."""
    for statement in POLICY["Statement"]:
        actions, resources = (
            found if isinstance(found, list) else [found] for found in (statement["Action"], statement["Resource"])
        )
        named = [arn.split(":::")[1].partition("/") for arn in resources]
        patterns = [f"policy-{bucket.lower()}{slash}{rest}" for bucket, slash, rest in named]
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        if (
            statement["Sid"].startswith(sids)
            and action in actions
            and any(fnmatchcase(resource, pattern) for pattern in patterns)
            and (prefixes is None or any(fnmatchcase(prefix or "", pattern) for pattern in prefixes))
        ):
            return True
    return False


@pytest.fixture
def role(s3_server: S3Server, _s3_admin: Any) -> Iterator[Callable[..., Any]]:
    """A context in which the server obeys a role only."""
    for name in ("photos", "adapters", "catalogs", "output"):
        _s3_admin.create_bucket(Bucket=f"policy-{name}")

    @contextmanager
    def acting(*sids: str) -> Iterator[None]:
        def fault(application: WsgiApp, environ: Environ, start_response: Any) -> Iterable[bytes]:
            bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
            query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            method = environ["REQUEST_METHOD"]
            action = (
                "s3:ListBucket" if not key and method in ("GET", "HEAD") else _ACTIONS.get(method, "s3:DeleteObject")
            )
            if not key and "uploads" in query:
                action = "s3:ListBucketMultipartUploads"
            if method == "DELETE" and "uploadId" in query:
                action = "s3:AbortMultipartUpload"
            resource = f"{bucket}/{key}" if key else bucket
            if _allowed(sids, action, resource, query.get("prefix", [None])[0]):
                return application(environ, start_response)
            denied = refuse("403 Forbidden", "AccessDenied", f"{action} {resource}")
            return denied(application, environ, start_response)

        s3_server.fault = fault
        try:
            yield
        finally:
            s3_server.fault = None

    yield acting
    for name in ("photos", "adapters", "catalogs", "output"):
        for item in _s3_admin.list_objects_v2(Bucket=f"policy-{name}").get("Contents", []):
            _s3_admin.delete_object(Bucket=f"policy-{name}", Key=item["Key"])
        _s3_admin.delete_bucket(Bucket=f"policy-{name}")


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    for name in ("adapter_config.json", "train.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_run_reads_photos_and_adapters_and_writes_its_output(role: Any, tmp_path: Path) -> None:
    write_tree(_adapter(tmp_path / "made"), f"{ADAPTERS}/one", last="train.json")
    open_store(PHOTOS).put("a.jpg", b"photo")
    with role("Runs"):
        with local_tree(f"{ADAPTERS}/one") as folder:
            assert (folder / "train.json").is_file()
        assert open_store(f"{ADAPTERS}/none").head("train.json") is None  # how nightly looks for a standing adapter
        assert [info.key for info in open_store(PHOTOS).list()] == ["a.jpg"]
        assert open_store(PHOTOS).get("a.jpg")[0] == b"photo"
        for settings in (S3Settings(), S3Settings(lock=True), S3Settings(requester_pays=True)):
            open_store(OUTPUT, s3=settings).check_conditional_writes()
        finish(open_store(OUTPUT), enrich_night(open_store(OUTPUT), make_run(), listing("a.jpg", "b.jpg")), 0)
        assert open_store(OUTPUT).head("products.parquet") is not None


def test_training_reads_catalogs_and_replaces_adapters(role: Any, tmp_path: Path) -> None:
    open_store(f"{CATALOGS}/spring").put("catalog.csv", b"a\n")
    made = _adapter(tmp_path / "made")
    with role("Training", "RunsListAdapters", "RunsReadAdapters"):
        assert read_tree(f"{CATALOGS}/spring", tmp_path / "read").joinpath("catalog.csv").is_file()
        for _ in range(2):
            write_tree(made, f"{ADAPTERS}/one", last="train.json")


def test_people_fetch_catalogs(role: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path / "cache"))
    with serve() as web, role("PeopleWriteCatalogs", "TrainingListsCatalogs", "TrainingReadsCatalogs"):
        web.answers["/a.png"] = reply(200, encoded(Image.new("RGB", (20, 20), "teal")))
        (tmp_path / "source.csv").write_text(f"product_code,imageurl\n1,{web.url}/a.png\n")
        for _ in range(2):
            fetch_photos(str(tmp_path / "source.csv"), f"{CATALOGS}/new", FetchSettings(allow_private=True))


def test_tidy_deletes_shards_and_a_run_may_not(role: Any) -> None:
    finish(open_store(OUTPUT), enrich_night(open_store(OUTPUT), make_run(), listing(*"abcd")), 0)
    with role("RunsListOutput", "RunsWriteOutput"):
        assert tidy(OUTPUT, RunSettings(), grace=timedelta(0), keep=None).packed
    with role("Runs"), pytest.raises(EnrichError, match="AccessDenied"):
        tidy(OUTPUT, RunSettings(), grace=timedelta(0), keep=None)
    with role("RunsListOutput", "RunsWriteOutput", "Tidy"):
        assert tidy(OUTPUT, RunSettings(), grace=timedelta(0), keep=None).deleted


@pytest.mark.parametrize(
    "what",
    [
        lambda: open_store("s3://policy-photos/secret"),
        lambda: open_store(PHOTOS).put("b.jpg", b"x"),
        lambda: open_store(PHOTOS).delete("a.jpg"),
        lambda: open_store(ADAPTERS).put("one/train.json", b"x"),
        lambda: open_store(ADAPTERS).delete("one/train.json"),
        lambda: open_store("s3://policy-adapters/other").get("a"),
        lambda: open_store(CATALOGS),
        lambda: open_store(OUTPUT).delete("history/a.parquet"),
        lambda: open_store("s3://policy-output/other").put("a", b"x"),
    ],
)
def test_a_run_may_do_nothing_else(role: Any, what: Callable[[], object]) -> None:
    with role("Runs"), pytest.raises(EnrichError, match=r"AccessDenied|access denied"):
        what()
