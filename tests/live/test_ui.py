"""A person in a browser: opens a deployment, fills its form, starts it, and looks at what came of it."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, sync_playwright

from enrich.pipeline.serving import PageServer
from enrich.pipeline.site import Site
from enrich.storage import open_store
from tests.testing.geometry import faults
from tests.testing.live import PASSWORD, ROOT, Live, Shop, free_port, wait_for

pytestmark = [pytest.mark.ui, pytest.mark.timeout(900)]
SHOTS = Path(os.environ.get("ENRICH_SCREENSHOTS", ROOT / ".screenshots"))
SECOND = 1000  # milliseconds, Playwright's unit
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-gpu", "--disable-quic",
         "--disable-sync", "--no-first-run", "--no-sandbox"]  # fmt: skip


class Screen:
    """A page of the UI, with a picture of every step."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url, self.taken = page, url, 0

    def open(self, path: str) -> None:
        self.page.goto(f"{self.url}{path}", wait_until="domcontentloaded")

    def sees(self, text: str | re.Pattern[str], seconds: float = 120, *, exact: bool = False) -> None:
        found = self.page.get_by_text(text, exact=exact).first
        found.wait_for(timeout=seconds * SECOND)
        found.scroll_into_view_if_needed()

    def field(self, label: str) -> Locator:
        """The control that follows a label of the form, of which `label` is the beginning."""
        labelled = f'//*[starts-with(normalize-space(text()), "{label}:")]'
        return self.page.locator(f"xpath={labelled}/following::*[self::textarea or self::input][1]").first

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def shot(self, name: str) -> None:
        self.taken += 1
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{self.taken:02}-{name}.png", full_page=True)


@pytest.fixture
def screen(live: Live) -> Iterator[Screen]:
    found = shutil.which("chromium")
    assert found, "chromium is not in PATH; on Debian: apt-get install chromium"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=QUIET)
        context = browser.new_context(
            viewport={"width": 1440, "height": 1000}, http_credentials=None, timezone_id="Europe/Berlin"
        )
        url = f"http://127.0.0.1:{live.port}"
        # What the UI keeps once a person signed in.
        context.add_init_script(f"localStorage.setItem('prefect-password', btoa({json.dumps(PASSWORD)}))")
        page = context.new_page()
        # What a press was answered covers the button to press again, for as long as the mouse rests there.
        messages = page.locator(".p-toast__close-btn").first
        page.add_locator_handler(messages, lambda close: close.dispatch_event("click"), no_wait_after=True)
        yield Screen(page, url)
        browser.close()


def questions(live: Live, shop: Shop) -> list[str]:
    """Runs of `release-held` that ask about this shop's output."""
    found = live.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["release-held"]}}})
    return [run["id"] for run in found if run["parameters"].get("output") == str(shop.output)]


def submit(screen: Screen) -> str:
    """Presses until the server takes the form, waits for the page after it, and returns the id of the run.

    Only a 503 may be answered by another press: it says that SQLite was locked.
    """
    for _ in range(10):
        with screen.page.expect_response(re.compile("/create_flow_run$"), timeout=180 * SECOND) as answered:
            screen.press("Submit")
        if answered.value.status != 503:
            break
        screen.shot("refused")
        screen.page.wait_for_timeout(2 * SECOND)
    assert answered.value.status == 201, answered.value.text()
    screen.page.wait_for_url(re.compile(r"/deployments/deployment/[^/]+$"), timeout=60 * SECOND)
    return str(answered.value.json()["id"])


ADHOC, NIGHTLY, FINETUNE = "enrich-catalog/enrich-adhoc", "nightly/nightly", "finetune-adapter/finetune-adapter"


@pytest.mark.parametrize(
    ("deployment", "labels", "text", "told"),
    [
        (ADHOC, ("Photos", "Adapter", "Output"), "run:\n  shard_size: 0", "line 2: run.shard_size: "),
        (NIGHTLY, ("Catalog", "Photos", "Output"), "until when: tomorrow", "line 1: until when: "),
        (FINETUNE, ("Catalog", "Adapter"), "quality or speed: best", "line 1: quality or speed: "),
    ],
)
def test_a_form_is_one_screen_and_says_what_is_wrong_with_it(
    live: Live, shop: Shop, screen: Screen, deployment: str, labels: tuple[str, ...], text: str, told: str
) -> None:
    found = live.call("GET", f"/deployments/name/{deployment}")["id"]
    screen.open(f"/deployments/deployment/{found}/run")
    screen.sees(f"{labels[0]}:")
    button = screen.page.get_by_role("button", name="Submit", exact=True).first
    screen.shot(f"form-{deployment.partition('/')[2]}")
    box = button.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 1000
    assert not [name for name in (*labels, "Settings") if not screen.field(name).is_visible()]

    screen.field(labels[0]).fill("")
    button.click()
    screen.sees(f"'{labels[0].lower()}' is a required property")  # below the field, and nothing was started
    screen.shot("missing")
    for label in labels:
        screen.field(label).fill(f"{shop.output}-{label}")
    screen.field("Settings").fill(text)
    assert f"UsageError: Settings, {told}" in live.ended(submit(screen))["message"]


