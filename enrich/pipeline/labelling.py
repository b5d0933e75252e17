"""Pick the products that a person should review next, for the review page."""

from dataclasses import dataclass

from pydantic import ValidationError

from enrich.errors import UsageError
from enrich.output.picks import MOST_PICKS, PickFile, pick, undecided
from enrich.output.products import read_products
from enrich.pipeline.kept_apart import check_file
from enrich.storage import folder_of_file, open_store

LABEL_KEY = "label.json"
MAX_FILE_BYTES = 128 << 20


@dataclass(frozen=True)
class Picked:
    """A file of products to show to a person."""

    uri: str
    products: int
    random: int  # of them, picked at random
    undecided: int  # products with an answer that nobody decided on, before


def label(output: str, budget: int, to: str | None = None) -> Picked:
    """Pick `budget` products of products.parquet that are most worth a decision, and write them for `enrich review`.

    Args:
        to: the file, a local path or s3://bucket/key; None: label.json in the output.

    Raises:
        UsageError: the budget is not 1 to MOST_PICKS, `to` is one of the output's own files, nothing was published
            there yet, or people decided on all of it.
    """
    if not 1 <= budget <= MOST_PICKS:
        raise UsageError(f"budget {budget}: give the number of products to pick, 1 to {MOST_PICKS:,}")
    target = open_store(output, must_exist=True)
    folder, name = (output, LABEL_KEY) if to is None else folder_of_file("--to", to)
    check_file("--to", f"{folder}/{name}", output)
    products = read_products(target)
    if products.etag is None:
        raise UsageError(f"output {target.uri}: no products.parquet; make one with `enrich run`")
    rows = undecided(products.table)
    if rows.is_empty():
        raise UsageError(f"output {target.uri}: no undecided product with an answer is left; enrich more photos first")
    picks = pick(rows, budget)
    store = open_store(folder, create=True)
    file = PickFile(format="enrich-label-1", output=target.uri, picks=tuple(picks))
    store.put(name, (file.model_dump_json(indent=1) + "\n").encode())
    return Picked(store.uri_of(name), len(picks), sum(one.picked == "random" for one in picks), rows.height)


def read_picks(file: str) -> PickFile:
    """The file that `label` wrote; UsageError if it cannot be read or is something else."""
    folder, name = folder_of_file("--picked", file)
    store = open_store(folder, must_exist=True)
    if store.head(name) is None:
        raise UsageError(f"--picked {file}: no such file; write it with `enrich label`")
    try:
        return PickFile.model_validate_json(store.get(name, MAX_FILE_BYTES)[0])
    except ValidationError as error:
        raise UsageError(f"--picked {file}: is not a file that `enrich label` wrote; write it again") from error
