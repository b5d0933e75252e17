"""Make a catalog of synthetic product photos, and a bucket to try it on."""

from prefect import flow

from flows import tasks
from flows.parameters import SAMPLE, Catalog, Photos, SampleForm


@flow(name="sample-catalog", flow_run_name="sample {catalog}")
def sample_catalog(
    catalog: Catalog = "demo/catalog",
    bucket: Photos = "demo/bucket",
    settings: SampleForm = SAMPLE,
) -> None:
    """A labelled catalog of synthetic product photos, whose best possible score is known, and unlabelled photos.

    Args:
        catalog: Where the catalog goes: a directory or s3://bucket/prefix.
        bucket: Where the unlabelled photos go, hostile files among them.
        settings: How many, and from which seed; the same settings make the same bytes.
    """
    tasks.sample(catalog, bucket, settings)
