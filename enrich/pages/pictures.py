"""Rows of a run with the photos that a report shows of them."""

from itertools import islice, zip_longest
from typing import Any

import polars as pl

from enrich.photos.thumbnail import thumbnails
from enrich.settings.photos import PhotoLimits
from enrich.storage import Store
from enrich.vocabulary import PhotoIssue

THUMBNAIL = 160  # pixels on the longer side; about 5 kB each as JPEG
SHEET, SHEET_PHOTOS = 24, 4  # products on the contact sheet, and photos of each
FAILED_SHOWN, FAILED_PICTURES = 200, 40  # failed products in the list, and how many of them with a thumbnail
ISSUE_PICTURES = 6  # photos shown of an issue, and pictures of several products
SEVERAL = 8  # products with the same picture: a placeholder, if they are not sizes of one thing


def sheet_products(
    rows: pl.DataFrame, images: Store, limits: PhotoLimits, side: int = THUMBNAIL
) -> list[dict[str, Any]]:
    """Rows of some products that can be shown, each with its `thumbnails` (data: URIs), the main photo's first."""
    # Sorted by content hash: an arbitrary sample that is the same in every rendering.
    digests = pl.col("photos").list.eval(pl.element().struct.field("sha256")).list.drop_nulls().list.first()
    chosen = rows.filter(pl.col("status") == "ok").sort(digests, "product_id").head(SHEET).to_dicts()
    shown = [[photo["key"] for photo in row["photos"]][:SHEET_PHOTOS] for row in chosen]
    pictures = thumbnails(images, [key for keys in shown for key in keys], limits, side)
    found = [[picture for picture in islice(pictures, len(keys)) if picture] for keys in shown]
    return [{**row, "thumbnails": several} for row, several in zip(chosen, found, strict=True) if several]


def failed_products(
    failed: pl.DataFrame, images: Store, limits: PhotoLimits
) -> list[tuple[dict[str, Any], str | None]]:
    """The first of the rows of products that failed, and a thumbnail (data: URI) of some, if their photo has one."""
    shown = failed.sort("error_kind", "product_id").head(FAILED_SHOWN)
    keys = [photos[0]["key"] for photos in shown["photos"].head(FAILED_PICTURES)]
    return list(zip_longest(shown.to_dicts(), thumbnails(images, keys, limits, THUMBNAIL // 2)))


def photo_issues(rows: pl.DataFrame, images: Store, limits: PhotoLimits) -> list[dict[str, Any]]:
    """How many of the decoded photos have each issue, and pictures that many products share; with thumbnails."""
    photos = rows.select("photos").explode("photos").unnest("photos").filter(pl.col("photo_issues").is_not_null())
    found = [
        (issue.value, some.height, some["key"])
        for issue in PhotoIssue
        if (some := photos.filter(pl.col("photo_issues").list.contains(issue.value)).sort("sha256", "key")).height
    ]
    same = photos.group_by("sha256").agg(pl.len(), pl.col("key").min()).filter(pl.col("len") >= SEVERAL)
    if same.height:
        often = same.sort("len", "key", descending=[True, False])
        found.append((f"the same picture for {SEVERAL} products or more", int(same["len"].sum()), often["key"]))
    shown = [keys.head(ISSUE_PICTURES).to_list() for _, _, keys in found]
    pictures = thumbnails(images, [key for keys in shown for key in keys], limits, THUMBNAIL // 2)
    return [
        {"name": name, "count": count, "of": photos.height, "pictures": list(islice(pictures, len(keys)))}
        for (name, count, _), keys in zip(found, shown, strict=True)
    ]
