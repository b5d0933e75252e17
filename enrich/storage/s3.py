"""A prefix of an S3 bucket: obstore reads photos, boto3 does everything else."""

import mimetypes
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from boto3.session import Session
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.retries.quota import RetryQuota

from enrich.errors import UsageError
from enrich.settings.storage import PLAIN_S3, S3Settings
from enrich.storage import lock, multipart
from enrich.storage.bulk import BulkReader, agrees, is_md5
from enrich.storage.client import (
    ATTEMPTS,
    BROKEN_BODY,
    code_of,
    endpoint_of,
    make_client,
    one_shot_client,
    opening,
    pause,
    s3_errors,
    status_of,
)
from enrich.storage.listing import list_objects
from enrich.storage.local import os_errors
from enrich.storage.store import OWN_PREFIX, Body, ObjectInfo, Problem, StorageError, check_size

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

FOREIGN = timedelta(days=1)  # an upload that is not complete by then never will be
_PROBE = f"{OWN_PREFIX}probe-"
_WRITTEN = re.compile(r"products\.parquet|(?:runs|history|reviews)/.*|\.enrich-.*", re.DOTALL)  # keys of an output
_PROBES = 5  # a lost response makes a good endpoint look bad; a bad one never looks good
# Retries that boto3 does not make itself; ten successes allow one more. Without a limit, an endpoint that fails
# permanently would get five requests for each of thousands of objects.
RETRIES = 200
ONE_PUT_BYTES = 1 << 30  # larger files are uploaded in parts: a lost connection repeats a whole request


