"""What a user reads when something is wrong: one line, without secrets, the same on the other side of a process."""

import copy
import errno
import importlib
import logging
import pickle
import pkgutil
from collections.abc import Iterator

import polars as pl
import pytest

import enrich
from enrich.console import quiet_libraries
from enrich.errors import (
    EnrichError,
    ImageError,
    RunFailed,
    UsageError,
    first_line,
    located,
    one_line,
    redact,
    unforeseen,
)
from enrich.storage import Problem, StorageError, open_store
from enrich.storage.s3 import S3Store
from enrich.vocabulary import ErrorKind
from tests.testing.s3_server import S3Server


def imports_vllm(module: str) -> bool:
    """Whether the module imports vLLM, which may not be installed: by the convention that its name says so."""
    return module.rpartition(".")[2].startswith("vllm")


def kinds(cls: type[EnrichError] = EnrichError) -> Iterator[type[EnrichError]]:
    yield cls
    for below in cls.__subclasses__():
        yield from kinds(below)


def test_every_error_survives_pickling_and_copying_and_can_be_given_a_place() -> None:
    for module in pkgutil.walk_packages(enrich.__path__, "enrich."):
        if not imports_vllm(module.name):
            importlib.import_module(module.name)
    found = {cls for cls in kinds() if cls.__module__.startswith("enrich.")}
    assert {"StorageError", "ImageRefused", "DecodingFailed", "HeldBack"} <= {cls.__name__ for cls in found}
    for cls in found:
        first: tuple[object, ...] = ()
        if issubclass(cls, ImageError):
            first = (ErrorKind.ACCESS_DENIED,)
        elif issubclass(cls, StorageError):
            first = (Problem.ACCESS_DENIED,)
        error = cls(*first, "a b")
        for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), located(error, "node 1")):
            assert type(same) is cls
            assert str(same) in ("a b", "node 1: a b")
            assert same.exit_code == cls.exit_code
            assert same.__dict__ == error.__dict__
        assert str(error) == "a b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://user:pass@host:9000/x", "at http://host:9000/x"),
        ("at http://user:p/a@ss@host/x", "at http://host/x"),
        ("at 'https://token@host'", "at 'https://host'"),
        ("redis://:pw@head:6379", "redis://head:6379"),
        ("http://h/k?v=1&X-Amz-Signature=ab12&X-Amz-Credential=AK%2F1", "http://h/k?v=1&X-Amz-Signature=***&X-Amz-Credential=***"),
        ('"http://h/k?token=abc"', '"http://h/k?token=***"'),
        ("http://h/k?a=1&access_token=abc#x", "http://h/k?a=1&access_token=***#x"),
        ("http://h/cb#access_token=abc", "http://h/cb#access_token=***"),
        ("http://h/k?api_key=abc&sig=d", "http://h/k?api_key=***&sig=***"),
        ("http://host:9000/photo@2x.jpg", "http://host:9000/photo@2x.jpg"),
        ("s3://bucket/photos/a@b.jpg", "s3://bucket/photos/a@b.jpg"),
        ("/data//photo@2x.jpg and http://h/k?author=me", "/data//photo@2x.jpg and http://h/k?author=me"),
    ],
)  # fmt: skip
def test_messages_hold_no_secret_of_a_url(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert str(UsageError(text)) == shown
    assert str(StorageError(Problem.FAILED, text)) == shown


def test_a_message_is_one_line_that_any_terminal_can_show() -> None:
    message = str(RunFailed("a\n  b\r\nc\x1b[31m\u2028d \udcff  e"))
    assert message == "a b c [31m d \\udcff  e"
    assert one_line("two  blanks stay") == "two  blanks stay"
    assert str(RunFailed()) == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "/tmp/x: no space left on the disk; free some"),
        (OSError(errno.EROFS, "Read-only file system", "/tmp/x"), "/tmp/x: Read-only file system; check the disk"),
        (MemoryError(), "out of memory; lower in_flight"),
        (TypeError("a\nb"), "TypeError: a; set ENRICH_DEBUG=1"),
    ],
)
def test_an_error_that_is_not_ours_is_reported_in_our_words(error: Exception, message: str) -> None:
    assert str(unforeseen(error)).startswith(message)
    assert unforeseen(error).exit_code == 1


def test_a_torchvision_for_another_torch_is_named_whatever_it_stopped() -> None:
    try:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from error
    except ModuleNotFoundError as error:
        assert str(unforeseen(error)).startswith("torchvision does not match this torch; install")  # noqa: PT017


def test_what_a_library_lists_is_cut_short_and_no_secret_with_it() -> None:
    assert first_line(ValueError("no such model\nTraceback")) == "no such model"
    assert first_line(KeyError()) == "KeyError"
    listed = first_line(ValueError(f"choose one of {', '.join(['bert'] * 400)}"))
    assert (len(listed), listed[:20], listed[-6:]) == (506, "choose one of bert, ", " [...]")
    cut = first_line(ValueError(f"{'a' * 480} https://user:{'secret' * 9}@host/"))
    assert (cut[:482], "secret" in cut) == (f"{'a' * 480} h", False)


def test_what_libraries_log_is_redacted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    quiet_libraries()
    logging.getLogger("urllib3").warning("Retrying: http://user:pass@host/k?X-Amz-Signature=ab")
    assert capsys.readouterr().err == "urllib3: Retrying: http://host/k?X-Amz-Signature=***\n"


def test_a_password_in_the_endpoint_is_neither_used_nor_shown(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = s3_server.endpoint.removeprefix("http://")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://ann:hunter2@{host}")
    store = open_store(f"{s3_bucket}/output")
    store.put("a", b"1")
    assert store.get("a")[0] == b"1"
    assert isinstance(store, S3Store)
    assert store.client.meta.endpoint_url == s3_server.endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ann:hunter2@127.0.0.1:9")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    with pytest.raises(UsageError) as caught:
        open_store(f"{s3_bucket}/output")
    chain: BaseException | None = caught.value
    while chain:  # what a flow's log shows of an error
        assert "hunter2" not in f"{chain} {chain!r} {chain.__dict__}"
        chain = chain.__cause__ or chain.__context__
    assert "hunter2" not in caplog.text
    assert "http://127.0.0.1:9 cannot be reached" in str(caught.value)


@pytest.mark.parametrize("message", ["parquet: File out of specification: x", "parquet error: Error { location: x }"])
def test_a_damaged_parquet_file_that_polars_meets_is_reported_as_one(message: str) -> None:
    error = unforeseen(pl.exceptions.ComputeError(message))
    assert str(error).startswith(f"a Parquet file is damaged ({message}")
    assert "report it" not in str(error)


def test_a_panic_of_polars_reader_is_reported_as_a_damaged_file() -> None:
    told = 'called `Result::unwrap()` on an `Err` value: JoinError::Panic(Id(5), "OutOfSpec(\\"Thrift out\\")")'
    assert str(unforeseen(pl.exceptions.PanicException(told))).startswith("a Parquet file is damaged (called `Result")
