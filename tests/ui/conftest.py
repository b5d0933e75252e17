"""A browser, and pages that must need nothing but themselves and have no complaint."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[[Path], Page]]:
    """Opens a file without a network; at the end nothing was asked of one, and the console is empty."""
    context = chromium.new_context(offline=True, accept_downloads=True)
    problems: list[str] = []

    def opened(path: Path) -> Page:
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url[:80]))
        page.goto(path.as_uri())
        return page

    yield opened
    context.close()
    assert [problem for problem in problems if not problem.startswith(("file:", "data:", "blob:"))] == []
