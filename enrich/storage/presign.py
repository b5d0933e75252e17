"""Links that let a browser read one object of S3 for a time. Each is a credential: anyone who has it can read it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from botocore.config import Config

from enrich.storage.client import CONFIG, endpoint_of, s3_errors
from enrich.storage.s3 import S3Store

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class PresignedLink:
    """A URL that needs no signing in, until it ends."""

    url: str
    until: datetime


def presign(store: S3Store, key: str, hours: float) -> PresignedLink:
    """A link to read an object as a page. It expires no later than the credentials that sign it, if that is known."""
    now = datetime.now(UTC).replace(microsecond=0)
    end = getattr(store.session.get_credentials(), "_expiry_time", None)  # of a role; boto3 has no public name for it
    until = min(now + timedelta(hours=hours), end) if isinstance(end, datetime) else now + timedelta(hours=hours)
    seconds = max(1, int((until - now).total_seconds()))
    wanted = {"Bucket": store.bucket, "Key": store.base + key, "ResponseContentType": "text/html; charset=utf-8"}
    with s3_errors(store.uri_of(key)):
        url = _signer(store).generate_presigned_url("get_object", Params=wanted | store.reading, ExpiresIn=seconds)
    return PresignedLink(url, until)


def _signer(store: S3Store) -> "S3Client":
    """A client of the bucket's own region, which a signature names, in version 4, which KMS asks for."""
    region = store.client.head_bucket(Bucket=store.bucket).get("BucketRegion") or store.client.meta.region_name
    endpoint = endpoint_of(store.client)
    aws = (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    config = CONFIG.merge(Config(signature_version="s3v4"))
    return store.session.client("s3", config=config, region_name=region, endpoint_url=None if aws else endpoint)
