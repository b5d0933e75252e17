"""The possible answers of a run's adapter, stored with the run, for people to choose from later."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from enrich.answers.fields import Field
from enrich.errors import PermanentFailure
from enrich.output.run_record import RunInfo
from enrich.storage import Store


class AskedField(Field):
    """A declared field, and the confidence below which its answers need review."""

    review_below: float = 0.0


class Asked(BaseModel):
    """The declared fields beyond title, category and price, the word for unknown, and the ids of categories."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[AskedField, ...] = ()
    unknown: str = ""
    category_ids: Mapping[str, str] = {}  # category -> its id in a standard's table


def write_asked(output: Store, run: RunInfo, asked: Asked) -> None:
    """Store `asked` next to run.json, unless it has neither fields nor ids."""
    if asked.fields or asked.category_ids:
        output.put(_key(run), asked.model_dump_json(indent=1).encode())


def read_asked(output: Store, run: RunInfo) -> Asked:
    """What `write_asked` stored, empty if there is no file; RunFailed if the file was not written by enrich."""
    if output.head(_key(run)) is None:
        return Asked()
    try:
        return Asked.model_validate_json(output.get(_key(run))[0])
    except ValidationError as error:
        raise PermanentFailure(f"{output.uri_of(_key(run))} names no fields; move it away and try again") from error


def _key(run: RunInfo) -> str:
    return f"{run.folder}asked.json"