def test_a_run_from_the_form_to_its_artifacts(live: Live, shop: Shop, screen: Screen) -> None:
    adhoc = live.call("GET", "/deployments/name/enrich-catalog/enrich-adhoc")["id"]
    screen.open("/deployments")
    screen.sees("enrich-adhoc")
    screen.page.get_by_text("At 04:00 AM").first.wait_for(state="attached", timeout=60 * SECOND)
    screen.shot("deployments")
    screen.open(f"/deployments/deployment/{adhoc}/run")
    screen.sees("Photos: a directory or s3://bucket/prefix")

    port = free_port()
    given = shop.speaking.parameters(run={"serve_url": f"http://127.0.0.1:{port}"})
    for label in ("Photos", "Adapter", "Output"):
        screen.field(label).fill(given[label.lower()])
    screen.field("Settings").fill(given["settings"])
    screen.shot("form")
    run = submit(screen)
    screen.open(f"/runs/flow-run/{run}")
    screen.sees("Completed", 300, exact=True)
    screen.shot("completed")
    assert live.ended(run)["message"] == "21 products: 20 ok, 1 failed"

    screen.page.get_by_text("Artifacts", exact=True).last.click()
    screen.sees("contact-sheet")
    screen.shot("artifacts")
    all_done = "products: 21 of 21, "
    wait_for("the last progress", lambda: live.artifacts(run)["progress"]["description"].startswith(all_done))
    artifacts = live.artifacts(run)
    for key, text in (("enrichment", "bottleneck"), ("counts", "not_an_image"), ("progress", "products: 21 of 21")):
        screen.open(f"/artifacts/artifact/{artifacts[key]['id']}")
        screen.sees(re.compile(re.escape(text)))
        screen.shot(key)
    screen.open(f"/artifacts/artifact/{artifacts['contact-sheet']['id']}")
    screen.page.locator("img[alt=photo]").first.wait_for(timeout=60 * SECOND)
    screen.shot("contact-sheet")
    for key, text in (("enrichment", "bottleneck"), ("counts", "not_an_image"), ("contact-sheet", "to review"),
                      ("report", "Report of the run")):  # fmt: skip
        screen.open(f"/artifacts/artifact/{artifacts[key]['id']}")
        screen.sees(text)
        assert faults(screen.page, (1300, 1920)) == {}, key
    with PageServer(Site(open_store(str(shop.output))), "127.0.0.1", port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with screen.page.context.expect_page() as opened:  # the UI opens links in tabs of their own
            screen.page.get_by_role("link", name="Report of the run").click()
        opened.value.get_by_text("Where the time went").wait_for(timeout=60 * SECOND)
        server.shutdown()


def test_a_held_run_is_decided_on_in_the_ui(live: Live, shop: Shop, screen: Screen) -> None:
    run = live.run("enrich-catalog/enrich-adhoc", **shop.parameters(gate=True))
    assert live.ended(run)["name"] == "Held"
    screen.open(f"/runs/flow-run/{run}")
    badge = screen.page.locator(".state-badge", has_text="Held").first
    badge.wait_for(timeout=60 * SECOND)
    colour = badge.evaluate("tag => getComputedStyle(tag).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert max(colour) - min(colour) < 16, f"grey, neither done nor broken: {colour}"
    screen.shot("held")
    [asked] = wait_for("the question", lambda: questions(live, shop))
    live.reached(asked, "Paused")

    screen.open(f"/runs/flow-run/{asked}")
    screen.sees("Paused", exact=True)
    screen.press("Resume")
    screen.sees("Share of failed products")
    screen.sees("Report of the run")
    screen.sees("and 11 more products")
    screen.shot("decision")
