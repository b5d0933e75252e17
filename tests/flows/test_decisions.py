"""What a person decides by, and what becomes of the decision."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.input import RunInput

from enrich.pipeline import standing
from enrich.pipeline.challenging import Challenge
from enrich.pipeline.standing import identity, promote, read_standing
from enrich.scores.contest import Contest, Difference
from enrich.storage import open_store
from flows import promote_adapter as promotion
from flows import release_held as release
from flows.decisions import render_promotion
from flows.enrich_catalog import enrich_catalog
from flows.promote_adapter import Promotion, promote_adapter
from flows.release_held import Decision, release_held
from tests.testing.fake_world import FakeWorld
from tests.testing.forms import text
from tests.testing.scores import METRICS


class Answered:
    """A person who fills in the same each time, and what they were shown."""

    def __init__(self, answer: RunInput | None) -> None:
        self.answer, self.shown = answer, ""

    async def __call__(self, form: Any, description: str, hours: float, about: str) -> RunInput | None:
        self.shown = description
        return self.answer


def ended(run: Any) -> State[Any]:
    """The state of a flow that was called with `return_state`."""
    state: State[Any] = asyncio.run(run)
    return state


def plain(markdown: str) -> str:
    """Without what escapes it."""
    return re.sub(r"\\(.)", r"\1", markdown)


@pytest.fixture
def adapters(prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters, of which a person promoted the older one, and their comparison."""
    monkeypatch.setattr(standing, "read_adapter", lambda folder: None)
    for name in ("older", "newer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_text(name)
        (tmp_path / name / "train.json").write_text("{}")
    promote(str(tmp_path), f"{tmp_path}/older", "nightly", "the only | one")
    new, old = (identity(f"{tmp_path}/{name}") for name in ("newer", "older"))
    found = Difference(measure="category", what="categories right", new=0.5, standing=0.9, low=-0.6, high=-0.2)
    contests = (Contest(labels="today's labels", products=300, differences=(found,)),)
    lost = Challenge(new=new, standing=old, contests=contests, changed=0.4, decided=0)
    open_store(str(tmp_path)).put(f"challenges/{new}-{old}.json", lost.model_dump_json().encode())
    return tmp_path


def decide(monkeypatch: pytest.MonkeyPatch, adapters: Path, answer: RunInput | None) -> tuple[Any, str]:
    person = Answered(answer)
    monkeypatch.setattr(promotion, "ask", person)
    state = ended(promote_adapter(str(adapters), f"{adapters}/newer", return_state=True))
    return state, plain(person.shown)


def test_a_new_adapter_is_promoted_with_its_comparison_in_front(
    adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, shown = decide(monkeypatch, adapters, Promotion(decision="promote", person="Ann", why="better titles"))

    assert (state.name, state.message) == ("Promoted", f"Ann decided: the adapter {adapters}/newer serves")
    assert "| categories right | **0.500** | 0.900 | -0.600 to -0.200 |" in shown
    assert "promoted by nightly: the only | one" in shown
    kept = read_standing(str(adapters))
    assert kept is not None
    assert (kept.uri, kept.person, kept.why) == (f"{adapters}/newer", "Ann", "better titles")


@pytest.mark.parametrize(
    ("answer", "name"), [(Promotion(decision="keep", person="Ann"), "Rejected"), (None, "Undecided")]
)
def test_the_standing_one_stays_unless_somebody_promotes(
    adapters: Path, monkeypatch: pytest.MonkeyPatch, answer: RunInput | None, name: str
) -> None:
    state, _ = decide(monkeypatch, adapters, answer)

    assert (state.name, state.is_completed()) == (name, True)
    assert str(state.message).endswith(f"the adapter {adapters}/older keeps serving")
    kept = read_standing(str(adapters))
    assert kept is not None
    assert kept.uri == f"{adapters}/older"


def test_a_place_without_an_adapter_asks_nobody(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(adapters / "newer")

    state, shown = decide(monkeypatch, adapters, None)

    assert state.is_failed()
    assert "not found; name one made by finetune-adapter or a nightly run" in str(state.message)
    assert shown == ""


def test_adapters_that_were_not_compared_are_shown_by_their_own_tests() -> None:
    shown = plain(render_promotion("s3://shop/new", None, None, {"new": METRICS, "standing": None}))

    assert "not compared on the same products" in shown
    assert "| new | " in shown
    assert "category accuracy" in shown


@pytest.mark.parametrize(("bad", "more"), [(10, None), (13, "| and 3 more products | |")])
def test_the_form_of_a_held_run_names_ten_that_failed_and_the_report(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch, bad: int, more: str | None
) -> None:
    world.add_photos(*(f"bad|{number:02}.jpg" for number in range(bad)))
    settings = text(run_id="night", run={"gate": {"min_rows": 1}})
    assert enrich_catalog(**world.places, settings=settings, return_state=True).name == "Held"
    person = Answered(Decision(decision="approve"))
    monkeypatch.setattr(release, "ask", person)

    state = ended(release_held(f"{world.root}/output", return_state=True))

    assert state.name == "Released"
    shown = plain(person.shown)
    assert shown.startswith("### [Report of the run](http://127.0.0.1:8420/runs/night/report.html)\n")
    assert f"enrich serve --output \\\n  {world.root}/output\n" in person.shown
    assert "| Share of failed products | 0.2 | **1** |" in shown
    assert [line for line in shown.splitlines() if line.startswith("| bad|")] == [
        f"| bad|{number:02}.jpg | not_an_image: not an image |" for number in range(10)
    ]
    assert (more in shown) if more else "more products" not in shown
    assert r"bad\|00" in person.shown  # else it would be a cell of its own
