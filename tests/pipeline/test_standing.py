"""Which adapter serves: chosen by comparison, by a person, or because there is no other."""

import json
from pathlib import Path

import pytest

from enrich.engines.adapter import adapter_id
from enrich.errors import RunFailed, UsageError
from enrich.pipeline import standing
from enrich.pipeline.challenging import Challenge
from enrich.pipeline.standing import choose, identity, promote, read_standing
from enrich.scores.contest import Contest, Difference
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from enrich.storage import open_store
from tests.testing.cli import RunCli
from tests.testing.random_adapter import write_random_adapter
from tests.testing.scores import metrics

SETTINGS = RunSettings()


@pytest.fixture(params=["local", "s3"])
def adapters(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.getfixturevalue('s3_bucket')}/adapters" if request.param == "s3" else str(tmp_path / "adapters")


def made(adapters: str, name: str, **scores: object) -> str:
    uri = f"{adapters}/{name}"
    store = open_store(uri, create=True)
    store.put("adapter_model.safetensors", name.encode())
    store.put("metrics.json", json.dumps(metrics(**scores)).encode())  # type: ignore[arg-type]
    store.put("train.json", b"{}")
    return uri


@pytest.fixture(autouse=True)
def _adapters_need_no_more_than_this(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters here are not whole; one with a file "damaged" cannot be read."""

    def read(folder: Path) -> None:
        if (folder / "damaged").is_file():
            raise UsageError(f"adapter {folder}: its calibration is of another version; fine-tune again")

    if "whole" not in request.fixturenames:
        monkeypatch.setattr(standing, "read_adapter", read)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_random_adapter(tmp_path / "whole", TINY_MODEL_PATH, num_crops=1)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The pairs that were compared; the better one has the later name."""
    pairs: list[tuple[str, str]] = []

    def challenge(new: Path, old: Path, *_: object) -> Challenge:
        names = [(folder / "adapter_model.safetensors").read_text() for folder in (new, old)]
        pairs.append((names[0], names[1]))
        high = 0.1 if names[0] > names[1] else -0.1
        found = Difference(measure="price", what="closeness of prices", new=0.6, standing=0.7, low=-0.2, high=high)
        contests = (Contest(labels="today's labels", products=240, differences=(found,)),)
        return Challenge(new=adapter_id(new), standing=adapter_id(old), contests=contests, changed=0.25, decided=0)

    monkeypatch.setattr(standing, "challenge", challenge)
    return pairs


def test_the_first_adapter_serves_and_a_better_one_follows(adapters: str, compared: list[tuple[str, str]]) -> None:
    first, second = made(adapters, "a"), made(adapters, "b")

    assert choose("c", adapters, first, SETTINGS, fresh=True).uri == first
    assert compared == []
    assert choose("c", adapters, second, SETTINGS, fresh=True).uri == second
    kept = read_standing(adapters)
    assert kept is not None
    assert (kept.uri, kept.adapter, kept.person) == (second, identity(second), None)
    assert "is at least as good as" in kept.why


def test_a_worse_one_is_compared_once_and_does_not_serve(adapters: str, compared: list[tuple[str, str]]) -> None:
    worse, stands = made(adapters, "a"), made(adapters, "b")
    choose("c", adapters, stands, SETTINGS, fresh=True)

    for fresh in (True, False, False):
        choice = choose("c", adapters, worse, SETTINGS, fresh=fresh)
        assert choice.uri == stands
        assert choice.challenge is not None
        assert f"{stands} keeps serving: the new adapter {identity(worse)} is worse than" in choice.why
        assert "closeness of prices: 0.600 after 0.700 (-0.200 to -0.100) by today's labels" in choice.why
        assert "on 240 products that neither was trained on; 25% of the answers differ" in choice.why
        assert choice.why.endswith(f"enrich promote --adapters {adapters} --adapter {worse}")
        assert "\n" not in choice.why
    assert len(compared) == 1


def test_what_a_person_promoted_serves_until_another_is_trained(adapters: str, compared: list[tuple[str, str]]) -> None:
    older, newer = made(adapters, "a"), made(adapters, "b")
    choose("c", adapters, newer, SETTINGS, fresh=True)
    promote(adapters, older, "Ann", "its titles read better")

    choice = choose("c", adapters, newer, SETTINGS, fresh=False)
    assert (choice.uri, choice.why) == (older, f"the adapter {older} serves, because Ann promoted it")
    assert compared == []
    newest = made(adapters, "c")
    assert choose("c", adapters, newest, SETTINGS, fresh=True).uri == newest


def test_an_adapter_that_beats_no_guess_is_not_even_compared(adapters: str, compared: list[tuple[str, str]]) -> None:
    stands = made(adapters, "a")
    weak = made(adapters, "b", category=(0.1, 0.05, 0.15), price=(0.9, 0.8, 1.0), macro_f1=0.01)
    choose("c", adapters, stands, SETTINGS, fresh=True)

    choice = choose("c", adapters, weak, SETTINGS, fresh=True)
    assert choice.uri == stands
    assert "no better than guessing without a photo" in choice.why
    assert compared == []


def test_the_adapter_in_use_stands_where_none_was_chosen(adapters: str, compared: list[tuple[str, str]]) -> None:
    mine, new = made(adapters, "z-mine"), made(adapters, "b")

    assert choose("c", adapters, new, SETTINGS, fresh=True, in_use=mine).uri == mine
    assert compared == [("b", "z-mine")]
    assert choose("c", adapters, new, SETTINGS, fresh=True, in_use=f"{adapters}/nowhere").uri == new


def test_a_standing_adapter_that_is_gone_makes_room(adapters: str, compared: list[tuple[str, str]]) -> None:
    gone, new = made(adapters, "a"), made(adapters, "b")
    choose("c", adapters, gone, SETTINGS, fresh=True)
    open_store(gone).delete("train.json")

    choice = choose("c", adapters, new, SETTINGS, fresh=False)
    assert (choice.uri, choice.why) == (new, f"the adapter {new} takes the place of {gone}, which is gone")


def test_a_standing_adapter_that_cannot_be_read_any_more_makes_room(
    adapters: str, compared: list[tuple[str, str]]
) -> None:
    """After an update of this package every night would fail on it, and train another one in vain."""
    older, new = made(adapters, "a"), made(adapters, "b")
    promote(adapters, older, "Ann", "its titles read better")
    open_store(older).put("damaged", b"")

    choice = choose("c", adapters, new, SETTINGS, fresh=False)
    assert choice.uri == new
    reason = "its calibration is of another version; fine-tune again"
    assert choice.why == f"the adapter {new} takes the place of {older}, which cannot be used: {reason}"
    assert compared == []


def test_what_a_person_promotes_is_found_from_elsewhere(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.parent)
    assert promote("adapters", "./whole/", "Ann", "").uri == str(whole)
    choice = choose("c", "adapters", "whole", SETTINGS, fresh=True)
    assert (choice.uri, choice.challenge) == (str(whole), None)


def test_what_would_end_every_night_is_not_promoted(whole: Path) -> None:
    weights = whole / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(
        UsageError, match=r"every nightly run with it would fail: adapter_model.safetensors is damaged"
    ) as refused:
        promote(str(whole.parent), str(whole), "Ann", "")
    assert str(whole) in str(refused.value)
    assert read_standing(str(whole.parent)) is None


def test_what_is_not_an_adapter_is_not_promoted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"adapter .*nothing: not found; name one that `enrich finetune` wrote"):
        promote(str(tmp_path), str(tmp_path / "nothing"), "Ann", "")


