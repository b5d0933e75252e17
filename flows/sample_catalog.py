"""Generate a catalog of synthetic product photos, and a bucket to try it on."""

from prefect import flow

from enrich.settings.catalog import SampleSettings
from flows import tasks
from flows.parameters import Bucket, Catalog, Products, Unlabelled


@flow(name="sample-catalog", flow_run_name="sample {catalog}")
def sample_catalog(catalog: Catalog, bucket: Bucket, products: Products = 3000, unlabelled: Unlabelled = 120) -> None:
    """Generate a labelled catalog of synthetic product photos with a known best possible score, and unlabelled photos.

    Args:
        catalog: Where to write the catalog: a directory or s3://bucket/prefix.
        bucket: Where to write the unlabelled photos, including hostile files.
        products: Number of products in the catalog; the same numbers give the same bytes.
        unlabelled: Number of ordinary products in the bucket.
    """
    tasks.sample(catalog, bucket, SampleSettings(products=products, bucket=unlabelled))
