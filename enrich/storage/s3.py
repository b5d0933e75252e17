"""A prefix of an S3 bucket, through boto3."""

import logging
import mimetypes
import random
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import boto3.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from enrich.errors import UsageError
from enrich.schema import ErrorKind
from enrich.storage.local import os_errors
from enrich.storage.store import OWN_PREFIX, ObjectInfo, StorageError, check_size

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    connect_timeout=10,  # seconds
    read_timeout=60,
    max_pool_connections=64,
)
_ONE_THREAD = TransferConfig(use_threads=False)  # trees are moved by threads of their own
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError, SSOError)
_BROKEN_BODY = (ResponseStreamingError, IncompleteReadError, ReadTimeoutError, FlexibleChecksumError)
_HOW_TO_SIGN_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached"


class S3Store:
    """Objects below s3://bucket/prefix."""

    def __init__(self, client: "S3Client", bucket: str, prefix: str) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client, self._bucket = client, bucket
        self._base = f"{prefix}/" if prefix else ""

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.strip("/")
        below = self._base + (f"{folder}/" if folder else "")  # "/" at the end: photos must not list photos-old
        with _s3_errors(f"s3://{self._bucket}/{below}"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=below):
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._base)
                    is_marker = item["Size"] == 0 and (not key or key.endswith("/"))  # consoles make folders so
                    if not is_marker and f"/{OWN_PREFIX}" not in f"/{key}":
                        yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'))

    def head(self, key: str) -> ObjectInfo | None:
        with _s3_errors(self.uri_of(key)):
            try:
                found = self._client.head_object(Bucket=self._bucket, Key=self._base + key)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
        return ObjectInfo(key, found["ContentLength"], found["ETag"].strip('"'))

    def get(self, key: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        uri = self.uri_of(key)
        for attempt in range(_ATTEMPTS):
            with _s3_errors(uri):
                response = self._client.get_object(Bucket=self._bucket, Key=self._base + key)
            with closing(response["Body"]) as body:  # entering the body itself would skip its checksum
                check_size(uri, response["ContentLength"], max_bytes)
                try:
                    return body.read(), response["ETag"].strip('"')
                except _BROKEN_BODY as error:  # boto3 does not retry these
                    _pause(attempt, uri, error)
        raise _broken(uri)

    def create(self, key: str, data: bytes) -> bool:
        return self._put_if(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, if_match: str | None) -> bool:
        return self.create(key, data) if if_match is None else self._put_if(key, data, IfMatch=f'"{if_match}"')

    def put(self, key: str, data: bytes) -> None:
        with _s3_errors(self.uri_of(key)):
            media_type = mimetypes.guess_type(key)[0] or "application/octet-stream"  # a browser shows report.html
            self._client.put_object(Bucket=self._bucket, Key=self._base + key, Body=data, ContentType=media_type)

    def delete(self, key: str) -> None:
        with _s3_errors(self.uri_of(key)):
            self._client.delete_object(Bucket=self._bucket, Key=self._base + key)

    def check_conditional_writes(self) -> None:
        key = f"{OWN_PREFIX}probe-{uuid4().hex}"
        try:
            outcome = [self.create(key, b"1"), self.create(key, b"2")]
            _, etag = self.get(key)
            outcome += [self.replace(key, b"3", "0" * 32), self.replace(key, b"3", etag)]
        except StorageError as error:
            raise UsageError(f"{error}; publishing needs s3:PutObject and s3:GetObject there") from error
        finally:
            with suppress(StorageError):  # without s3:DeleteObject one byte stays that no listing shows
                self.delete(key)
        if outcome != [True, False, False, True]:
            raise UsageError(
                f"{_endpoint(self._client)}: ignores conditional writes, so two runs could overwrite each other; "
                "use an endpoint that honours If-None-Match and If-Match, as AWS S3 does, or a local path"
            )

    def download(self, info: ObjectInfo, into: Path) -> ObjectInfo:
        """Writes one object to the file `into`/key, a piece at a time, and returns `info`."""
        uri, path = self.uri_of(info.key), into / info.key
        with os_errors(str(path)), _s3_errors(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(_ATTEMPTS):
                try:
                    self._client.download_file(self._bucket, self._base + info.key, str(path), Config=_ONE_THREAD)
                    return info
                except _BROKEN_BODY as error:
                    _pause(attempt, uri, error)
        raise _broken(uri)

    def upload(self, key: str, path: Path) -> None:
        """Writes a local file to `key`, in parts where it is large."""
        with os_errors(str(path)), _s3_errors(self.uri_of(key)):
            self._client.upload_file(str(path), self._bucket, self._base + key, Config=_ONE_THREAD)

    def _put_if(self, key: str, data: bytes, **condition: Any) -> bool:
        uri = self.uri_of(key)
        with _s3_errors(uri):
            for attempt in range(_ATTEMPTS):
                try:
                    self._client.put_object(Bucket=self._bucket, Key=self._base + key, Body=data, **condition)
                    return True
                except ClientError as error:
                    if _status(error) == 412 or (_code(error) == "NoSuchKey" and "IfMatch" in condition):
                        return False
                    if _status(error) != 409:  # 409: another conditional write is under way; neither has won yet
                        raise
                    _pause(attempt, uri, error)
        raise StorageError(ErrorKind.DOWNLOAD_FAILED, f"{uri}: {_ATTEMPTS} writes met another writer's; run again")


def open_s3(uri: str) -> S3Store:
    """The store at an s3:// URI, its bucket found and listed once. Raises UsageError as `open_store` says."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UsageError(f"{uri}: names no bucket; write s3://bucket/prefix")
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
        raise UsageError(f"{uri}: {bucket!r} is no bucket name; it needs 3 or more letters, digits, dots or hyphens")
    try:
        client = boto3.session.Session().client("s3", config=_CONFIG)
    except ValueError as error:  # whose text repeats the endpoint, and a password in it
        raise UsageError(f"{uri}: AWS_ENDPOINT_URL is no URL; write https://host") from error
    except BotoCoreError as error:  # an unknown profile, a broken configuration file
        raise UsageError(f"{uri}: S3 is not set up: {_one_line(error)}; check the AWS_* variables") from error
    store = S3Store(client, bucket, prefix.rstrip("/"))
    try:
        client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix.rstrip('/')}/".lstrip("/"), MaxKeys=1)
    except _NO_CREDENTIALS as error:
        raise UsageError(f"{uri}: no S3 credentials found ({type(error).__name__}); {_HOW_TO_SIGN_IN}") from error
    except (HTTPClientError, BotoConnectionError) as error:
        where = _endpoint(client)
        raise UsageError(f"{uri}: {where} cannot be reached; check AWS_ENDPOINT_URL and the network") from error
    except ClientError as error:
        if _code(error) == "NoSuchBucket":
            raise UsageError(f"{uri}: there is no bucket {bucket}; create it or check the name") from error
        if _status(error) in (401, 403):
            reason = _code(error)
            raise UsageError(f"{uri}: access denied ({reason}); grant s3:ListBucket or {_HOW_TO_SIGN_IN}") from error
        raise UsageError(f"{uri}: {_one_line(error)}; check the bucket and AWS_ENDPOINT_URL") from error
    except BotoCoreError as error:
        raise UsageError(f"{uri}: {_one_line(error)}; check the AWS_* variables") from error
    return store


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turns what boto3 raises into StorageError."""
    try:
        yield
    except ClientError as error:
        if _code(error) in ("NoSuchKey", "NoSuchBucket") or _status(error) == 404:
            kind, advice = ErrorKind.NOT_FOUND, "check that it is still there"
        elif _status(error) in (401, 403):
            kind, advice = ErrorKind.ACCESS_DENIED, "check the credentials and the bucket's policy"
        else:
            kind, advice = ErrorKind.DOWNLOAD_FAILED, "run again"
        raise StorageError(kind, f"{uri}: {_one_line(error)}; {advice}") from error
    except _NO_CREDENTIALS as error:
        message = f"{uri}: no S3 credentials ({type(error).__name__}); {_HOW_TO_SIGN_IN}"
        raise StorageError(ErrorKind.ACCESS_DENIED, message) from error
    except (BotoCoreError, Boto3Error) as error:
        message = f"{uri}: {type(error).__name__}; check the network and run again"
        raise StorageError(ErrorKind.DOWNLOAD_FAILED, message) from error


def _pause(attempt: int, uri: str, error: Exception) -> None:
    """Exponential back-off with full jitter: at most 0.2 s after the first attempt, 3.2 s after the fifth."""
    logger.info("%s: %s in attempt %d of %d", uri, type(error).__name__, attempt + 1, _ATTEMPTS)
    time.sleep(random.uniform(0, 0.2 * 2**attempt))


def _broken(uri: str) -> StorageError:
    return StorageError(ErrorKind.DOWNLOAD_FAILED, f"{uri}: its bytes came broken {_ATTEMPTS} times; run again")


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _endpoint(client: "S3Client") -> str:
    """The endpoint without a user name or password that its URL may carry."""
    parts = urlsplit(client.meta.endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