class S3Store:
    """Objects below s3://bucket/prefix."""

    def __init__(self, session: Session, client: "S3Client", bucket: str, prefix: str, settings: S3Settings) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.client, self.bucket, self.base = client, bucket, f"{prefix}/" if prefix else ""
        self._bulk: BulkReader | None = None
        self.session, self._settings, self._quota = session, settings, RetryQuota(10 * RETRIES)
        self._one_shot: S3Client | None = None
        self.reading: dict[str, Any] = {"RequestPayer": "requester"} if settings.requester_pays else {}
        self._writing: dict[str, Any] = {
            **({"ServerSideEncryption": settings.encryption} if settings.encryption else {}),
            **({"SSEKMSKeyId": settings.kms_key_id} if settings.kms_key_id else {}),
        }
        self._parts_lock = Lock()
        self._parts_keep_conditions: bool | None = None  # not known yet

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.strip("/")
        below = self.base + (f"{folder}/" if folder else "")  # "/" at the end: photos must not list photos-old
        with s3_errors(f"s3://{self.bucket}/{below}"):
            for page in list_objects(self.client, self.bucket, below, **self.reading):
                for item in page:
                    key = item["Key"].removeprefix(self.base)
                    is_marker = item["Size"] == 0 and (not key or key.endswith("/"))  # consoles create folders so
                    if not is_marker and f"/{OWN_PREFIX}" not in f"/{key}":
                        yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'))

    def head(self, key: str) -> ObjectInfo | None:
        with s3_errors(self.uri_of(key)):
            try:
                found = self.client.head_object(Bucket=self.bucket, Key=self.base + key, **self.reading)
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
        return ObjectInfo(key, found["ContentLength"], found["ETag"].strip('"'))

    def get(self, key: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        bulk = self._bulk  # another thread may set it to None
        return (bulk and bulk.get(self.base + key, self.uri_of(key), max_bytes)) or self._get(key, max_bytes)

    def _get(self, key: str, max_bytes: int | None, **part: Any) -> tuple[bytes, str]:
        """Read with boto3, which verifies the checksum that S3 sends. Without one, a whole object must match its etag.

        `part` is `Range` and `IfMatch` of get_object, for a part of one state of the object.
        """
        uri = self.uri_of(key)
        for attempt in range(ATTEMPTS):
            with s3_errors(uri):
                response = self.client.get_object(Bucket=self.bucket, Key=self.base + key, **self.reading, **part)
            with closing(response["Body"]) as body:  # entering the body itself would skip its checksum
                check_size(uri, response["ContentLength"], max_bytes)
                etag = response["ETag"].strip('"')
                try:
                    data = body.read()
                except BROKEN_BODY as error:  # boto3 does not retry these
                    self._try_again(attempt, uri, error)
                    continue
            encrypted = "KMS" in str(response.get("ServerSideEncryption", "")).upper()
            if encrypted or "SSECustomerAlgorithm" in response:
                self._bulk = None  # the etag is not an MD5, so obstore's reads could not be verified
            elif not part and is_md5(etag) and not agrees(data, etag):
                self._try_again(attempt, uri, ValueError("the bytes do not match their etag"))
                continue
            self._quota.release(1)
            return data, etag
        raise _broken(uri)

    def download(self, key: str, path: Path) -> ObjectInfo:
        info = self.head(key)
        if info is None:
            raise StorageError(Problem.NOT_FOUND, f"{self.uri_of(key)}: no such object; check that it is still there")
        with os_errors(str(path)), open(path, "wb") as file:
            if info.size <= multipart.PART_BYTES:
                data, etag = self._get(key, None)
                file.write(data)
                return ObjectInfo(key, len(data), etag)
            for start in range(0, info.size, multipart.PART_BYTES):
                end = min(start + multipart.PART_BYTES, info.size)
                data, _ = self._get(key, None, IfMatch=f'"{info.etag}"', Range=f"bytes={start}-{end - 1}")
                if len(data) != end - start:
                    raise _broken(self.uri_of(key))
                file.write(data)
        return info

    def create(self, key: str, data: Body) -> bool:
        return self._put_if(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: Body, if_match: str | None) -> bool:
        if if_match is None:
            return self.create(key, data)
        if not self._settings.lock:
            return self._put_if(key, data, IfMatch=f'"{if_match}"')
        with lock.locked(self) as until:
            current = self.head(key)
            if current is None or current.etag != if_match:
                return False
            if monotonic() > until - lock.LEASE_SECONDS / 2:
                return False  # so late that another writer may hold the lock before the write ends
            return self._put_once(key, data)

    def put(self, key: str, data: Body) -> None:
        media_type = mimetypes.guess_type(key)[0] or "application/octet-stream"  # a browser shows report.html
        with s3_errors(self.uri_of(key)):
            self._write(key, data, {}, ContentType=media_type)

    def delete(self, key: str) -> None:
        with s3_errors(self.uri_of(key)):
            self.client.delete_object(Bucket=self.bucket, Key=self.base + key)

    def ages(self, prefix: str) -> dict[str, float]:
        """Up to 1,000 keys that begin with `prefix`, with their ages in seconds by the server's clock."""
        with s3_errors(self.uri):
            page = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.base}{prefix}")
        now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
        return {
            item["Key"].removeprefix(self.base): (now - item["LastModified"]).total_seconds()
            for item in page.get("Contents", [])
        }

    def check_conditional_writes(self) -> None:
        for _ in range(_PROBES):
            created, replaced = self._probe()
            if created == (True, False) and replaced == (False, True):
                if self._settings.lock and not lock.excludes(self):
                    break
                return
        if created != (True, False):
            problem = (
                "ignores conditional writes, so two runs could overwrite each other; "
                "use an endpoint that honours If-None-Match and If-Match, as AWS S3 does, or a local path"
            )
        elif self._settings.lock:
            problem = (
                f"its lock object `{lock.NAME}...` lets two in at once, so they could overwrite each other; "
                "use an endpoint that honours If-Match, as AWS S3 does, or a local path"
            )
        else:
            problem = (
                "ignores conditional writes with If-Match, so two runs could overwrite each other; "
                "use an endpoint that honours it, as AWS S3 does, a local path, or the setting `s3: {lock: true}`"
            )
        raise UsageError(f"{endpoint_of(self.client)}: {problem}")

    def remove_abandoned(self) -> int:
        removed, before = 0, datetime.now(UTC) - FOREIGN
        with suppress(ClientError, BotoCoreError):  # without permission, the bucket's lifecycle rule has to remove them
            place: Any = {"Bucket": self.bucket, "Prefix": f"{self.base}{_PROBE}"}
            for page in self.client.get_paginator("list_objects_v2").paginate(**place):
                for found in page.get("Contents", []):
                    if found["LastModified"] < before:
                        self.client.delete_object(Bucket=self.bucket, Key=found["Key"])
                        removed += 1
        with suppress(ClientError, BotoCoreError):
            place = {"Bucket": self.bucket, "Prefix": self.base}
            for uploads in self.client.get_paginator("list_multipart_uploads").paginate(**place):
                for upload in uploads.get("Uploads", []):
                    key = upload["Key"]
                    if upload["Initiated"] < before and _WRITTEN.fullmatch(key.removeprefix(self.base)):
                        self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload["UploadId"])
                        removed += 1
        return removed

    def _probe(self) -> tuple[tuple[bool, bool], tuple[bool, bool]]:
        """Results of creating an object twice, and of replacing it with a wrong and with the right etag."""
        key = f"{_PROBE}{uuid4().hex}"
        try:
            created = self.create(key, b"1"), self.create(key, b"2")
            etag = self.get(key)[1]
            return created, (self.replace(key, b"3", "0" * 32), self.replace(key, b"3", etag))
        except StorageError as error:
            raise UsageError(f"{error}; publishing needs s3:PutObject and s3:GetObject there") from error
        finally:
            with suppress(StorageError):  # without s3:DeleteObject one byte stays that no listing shows
                self.delete(key)

    def _put_if(self, key: str, data: Body, **condition: Any) -> bool:
        uri = self.uri_of(key)
        with s3_errors(uri):
            for attempt in range(ATTEMPTS):
                try:
                    self._write(key, data, condition)
                    return True
                except ClientError as error:
                    # NoSuchUpload: the response to a first completion was lost. The caller checks whose object it is.
                    if status_of(error) == 412 or code_of(error) == "NoSuchUpload":
                        return False
                    if code_of(error) == "NoSuchKey" and "IfMatch" in condition:
                        return False
                    if status_of(error) != 409:  # 409: another conditional write is in progress; neither has won yet
                        raise
                    pause(attempt, uri, error)
        raise StorageError(Problem.FAILED, f"{uri}: {ATTEMPTS} writes collided with other writers; run again")

    def _put_once(self, key: str, data: Body) -> bool:
        """Write with one request that ends well before the lease: it must not arrive when another holds the lock.

        Returns False if the outcome is unknown; the caller then reads the object.
        """
        client = self._one_shot or one_shot_client(self.session, self.client.meta.endpoint_url, lock.LEASE_SECONDS / 4)
        self._one_shot = client
        with BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as body:
            try:
                client.put_object(Bucket=self.bucket, Key=self.base + key, Body=body, **self._writing)
            except (HTTPClientError, BotoConnectionError):
                return False
            except ClientError as error:
                if status_of(error) < 500:
                    with s3_errors(self.uri_of(key)):
                        raise
                return False
        return True

    def _write(self, key: str, data: Body, condition: dict[str, Any], **options: Any) -> None:
        place: dict[str, Any] = {"Bucket": self.bucket, "Key": self.base + key}
        options = {**options, **self._writing}
        if isinstance(data, bytes):
            self.client.put_object(**place, Body=data, **condition, **options)
        elif data.stat().st_size <= ONE_PUT_BYTES or (condition and not self._completes_on_condition()):
            with open(data, "rb") as file:
                self.client.put_object(**place, Body=file, **condition, **options)
        else:
            multipart.upload(self.client, place, data, condition, options)

    def _completes_on_condition(self) -> bool:
        """Whether the endpoint checks conditions when a multipart upload is completed. Tried once for each store."""
        with self._parts_lock:
            if self._parts_keep_conditions is None:
                place = {"Bucket": self.bucket, "Key": f"{self.base}{_PROBE}{uuid4().hex}"}
                self._parts_keep_conditions = multipart.keeps_conditions(self.client, place)
            return self._parts_keep_conditions

    def _try_again(self, attempt: int, uri: str, error: Exception) -> None:
        if not self._quota.acquire(10):
            raise StorageError(
                Problem.FAILED,
                f"{uri}: its bytes arrived damaged, too often to retry; check the network",
            ) from error
        pause(attempt, uri, error)


def open_s3(uri: str, settings: S3Settings = PLAIN_S3) -> S3Store:
    """The store at an s3:// URI, its bucket found and listed once. Raises UsageError as `open_store` says."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UsageError(f"{uri}: names no bucket; write s3://bucket/prefix")
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
        raise UsageError(f"{uri}: {bucket!r} is not a bucket name; it needs 3 or more letters, digits, dots or hyphens")
    for part in prefix.split("/"):
        if part in (".", ".."):
            raise UsageError(f"{uri}: endpoints differ in what `{part}` means; write the path without it")
    session, client = make_client(uri)
    store = S3Store(session, client, bucket, prefix.rstrip("/"), settings)
    with opening(uri, bucket, client):
        client.list_objects_v2(Bucket=bucket, Prefix=store.base, MaxKeys=1, **store.reading)
    store._bulk = BulkReader(session, client, bucket, settings)  # needs credentials
    return store


def _broken(uri: str) -> StorageError:
    return StorageError(Problem.FAILED, f"{uri}: its bytes arrived damaged {ATTEMPTS} times; run again")
