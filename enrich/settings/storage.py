"""Settings of object storage."""

from typing import Literal

from pydantic import Field

from enrich.settings.base import Settings


class S3Settings(Settings):
    """What an S3 bucket asks for beyond credentials, region and endpoint, which are found the standard way."""

    requester_pays: bool = Field(default=False, description="Pay for reading buckets of others")
    encryption: Literal["AES256", "aws:kms"] | None = Field(default=None, description="Left out: as the bucket says")
    kms_key_id: str | None = Field(default=None, description="The key of aws:kms; left out: the account's own")
    lock: bool = Field(
        default=False, description="Publish under a lock object, where the endpoint honours If-None-Match only"
    )


PLAIN_S3 = S3Settings()
