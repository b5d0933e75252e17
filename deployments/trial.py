"""Setup for `docker compose up`: a bucket with the demo's data, work pools, automations and deployments.

    python -m deployments.trial s3://demo      # with PREFECT_API_URL and AWS_* variables set

It keeps what already exists, so it may be run again.
"""

import argparse
import sys
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from deployments.apply import apply
from deployments.deploy import Refused, deploy
from enrich.errors import EnrichError
from enrich.pipeline.catalogs import CATALOG_FILE
from enrich.settings.catalog import SampleSettings
from enrich.storage import open_store
from enrich.storage.client import make_client


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", help="s3://bucket or s3://bucket/prefix of the demo's data")
    demo = parser.parse_args().demo.rstrip("/")
    try:
        make_bucket(demo)
        make_data(demo)
        apply()
        deploy(demo)
    except (EnrichError, Refused) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{demo}/catalog and {demo}/bucket exist; work pools, automations and deployments are up to date")
    return 0


def make_bucket(uri: str) -> None:
    """Create the bucket of `uri`, if it does not exist."""
    _, client = make_client(uri)
    try:
        client.create_bucket(Bucket=urlsplit(uri).netloc)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise


def make_data(demo: str) -> None:
    """Create the sample catalog and the bucket of unlabelled photos below `demo`, if they do not exist."""
    from sample.make import make_sample

    if open_store(f"{demo}/catalog").head(CATALOG_FILE) is None:  # written last
        print(f"generating the demo's catalog and bucket, and uploading them to {demo}", flush=True)
        make_sample(f"{demo}/catalog", SampleSettings(), bucket=f"{demo}/bucket")


if __name__ == "__main__":
    sys.exit(main())
