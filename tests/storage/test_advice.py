"""Errors of S3, of sessions and of certificates: each says in one line what to do about it."""

from collections.abc import Iterable
from typing import Any, Literal

import boto3.session
import pytest
from botocore import exceptions

from enrich.errors import UsageError
from enrich.storage import Problem, StorageError, open_store
from enrich.storage.advice import advice_on
from tests.testing.s3_server import S3Server, refuse

DENIED, FAILED, GONE = Problem.ACCESS_DENIED, Problem.FAILED, Problem.NOT_FOUND


def _refused(uri: str) -> str:
    with pytest.raises(UsageError) as caught:
        open_store(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("storage", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_photo_is_said_to_be_archived(s3_bucket: str, storage: Literal["GLACIER", "DEEP_ARCHIVE"]) -> None:
    client = boto3.session.Session().client("s3")
    client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key="cold.jpg", Body=b"photo", StorageClass=storage)
    with pytest.raises(
        StorageError, match=r"/cold.jpg: .*; archived; restore it \(aws s3api restore-object\)"
    ) as caught:
        open_store(s3_bucket).get("cold.jpg")
    assert caught.value.problem is DENIED  # which is retried: a restored object has the same etag


@pytest.mark.parametrize(
    ("status", "code", "kind", "advice"),
    [
        ("400 Bad Request", "ExpiredToken", DENIED, "aws sso login"),
        ("403 Forbidden", "InvalidAccessKeyId", DENIED, "AWS_ACCESS_KEY_ID"),
        ("403 Forbidden", "SignatureDoesNotMatch", DENIED, "AWS_SECRET_ACCESS_KEY"),
        ("400 Bad Request", "InvalidToken", DENIED, "AWS_SESSION_TOKEN"),
        ("403 Forbidden", "RequestTimeTooSkewed", FAILED, "clock is wrong"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", FAILED, "AWS_DEFAULT_REGION"),
        ("400 Bad Request", "KMS.DisabledException", DENIED, "kms:Decrypt"),
        ("400 Bad Request", "KMS.NotFoundException", DENIED, "kms:Decrypt"),
        ("403 Forbidden", "AllAccessDisabled", DENIED, "ask its owner"),
        ("404 Not Found", "NoSuchBucket", GONE, "no"),
    ],
)
def test_what_s3_refuses_says_what_to_do(
    s3_bucket: str, s3_server: S3Server, status: str, code: str, kind: Problem, advice: str
) -> None:
    store = open_store(s3_bucket)
    s3_server.fault = refuse(status, code)
    with pytest.raises(StorageError) as caught:
        store.get("a")
    assert caught.value.problem is kind
    assert advice in str(caught.value)
    assert "grant s3:ListBucket" not in _refused(s3_bucket)
    assert advice in _refused(s3_bucket)


def test_a_key_policy_that_denies_is_told_from_the_buckets(s3_bucket: str, s3_server: S3Server) -> None:
    store = open_store(s3_bucket)
    s3_server.fault = refuse("403 Forbidden", "AccessDenied", "not authorized to perform: kms:Decrypt")
    with pytest.raises(StorageError, match="grant kms:Decrypt and kms:GenerateDataKey"):
        store.get("a")


ERRORS: list[tuple[Exception, Problem, str]] = [
    (exceptions.UnauthorizedSSOTokenError(), DENIED, "aws sso login"),
    (exceptions.SSOTokenLoadError(error_msg="none"), DENIED, "aws sso login"),
    (exceptions.TokenRetrievalError(provider="sso", error_msg="expired"), DENIED, "aws sso login"),
    (exceptions.LoginRefreshRequired(), DENIED, "run aws login"),
    (exceptions.PartialCredentialsError(provider="env", cred_var="secret"), DENIED, "half of a key pair"),
    (exceptions.NoCredentialsError(), DENIED, "AWS_PROFILE"),
    (exceptions.CredentialRetrievalError(provider="process", error_msg="1"), DENIED, "could not be obtained"),
    (
        exceptions.SSLError(endpoint_url="https://user:secret@s3", error=OSError("mismatch")),
        FAILED,
        "AWS_CA_BUNDLE",
    ),
    (exceptions.ProxyConnectionError(proxy_url="http://user:secret@proxy"), FAILED, "HTTPS_PROXY"),
]


@pytest.mark.parametrize(("error", "kind", "advice"), ERRORS, ids=[type(error).__name__ for error, *_ in ERRORS])
def test_what_botocore_raises_says_what_to_do(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: Problem, advice: str
) -> None:
    store: Any = open_store(s3_bucket)

    def fail(*_: Any, **__: Any) -> Iterable[Any]:
        raise error

    monkeypatch.setattr(store, "_bulk", None)
    monkeypatch.setattr(store.client, "_make_api_call", fail)
    with pytest.raises(StorageError) as caught:
        store.get("a")
    assert caught.value.problem is kind
    assert advice in str(caught.value)
    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", fail)
    assert advice in _refused(s3_bucket)
    assert "secret@" not in str(caught.value) + _refused(s3_bucket)


@pytest.mark.parametrize("code", ["PermanentRedirect", "301"])
def test_a_bucket_in_another_region_names_the_variable_of_the_region(code: str) -> None:
    said: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 301}}
    kind, advice = advice_on(exceptions.ClientError(said, "HeadObject")) or (None, "")
    assert (kind, "AWS_DEFAULT_REGION" in advice) == (FAILED, True)
