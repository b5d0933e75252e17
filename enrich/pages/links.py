"""Where the pages of a run can be opened, as Markdown for Prefect's UI."""

from dataclasses import dataclass
from datetime import datetime

from enrich.pages.report import template


@dataclass(frozen=True)
class PageLinks:
    """The pages of a run, and what is needed to open them."""

    output: str
    pages: tuple[tuple[str, str], ...]  # (name of letters and blanks, URL)
    until: datetime | None  # when the links end, which are into S3; None: they are not
    served: bool  # whether somebody said that the pages are served; otherwise `enrich serve` has to be started
    queued: bool  # whether there is a review page


def render_links(links: PageLinks) -> str:
    """Links, and the commands that they need. Locations are quoted for the shell."""
    return str(template("links.md.jinja", escape=False).render(links=links)).strip() + "\n"
