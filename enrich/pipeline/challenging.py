"""Compare a new adapter with the one that serves, on products that neither was trained on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import polars as pl
from pydantic import BaseModel, ConfigDict

from enrich.answers.parse import Answer
from enrich.catalog.read import Catalog
from enrich.catalog.split import split_catalog
from enrich.engines.adapter import Adapter
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import open_adapter
from enrich.pipeline.predicting import predict
from enrich.pipeline.progress import Progress, silent, unheard
from enrich.pipeline.scoring import catalog_to_score, trained_with
from enrich.scores.assess import SCORES_FILE
from enrich.scores.contest import Contest, contest, share_changed
from enrich.settings.run import RunSettings
from enrich.storage.tree import local_tree_or_file
from enrich.vocabulary import Product

MOST = 2_000  # products of each comparison: then a difference of 2 points is more than luck
FEWEST = 30  # decisions of people to compare by: the bootstrap of fewer takes luck for a difference


class Challenge(BaseModel):
    """The comparison of a new adapter with the standing one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    new: str  # ids of adapters
    standing: str
    contests: tuple[Contest, ...]
    changed: float  # share, 0..1, of products about which they say something else
    decided: int  # products of the frozen slice: those that people decided on, and that were never taught

    @property
    def won(self) -> bool:
        """Whether the new adapter is at least as good, within chance, at category, title and price."""
        return not any(one.lost for one in self.contests)

    @property
    def text(self) -> str:
        """One line without a full stop: the verdict and its basis."""
        lost = [f"{one.text} by {found.labels}" for found in self.contests for one in found.lost]
        products = max(one.products for one in self.contests)
        say = f"on {products:,} products that neither was trained on; {self.changed:.0%} of the answers differ"
        if lost:
            return f"the new adapter {self.new} is worse than {self.standing}, {'; '.join(lost)}, {say}"
        return f"the new adapter {self.new} is at least as good as {self.standing} {say}"


def challenge(new: Path, standing: Path, catalog: str, settings: RunSettings, progress: Progress = silent) -> Challenge:
    """Let two adapters, in local directories, answer the products of `catalog` that neither was trained on.

    These are: today's test split with today's labels; the products that the standing adapter was tested on, with the
    labels they had then, so that a catalog with corrupted labels does not judge by them; and the frozen slice of
    people's decisions (`enrich.catalog.frozen`), once it has FEWEST products. Titles are not compared on that slice:
    most of them were written by the standing adapter and accepted by a person, so another wording cannot score as high.

    Raises:
        UsageError: the catalog or one of the adapters cannot be read, or an adapter's base cannot be found.
    """
    ours, theirs = (open_adapter(path, settings.base) for path in (new, standing))
    with local_tree_or_file(catalog) as folder:
        labelled, splits = catalog_to_score(ours, folder, unheard)
        splits = splits or split_catalog(labelled.products, trained_with(ours).split)
        today, before = _some(splits.test), _some(_tested_before(theirs.path, labelled))
        decided = _some(splits.frozen) if len(splits.frozen) >= FEWEST else []
        both = list({one.product_code: one for one in (*today, *before, *decided)}.values())
        mine, other = (_answers(adapter, both, settings, progress) for adapter in (ours, theirs))

    def judged(labels: str, products: Sequence[Product], but: str | None = None) -> Contest:
        new, standing = ([found[one.product_code] for one in products] for found in (mine, other))
        return contest(labels, products, new, standing, but)

    contests = [judged("today's labels", today)]
    if before:
        contests.append(judged("the labels that the standing adapter was tested by", before))
    if decided:
        contests.append(judged("people's decisions", decided, but="title"))
    changed = share_changed(*([found[one.product_code] for one in both] for found in (mine, other)))
    kept = len(splits.frozen)
    return Challenge(new=ours.id, standing=theirs.id, contests=tuple(contests), changed=changed, decided=kept)


def _answers(
    adapter: Adapter, products: Sequence[Product], settings: RunSettings, progress: Progress
) -> dict[str, Answer | None]:
    progress("starting the engine", 0, 0)
    engine = start_engine(adapter, settings)
    try:
        what = f"comparing, adapter {adapter.id}"
        found = predict(engine, adapter, products, settings.limits, what, progress, photos=settings.photos_answered)
    finally:
        engine.close()
    return {product.product_code: one.answer for product, one in zip(products, found, strict=True)}


def _tested_before(adapter: Path, catalog: Catalog) -> list[Product]:
    """The products of the adapter's test split that still exist, with the labels they had then."""
    if not (adapter / SCORES_FILE).is_file():
        return []
    there = {product.product_code: product for product in catalog.products}
    table = pl.read_parquet(adapter / SCORES_FILE, columns=["product_code", "title", "category", "price"])
    return [
        replace(there[code], title=title, category=category, price=price)
        for code, title, category, price in table.iter_rows()
        if code in there
    ]


def _some(products: Sequence[Product]) -> list[Product]:
    return list(products) if len(products) <= MOST else Random(0).sample(list(products), MOST)
