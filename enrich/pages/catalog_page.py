"""The result of `enrich catalog check` as a page with pictures. Text from catalogs is untrusted and escaped."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

from markupsafe import Markup

from enrich.errors import one_line
from enrich.pages.han import han_language
from enrich.pages.pictures import THUMBNAIL
from enrich.pages.report import template
from enrich.photos.thumbnail import thumbnails_of
from enrich.settings.photos import PhotoLimits

_PICTURE = "data:image/jpeg;base64,"


def render_catalog(uri: str, found: Mapping[str, Any], read: Callable[[str, int], bytes], limits: PhotoLimits) -> str:
    """A self-contained HTML page about a catalog.

    Args:
        found: see `enrich.catalog.check.Check.as_page`.
        read: the bytes of the photo at a path; of one that cannot be read the page has only the path.
        limits: applied to these photos.
    """
    shots = list(_shots(found))
    paths = list(dict.fromkeys(one["path"] for one in shots))
    pictures = dict(zip(paths, thumbnails_of(read, paths, limits, THUMBNAIL), strict=True))
    return template("catalog.html.jinja", escape=True, finalize=_plain).render(
        **found, uri=uri, pictures=pictures, most=max((one["count"] for one in found["categories"]), default=1),
        language=han_language(chain((one["title"] for one in shots), (one["name"] for one in found["categories"]))),
    )  # fmt: skip


def _shots(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The photos on the page."""
    for finding in found["findings"]:
        yield from chain.from_iterable(finding["groups"])
    yield from chain.from_iterable(issue["shots"] for issue in found["issues"])
    yield from found["sheet"]


def _plain(value: object) -> object:
    """Text on one line without secrets, as in a terminal; the page's own markup is unchanged."""
    outside = isinstance(value, str) and not isinstance(value, Markup) and not value.startswith(_PICTURE)
    return one_line(str(value)) if outside else value
