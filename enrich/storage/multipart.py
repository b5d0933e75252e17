"""Large objects written to S3 in parts."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from enrich.storage.client import status_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 64 << 20  # of an upload, and of a large download; 10,000 parts, the most that S3 allows, are 640 GB


def upload(
    client: "S3Client", place: dict[str, Any], path: Path, condition: dict[str, Any], options: dict[str, Any]
) -> None:
    """Write a local file to the object at `place` (Bucket, Key), with further `options` of create_multipart_upload.

    The endpoint checks `condition` (`IfMatch`, `IfNoneMatch` or empty) when the upload is completed.
    """
    started = {**place, "UploadId": client.create_multipart_upload(**place, **options)["UploadId"]}
    try:
        parts: list[Any] = []
        with open(path, "rb") as file:
            while piece := file.read(PART_BYTES):
                number = len(parts) + 1
                etag = client.upload_part(**started, PartNumber=number, Body=piece)["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
        client.complete_multipart_upload(**started, MultipartUpload={"Parts": parts}, **condition)
    except BaseException:
        with suppress(Exception):  # the bucket's lifecycle rule removes an upload that could not be aborted
            client.abort_multipart_upload(**started)
        raise


def keeps_conditions(client: "S3Client", place: dict[str, Any]) -> bool:
    """Whether the endpoint refuses to complete uploads whose condition does not hold, tried on an object at `place`."""
    client.put_object(**place, Body=b"1")
    try:
        wrong: tuple[dict[str, str], ...] = ({"IfNoneMatch": "*"}, {"IfMatch": f'"{"0" * 32}"'})
        return all(_is_refused(client, place, condition) for condition in wrong)
    finally:
        client.delete_object(**place)


def _is_refused(client: "S3Client", place: dict[str, Any], condition: dict[str, Any]) -> bool:
    started = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
    etag = client.upload_part(**started, PartNumber=1, Body=b"2")["ETag"]
    parts: Any = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    try:
        client.complete_multipart_upload(**started, MultipartUpload=parts, **condition)
    except ClientError as error:
        if status_of(error) != 412:
            raise
        with suppress(ClientError):
            client.abort_multipart_upload(**started)
        return True
    return False
