"""Settings of object storage."""

from typing import Literal

from pydantic import Field

from enrich.settings.base import Settings


class S3Settings(Settings):
    """What an S3 bucket requires beyond credentials, region and endpoint, which are found in the standard way."""

    requester_pays: bool = Field(default=False, description="Pay for reading other people's buckets")
    encryption: Literal["AES256", "aws:kms"] | None = Field(default=None, description="null: the bucket's default")
    kms_key_id: str | None = Field(default=None, description="Key for aws:kms; null: the account's own key")
    lock: bool = Field(
        default=False, description="Publish under a lock object, for endpoints that support only If-None-Match"
    )


PLAIN_S3 = S3Settings()
