"""Links to the pages of a run: to an `enrich serve`, or else presigned links into S3."""

from enrich.output.run_record import RunRecord
from enrich.pages.links import PageLinks
from enrich.settings.run import RunSettings
from enrich.storage import is_s3, open_store, real_place

USUAL = "http://127.0.0.1:8420"  # where `enrich serve` is without options
REVIEW = "review.html"


def link_pages(record: RunRecord, output: str, settings: RunSettings) -> PageLinks:
    """The report, and the review page if there is one.

    `serve_url` goes first, that of the settings or of the run itself; then links into S3 that end after `link_hours`.
    """
    store = open_store(output, must_exist=True, s3=settings.s3)
    queued = store.head(REVIEW) is not None
    keys = {"Report of the run": f"{record.run.folder}report.html"}
    if queued:
        keys["Products to review"] = REVIEW
    base, until = settings.serve_url or record.serve_url, None
    if base or not is_s3(output) or not settings.link_hours:
        pages = {name: f"{(base or USUAL).rstrip('/')}/{key}" for name, key in keys.items()}
    else:
        from enrich.storage.presign import presign
        from enrich.storage.s3 import S3Store

        assert isinstance(store, S3Store)
        signed = {name: presign(store, key, settings.link_hours) for name, key in keys.items()}
        pages, until = {name: one.url for name, one in signed.items()}, min(one.until for one in signed.values())
    return PageLinks(real_place(output), tuple(pages.items()), until, served=bool(base), queued=queued)