def test_a_person_by_the_name_of_a_flow_is_a_person(adapters: str, compared: list[tuple[str, str]]) -> None:
    older, newer = made(adapters, "a"), made(adapters, "b")
    choose("c", adapters, newer, SETTINGS, fresh=True)
    promote(adapters, older, "nightly", "")

    kept = read_standing(adapters)
    assert kept is not None
    assert kept.person == "nightly"
    assert choose("c", adapters, newer, SETTINGS, fresh=False).uri == older


def test_somebody_decides(adapters: str) -> None:
    with pytest.raises(UsageError, match="the person who decides is missing; give a name with --by"):
        promote(adapters, made(adapters, "a"), " ", "")


def test_a_damaged_choice_says_how_to_choose_again(tmp_path: Path) -> None:
    (tmp_path / "standing.json").write_text('{"uri": 1}')
    with pytest.raises(RunFailed, match=r"standing\.json cannot be read; .* `enrich promote`"):
        read_standing(str(tmp_path))


def test_a_user_without_a_name_says_who_decides(whole: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli) -> None:
    """In a container the user's id may be all there is."""

    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    monkeypatch.setattr("getpass.getuser", no_name)
    code, _, err = run_cli("promote --adapters", whole.parent, "--adapter", whole)
    assert (code, err) == (2, "error: the person who decides is missing; give a name with --by\n")
