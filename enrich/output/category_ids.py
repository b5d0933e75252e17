"""The ids that a run's adapter gives its categories, kept with the run: a person may choose any of these later."""

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from enrich.errors import RunFailed
from enrich.output.run_record import RunInfo
from enrich.storage import Store

_IDS = TypeAdapter(dict[str, str])


def write_category_ids(output: Store, run: RunInfo, ids: Mapping[str, str]) -> None:
    """Keep the id of each category beside run.json; nothing where there are none."""
    if ids:
        output.put(_key(run), _IDS.dump_json(dict(ids), indent=1))


def read_category_ids(output: Store, run: RunInfo) -> Mapping[str, str]:
    """Category -> id, empty where its adapter knew none; RunFailed if the file was not written by enrich."""
    if output.head(_key(run)) is None:
        return {}
    try:
        return _IDS.validate_json(output.get(_key(run))[0])
    except ValidationError as error:
        raise RunFailed(f"{output.uri_of(_key(run))} holds no ids; move it away and try again") from error


def _key(run: RunInfo) -> str:
    return f"{run.folder}category_ids.json"
