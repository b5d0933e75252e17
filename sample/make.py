"""A sample at a URI: its catalog and, where asked for, unlabelled photos in a bucket."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from enrich.errors import UsageError
from enrich.pipeline.catalogs import written_to
from enrich.pipeline.progress import Progress, silent
from enrich.settings.catalog import SampleSettings
from enrich.storage import is_s3, open_store, overlap
from enrich.storage.scratch import scratch
from sample.dialects import DEMO
from sample.generate import SampleSummary, write_sample
from sample.japanese import JAPANESE
from sample.spec import Dialect

DIALECTS: Mapping[str, Dialect] = {"en": DEMO, "ja": JAPANESE}  # by SampleSettings.language


def make_sample(
    out: str,
    settings: SampleSettings,
    *,
    bucket: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> SampleSummary:
    """Generate a catalog at `out` and, where given, unlabelled photos at `bucket`. Raises as `write_sample`."""
    if bucket is not None and overlap(out, bucket):
        raise UsageError(f"bucket {bucket} and out {out} overlap; keep them apart")
    with written_to(out) as folder, scratch() as temporary:
        photos = None if bucket is None else temporary if is_s3(bucket) else Path(bucket)
        summary = write_sample(
            folder,
            settings.products,
            settings.bucket,
            settings.seed,
            DIALECTS[settings.language],
            progress=partial(progress, "drawing"),
            bucket_out=photos,
            holdout=settings.products // 10 if settings.holdout is None else settings.holdout,
            photos=settings.photos,
            overwrite=overwrite,
        )
        if bucket is not None and photos is not None and is_s3(bucket):
            store = open_store(bucket)
            for info in open_store(str(photos)).list():
                store.put(info.key, (photos / info.key).read_bytes())
    return summary
