"""Fast reads of many small objects: obstore, a Rust client, takes a quarter of boto3's CPU time for each
(benchmarks/download/README.md). It does not verify checksums and cannot represent every key. What it cannot read or
verify, boto3 reads.
"""

import hashlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3.session
from botocore.exceptions import BotoCoreError

from enrich.settings.storage import S3Settings
from enrich.storage.store import check_size, is_relative

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_MD5 = re.compile(r"[0-9a-f]{32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REFRESH = timedelta(minutes=5)  # how long obstore keeps credentials; boto3 renews them 10 minutes before they expire
_RETRIES: Any = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(seconds=90),
}


class BulkReader:
    """Whole objects of one bucket, read with a boto3 client's endpoint, region and credentials, and renewed with them.

    Safe to use from several threads.
    """

    def __init__(self, session: boto3.session.Session, client: "S3Client", bucket: str, settings: S3Settings) -> None:
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        endpoint = str(client.meta.endpoint_url)
        amazon = re.search(r"//s3[.-][^/]*amazonaws\.", endpoint) is not None
        config: Any = {
            "region": client.meta.region_name or "us-east-1",
            **({"virtual_hosted_style_request": True} if amazon else {"endpoint": endpoint}),
            **({"request_payer": True} if settings.requester_pays else {}),
        }
        http: Any = {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": "10 seconds",
            "timeout": "60 seconds",
        }
        credentials = Boto3CredentialProvider(session, ttl=_REFRESH)
        self._store = S3Store(
            bucket, config=config, client_options=http, retry_config=_RETRIES, credential_provider=credentials
        )

    def get(self, key: str, uri: str, max_bytes: int | None) -> tuple[bytes, str] | None:
        """Bytes that match their etag, and the etag. None if they cannot be verified: then boto3 must read them.

        Raises:
            StorageError: TOO_LARGE, before the body is read.
        """
        import obstore
        from obstore.exceptions import BaseError

        if not is_relative(key) or _CONTROL.search(key):
            return None
        try:
            found = obstore.get(self._store, key)
            etag = (found.meta["e_tag"] or "").strip('"')
            if not is_md5(etag):
                return None
            check_size(uri, found.meta["size"], max_bytes)
            data = bytes(found.bytes())
        except (BaseError, BotoCoreError, FileNotFoundError, PermissionError, ValueError, OSError):
            return None  # boto3 finds and reports the error
        return (data, etag) if agrees(data, etag) else None


def is_md5(etag: str) -> bool:
    """Whether an etag may be the MD5 of its object. Multipart uploads have others; under KMS it only looks like one."""
    return _MD5.fullmatch(etag) is not None


def agrees(data: bytes, etag: str) -> bool:
    """Whether `etag` is the MD5 of `data`."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == etag
