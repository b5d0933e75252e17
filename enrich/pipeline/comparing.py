"""vLLM compared with transformers on photos of a catalog, or on generated ones, without a run."""

from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from enrich.engines.adapter import Adapter
from enrich.engines.base import Request
from enrich.engines.parity import ParityRecord
from enrich.engines.start import choose_engine, need_vllm_imports
from enrich.engines.transformers_engine import open_adapter
from enrich.errors import ParityFailed, UsageError
from enrich.models.registry import layouts
from enrich.phases import Phases
from enrich.pipeline.drawn import draw_photo
from enrich.pipeline.predicting import photos_of
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.run.parity_gate import ask_transformers, compare_engines, mismatch, named_after, start_vllm
from enrich.pipeline.scoring import products_to_score
from enrich.settings.run import RunSettings
from enrich.storage.tree import local_tree, local_tree_or_file


def measure_parity(
    adapter: str, catalog: str | None, settings: RunSettings, rows: int, out: Path | None, progress: Progress = silent
) -> ParityRecord:
    """Compare vLLM with transformers on photos of a catalog, or on generated ones if `catalog` is None.

    Raises:
        UsageError: adapter or catalog cannot be used, or vLLM is not installed.
        ParityFailed: it is not the same model; the record is written to `out` anyway.
    """
    settings = settings.model_copy(update={"engine": "vllm"})
    choose_engine(settings.engine)
    phases = Phases()
    with ExitStack() as stack:
        loaded = open_adapter(stack.enter_context(local_tree(adapter)), settings.base)
        need_vllm_imports(loaded.path)

        def make_requests() -> list[Request]:
            return _drawn(loaded, rows) if catalog is None else _labelled(loaded, catalog, settings, rows, stack)

        requests, ours = ask_transformers(loaded, settings, make_requests, phases, progress)
        engine = start_vllm(loaded, settings, phases, progress)
        stack.callback(engine.close)
        record = compare_engines(engine, loaded, settings, requests, ours, progress)
    if out is not None:
        out.write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
    if not record.ok:
        raise ParityFailed(
            f"adapter {adapter}: {mismatch(record)}; {record.summary}; check the versions of vllm and transformers "
            "against constraints.txt"
        )
    return record


def _labelled(adapter: Adapter, catalog: str, settings: RunSettings, rows: int, stack: ExitStack) -> list[Request]:
    """The prompts of the first products to score. UsageError if none of them has a photo that can be read."""
    products = products_to_score(adapter, stack.enter_context(local_tree_or_file(catalog)))[0]
    first = adapter.calibration.first_squares
    photos = photos_of(products, settings.limits, adapter.preparation, first=first)
    shown = ((product.key, (*product.first, *product.prompts)) for product in islice(photos, rows))
    requests = [prompt for key, prompts in shown for prompt in named_after(key, prompts)]
    if not requests:
        raise UsageError(f"catalog {catalog}: none of its photos can be read; name another one")
    return requests


def _drawn(adapter: Adapter, count: int) -> list[Request]:
    """Prompts of one photo, of two, and so on, up to as many as the adapter's show; every other one at its first look,
    if there are two."""
    how, first = adapter.preparation, adapter.calibration.first_squares
    page = layouts()[how.layout].page
    return [
        Request(
            f"drawn {number}",
            tuple(
                page(
                    draw_photo(number + count * at),
                    first if first and not at and number % 2 else how.most(at),
                    how.image_size,
                )
                for at in range(1 + number % how.photos_per_product)
            ),
        )
        for number in range(count)
    ]
