"""Make a catalog of synthetic product photos, and a bucket to try it on."""

from prefect import flow

from enrich.settings.catalog import SampleSettings
from flows import tasks
from flows.parameters import Bucket, Catalog, Products, Unlabelled


@flow(name="sample-catalog", flow_run_name="sample {catalog}")
def sample_catalog(catalog: Catalog, bucket: Bucket, products: Products = 3000, unlabelled: Unlabelled = 120) -> None:
    """A labelled catalog of synthetic product photos, whose best possible score is known, and unlabelled photos.

    Args:
        catalog: Where the catalog goes: a directory or s3://bucket/prefix.
        bucket: Where the unlabelled photos go, hostile files among them.
        products: Of the catalog; the same numbers make the same bytes.
        unlabelled: Usual products in the bucket.
    """
    tasks.sample(catalog, bucket, SampleSettings(products=products, bucket=unlabelled))
