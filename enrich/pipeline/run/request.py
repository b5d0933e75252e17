"""The request for a run, from a command, a form or a program."""

from dataclasses import dataclass, field

from enrich.settings.run import RunSettings


@dataclass(frozen=True)
class RunRequest:
    """One pass over a bucket.

    Args:
        images: the photos: a directory or s3://bucket/prefix.
        adapter: directory or URI of an adapter.
        output: where to write the tables, not among the photos.
        run_id: name of the run; that of an unfinished run continues it. None: a new one made from the time.
        limit: plan only that many products, at least 1; the next run does the others.
        inventory: manifest.json of an S3 Inventory of the images, read instead of listing them.
        products: a table of products and the keys of their photos (CSV or Parquet): only these are processed, and
            `settings.group_by` is ignored.
        deadline: seconds from the start of the run, after which no shard is started. What is committed by then is
            published; the same run id or the next run does the rest.
        waited: seconds that went into imports before this was made: they are part of the start.
    """

    images: str
    adapter: str
    output: str
    settings: RunSettings = field(default_factory=RunSettings)
    run_id: str | None = None
    limit: int | None = None
    inventory: str | None = None
    deadline: float | None = None
    products: str | None = None
    waited: float = 0.0
