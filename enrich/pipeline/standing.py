"""Which adapter serves: stored with the adapters, changed by a nightly run that finds a better one, or by a person."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from enrich.engines.adapter import adapter_id, read_adapter
from enrich.errors import PermanentFailure, UsageError, one_line
from enrich.pipeline.adapter_cache import read_metrics
from enrich.pipeline.challenging import Challenge, challenge
from enrich.pipeline.progress import Progress, silent
from enrich.scores.worth import judge_worth
from enrich.settings.run import RunSettings
from enrich.storage import open_store, real_place
from enrich.storage.tree import local_tree
from enrich.vocabulary import RECORD_FILE

STANDING_FILE = "standing.json"  # below the adapters
CHALLENGES = "challenges"  # folder of what was compared, a file for each pair


class Standing(BaseModel):
    """The adapter that serves."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    adapter: str  # its id
    since: datetime
    person: str | None  # who promoted it; None: nobody did, a night found it at least as good as the one before
    why: str  # one line


@dataclass(frozen=True)
class Choice:
    """The adapter that will serve, why, and how the new one compares with the previous one, if they were compared."""

    uri: str
    why: str  # one line without a full stop
    challenge: Challenge | None = None


def read_standing(adapters: str) -> Standing | None:
    """The adapter that serves; None if none was ever chosen.

    Raises:
        RunFailed: the file is not one of ours.
    """
    store = open_store(adapters)
    if store.head(STANDING_FILE) is None:
        return None
    try:
        return Standing.model_validate_json(store.get(STANDING_FILE)[0])
    except ValidationError as error:
        raise PermanentFailure(
            f"{store.uri_of(STANDING_FILE)} cannot be read; name the adapter that serves with `enrich promote`"
        ) from error


def promote(adapters: str, adapter: str, person: str, why: str) -> Standing:
    """Let `adapter` serve from now on, as `person` decided.

    Raises:
        UsageError: there is no adapter at that location, or it cannot be used; or no person is named.
    """
    if not person.strip():
        raise UsageError("the person who decides is missing; give a name with --by")
    with _opened(adapter) as folder:
        if reason := _unusable(folder):
            raise UsageError(f"adapter {adapter}: every nightly run with it would fail: {reason}")
        return _let_serve(adapters, adapter, adapter_id(folder), one_line(person), one_line(why))


def _let_serve(adapters: str, adapter: str, id: str, person: str | None, why: str) -> Standing:
    # The nightly run has another working directory than the person who promotes.
    chosen = Standing(uri=real_place(adapter), adapter=id, since=datetime.now(UTC), person=person, why=why)
    open_store(adapters, create=True).put(STANDING_FILE, (chosen.model_dump_json(indent=1) + "\n").encode())
    return chosen


def choose(
    catalog: str,
    adapters: str,
    new: str,
    settings: RunSettings,
    progress: Progress = silent,
    *,
    fresh: bool,
    in_use: str | None = None,
) -> Choice:
    """The adapter that will serve: `new` if it is at least as good as the standing one, else the standing one.

    A pair is compared once. An adapter that a person promoted is replaced only by one that was trained later, or if
    it is gone or damaged.

    Args:
        fresh: whether `new` was trained just now.
        in_use: stands until one is chosen, if there is an adapter at that place.

    Raises:
        UsageError: the catalog or an adapter cannot be read.
    """
    kept = read_standing(adapters)
    new, standing = real_place(new), kept.uri if kept else in_use and real_place(in_use)
    if standing is None or not is_adapter(standing):
        gone = f"takes the place of {standing}, which is gone" if kept else "is the first one"
        return _take(adapters, new, f"the adapter {new} {gone}")
    if standing == new:
        return _take(adapters, new, f"the adapter {new} serves") if kept is None else Choice(new, kept.why)
    with local_tree(standing) as theirs:
        if reason := _unusable(theirs):
            gone = f"takes the place of {standing}, which cannot be used: {reason}"
            return _take(adapters, new, f"the adapter {new} {gone}")
        if kept and kept.person is not None and not fresh:
            return Choice(standing, f"the adapter {standing} serves, because {kept.person} promoted it")
        if (worth := judge_worth(read_metrics(new))).state == "weak" and not settings.gate.allow_weak_adapter:
            return Choice(standing, f"the adapter {standing} keeps serving; the new one, {new}: {worth.text}")
        with local_tree(new) as ours:
            found = read_challenge(adapters, adapter_id(ours), adapter_id(theirs))
            found = found or _recorded(adapters, challenge(ours, theirs, catalog, settings, progress))
    if found.won:
        return _take(adapters, new, found.text, found)
    advice = f"to let it serve anyway: enrich promote --adapters {adapters} --adapter {new}"
    return Choice(standing, f"the adapter {standing} keeps serving: {found.text}; {advice}", found)


def _recorded(adapters: str, found: Challenge) -> Challenge:
    store = open_store(adapters, create=True)
    store.put(_key(found.new, found.standing), (found.model_dump_json(indent=1) + "\n").encode())
    return found


def _take(adapters: str, adapter: str, why: str, found: Challenge | None = None) -> Choice:
    _let_serve(adapters, adapter, found.new if found else identity(adapter), None, why)
    return Choice(adapter, why, found)


def is_adapter(uri: str) -> bool:
    """Whether there is a complete adapter at that location."""
    return open_store(uri).head(RECORD_FILE) is not None


@contextmanager
def _opened(adapter: str) -> Iterator[Path]:
    """The adapter's files in a local directory; UsageError if there is none at that location."""
    if not is_adapter(adapter):
        raise UsageError(f"adapter {adapter}: not found; name one that `enrich finetune` wrote")
    with local_tree(adapter) as folder:
        yield folder


def _unusable(folder: Path) -> str | None:
    """Why the adapter in a local directory cannot be used: it is damaged, or of another version; None if it can."""
    try:
        read_adapter(folder)
    except UsageError as error:
        return str(error).removeprefix(f"adapter {folder}: ")
    return None


def identity(adapter: str) -> str:
    """The id of the adapter at a location. UsageError if there is none."""
    with _opened(adapter) as folder:
        return adapter_id(folder)


def read_challenge(adapters: str, new: str, standing: str | None) -> Challenge | None:
    """What was found when these two adapters, named by their ids, were compared; None if they were not.

    Without a `standing` one, any that the new one was compared with: it may be in use without ever being chosen.
    """
    store = open_store(adapters)
    if standing is None:
        found = sorted(
            info.key for info in store.list(CHALLENGES) if info.key.startswith(_key(new, "")[: -len(".json")])
        )
        key = found[-1] if found else ""
    else:
        key = _key(new, standing)
    if not key or store.head(key) is None:
        return None
    try:
        return Challenge.model_validate_json(store.get(key)[0])
    except ValidationError:
        return None  # compared again


def _key(new: str, standing: str) -> str:
    return f"{CHALLENGES}/{new}-{standing}.json"
