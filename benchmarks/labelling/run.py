"""What a person's decision buys: N products picked by `enrich label` compared with N drawn at random, round after
round.

A sample catalog is divided, by titles, into labelled products to start from, a bucket of photos, and test products. The
base is fine-tuned on the labelled ones. Then each round, both ways from the same adapter: the bucket is enriched, N
products are picked, their true labels are applied as `enrich review --apply --catalog` does, which freezes a fifth of
them, and the base is fine-tuned again on the larger catalog and scored on the test products. Each seed is another
division. A product of a category that the output has not seen is rejected, as a person can do no more on the page.

    python -m benchmarks.labelling.run --out labelling
    python -m benchmarks.labelling.run --out labelling --rounds 0     # only how fast wrong rows are found

With `--adapter` nothing is fine-tuned: a bucket of a new sample is answered by it, and each seed is a part of that.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import polars as pl

from benchmarks.results import record
from benchmarks.sample_quality.run import demo_settings
from enrich.catalog.read import Catalog, read_catalog
from enrich.output.decisions import FILE_FORMAT, DecidedPhoto, Decision, DecisionFile, run_mark
from enrich.output.observed import observe
from enrich.output.picks import Pick, pick, undecided
from enrich.output.reviews import read_reviews
from enrich.pages.review_page import review_queue
from enrich.pipeline.decided import categories, find_run
from enrich.pipeline.finetuning import finetune
from enrich.pipeline.reviewing import apply_decisions
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.scoring import score_adapter
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RunSettings
from enrich.storage import open_store
from enrich.vocabulary import Product, same_design
from sample.generate import write_sample
from sample.make import DIALECTS

Numbers = dict[str, float]
Measured = list[
    dict[str, Any]
]  # what (scores, wrong rows or an estimate of the error), way, decisions, and the numbers
NEW_SAMPLE = 77  # a seed that no other benchmark draws
VALUE = "price of wrong categories, per decision"
SCORES, WRONG, ESTIMATE = "scores", "wrong", "estimate"
CATALOG_COLUMNS = ("product_code", "title", "category3_code", "full_price", "currency_code", "local_image_path")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for catalogs, adapters and outputs")
    parser.add_argument("--base", type=Path, default=Path(TINY_MODEL_PATH))
    parser.add_argument("--start", type=int, default=200, help="labelled products to begin with")
    parser.add_argument("--bucket", type=int, default=1500, help="products to pick from")
    parser.add_argument("--test", type=int, default=500, help="products to score on")
    parser.add_argument("--budget", type=int, default=150, help="decisions a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(5)], help="those measured before are kept")
    parser.add_argument("--language", choices=tuple(DIALECTS), default="en")
    parser.add_argument("--settings", type=json.loads, default={}, help="training settings as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--adapter", type=Path, help="of a sample catalog: only how fast wrong rows of it are found")
    arguments = parser.parse_args()
    if arguments.adapter:
        record("labelling", tables(found_with(arguments), len(arguments.seeds)))
        return

    catalog = arguments.out / "catalog"
    if not (catalog / "catalog.csv").exists():
        products = arguments.start + arguments.bucket + arguments.test
        write_sample(catalog, products, dialect=DIALECTS[arguments.language], holdout=0)
    found: Measured = []
    for seed in arguments.seeds:
        kept = arguments.out / f"seed-{seed}.json"
        if not kept.exists():
            kept.write_text(json.dumps(measure(arguments, read_catalog(catalog), seed)))
        found += json.loads(kept.read_text())
    record("labelling", tables(found, len(arguments.seeds)))


def measure(arguments: argparse.Namespace, catalog: Catalog, seed: int) -> Measured:
    """Both ways from one division of the catalog."""
    place = arguments.out / f"seed-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    sizes = {name: getattr(arguments, name) for name in ("start", "bucket", "test")}
    parts = divided(catalog.products, sizes, seed)
    truth = {one.product_code: one for one in parts["bucket"]}
    for name in ("start", "test"):
        write_catalog(place / name, parts[name], catalog.currency or "")
    fill(place / "bucket", parts["bucket"])
    first = scored(arguments, place, place / "start", place / "adapter-0")
    enrich(arguments, place, place / "adapter-0", place / "output")
    found = look_for_wrong(pl.read_parquet(place / "output" / "products.parquet"), truth, arguments.budget, seed)
    for way in ("picked", "random") if arguments.rounds else ():
        found.append(measured(SCORES, way, 0, first))
        shutil.copytree(place / "start", place / way / "catalog")
        shutil.copytree(place / "output", place / way / "output")
        for number in range(1, arguments.rounds + 1):
            found += decide(place / way, way, truth, arguments.budget, Random(f"{seed} {number}"))
            adapter = place / way / f"adapter-{number}"
            scores = scored(arguments, place, place / way / "catalog", adapter)
            found.append(measured(SCORES, way, number * arguments.budget, scores))
            print(f"seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
            if number < arguments.rounds:
                enrich(arguments, place, adapter, place / way / "output")
    return found


def found_with(arguments: argparse.Namespace) -> Measured:
    """How fast wrong rows are found among the answers of an adapter, in as many parts as there are seeds."""
    place = arguments.out / "answered"
    if not (place / "output" / "products.parquet").exists():
        catalog = place / "catalog"
        write_sample(catalog, arguments.bucket, seed=NEW_SAMPLE, dialect=DIALECTS[arguments.language], holdout=0)
        fill(place / "bucket", read_catalog(catalog).products)
        enrich(arguments, place, arguments.adapter, place / "output")
    truth = {one.product_code: one for one in read_catalog(place / "catalog").products}
    table = (
        pl.read_parquet(place / "output" / "products.parquet")
        .sort("product_id")
        .sample(fraction=1, shuffle=True, seed=0)
    )
    parts = len(arguments.seeds)
    return [
        one
        for number, seed in enumerate(arguments.seeds)
        for one in look_for_wrong(table.gather_every(parts, number), truth, arguments.budget, seed)
    ]


def fill(bucket: Path, products: Iterable[Product]) -> None:
    """The main photos of products, named by their codes."""
    for one in products:
        link(Path(one.image_paths[0]), bucket / f"{one.product_code}{Path(one.image_paths[0]).suffix}")


def measured(what: str, way: str, decisions: int, numbers: Numbers) -> dict[str, Any]:
    return {"what": what, "way": way, "decisions": decisions, "numbers": numbers}


def divided(products: Sequence[Product], sizes: dict[str, int], seed: int) -> dict[str, list[Product]]:
    """Products in parts of these sizes; all those of a title are in one, so that some parts have a few more."""
    designs: dict[str, list[Product]] = defaultdict(list)
    for product in products:
        designs[same_design(product.title)].append(product)
    order = sorted(designs)
    Random(seed).shuffle(order)
    parts: dict[str, list[Product]] = {name: [] for name in sizes}
    for name, size in sizes.items():
        while order and len(parts[name]) < size:
            parts[name] += designs[order.pop()]
    return parts


def write_catalog(folder: Path, products: Iterable[Product], currency: str) -> None:
    """A catalog of these products, with their main photos."""
    rows = []
    for one in products:
        photo = Path(one.image_paths[0])
        link(photo, folder / "images" / f"{one.product_code}{photo.suffix}")
        values = (one.product_code, one.title, one.category, one.price, currency)
        rows.append((*values, f"images/{one.product_code}{photo.suffix}"))
    pl.DataFrame(rows, CATALOG_COLUMNS, orient="row").write_csv(folder / "catalog.csv")


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def scored(arguments: argparse.Namespace, place: Path, catalog: Path, adapter: Path) -> Numbers:
    """Scores of an adapter that is fine-tuned on `catalog`, on the test products."""
    rows = len(read_catalog(catalog).products)
    settings = demo_settings(arguments, rows, {"language": arguments.language})
    finetune(str(catalog), str(adapter), settings)
    test = score_adapter(str(adapter), str(place / "test"), run_settings(arguments))[0].metrics["test"]
    return {
        "category": test["category_accuracy"],
        "title exact": test["title_exact"],
        "title chrF": test["title_chrf"],
        "MdAPE": test["price"]["mdape"],
    }


def run_settings(arguments: argparse.Namespace) -> RunSettings:
    return RunSettings(engine="transformers", device=arguments.device, gate=GateSettings(enabled=False))


def enrich(arguments: argparse.Namespace, place: Path, adapter: Path, output: Path) -> None:
    run_enrichment(RunRequest(str(place / "bucket"), str(adapter), str(output), run_settings(arguments)))


def wrong(row: dict[str, Any], truth: Product) -> Numbers:
    """Whether a row is wrong in each field, 0 or 1, and at what price."""
    category, title = row["category"] != truth.category, same_design(row["title"]) != same_design(truth.title)
    price = row["price"] is None or not truth.price or abs(row["price"] / truth.price - 1) > 0.2
    return {
        "category": category, "title": title, "price off by over 20 %": price,
        "any of these": category or title or price, VALUE: category * (truth.price or 0.0),
    }  # fmt: skip


def look_for_wrong(table: pl.DataFrame, truth: dict[str, Product], budget: int, seed: int) -> Measured:
    """How many wrong rows a number of decisions meets, by the ways to order them. No model learns from these."""
    rows = undecided(table)
    by_id = {row["product_id"]: row for row in rows.to_dicts()}
    orders: dict[str, Callable[[int], list[str]]] = {
        "picked": lambda count: [one.product_id for one in pick(rows, count)],
        "picked, without the random part": lambda count: [
            one.product_id for one in pick(rows, count) if one.picked == "chosen"
        ],
        "review page (value at risk)": lambda count: review_queue(table, count)["product_id"].to_list(),
        "random": lambda count: sorted(by_id),  # all of them: what a draw finds on average
    }
    found = []
    for count in sorted({max(1, budget // 2), budget, 2 * budget}):
        for way, order in orders.items():
            met = [wrong(by_id[one], truth[one]) for one in order(count) if one in by_id]
            if met:
                found.append(measured(WRONG, way, count, {name: fmean(one[name] for one in met) for name in met[0]}))
    return found


def decide(place: Path, way: str, truth: dict[str, Product], budget: int, random: Random) -> Measured:
    """Pick products, label them as they really are, and put them into the way's catalog, as a person does. Returns how
    wrong the random picks say that categories are, and how wrong they are, if there are enough of them."""
    output = place / "output"
    store, table = open_store(str(output)), pl.read_parquet(output / "products.parquet")
    rows = undecided(table)
    if way == "picked":
        picks = pick(rows, budget)
    else:
        ids = random.sample(rows["product_id"].to_list(), min(budget, rows.height))
        picks = [Pick(product_id=one, picked="random", why=()) for one in ids]
    by_id = {row["product_id"]: row for row in rows.to_dicts()}
    labels = set(categories(table))
    decisions = [decision(by_id[one.product_id], truth[one.product_id], one, labels) for one in picks]
    runs = {run_id: find_run(store, run_id) for run_id in {one.run_id for one in decisions}}
    marks = {run_id: run_mark(run) for run_id, run in runs.items() if run}
    file = DecisionFile(
        format=FILE_FORMAT, output=store.uri, runs=marks, reviewed_by="truth", decisions=tuple(decisions)
    )
    (place / "decisions.json").write_text(file.model_dump_json())
    apply_decisions(str(output), place / "decisions.json", str(place / "catalog"))

    observed = observe(read_reviews(store), rows["adapter"][0])
    if observed is None:
        return []
    [one] = [one for one in observed.fields if one.field == "category"]
    real = fmean(wrong(row, truth[name])["category"] for name, row in by_id.items())
    numbers = {"wrong": one.wrong, "low": one.low, "high": one.high, "real": real}
    return [measured(ESTIMATE, way, one.decisions, numbers)]


def decision(row: dict[str, Any], truth: Product, picked: Pick, labels: set[str]) -> Decision:
    photos = tuple(DecidedPhoto(**{name: photo[name] for name in DecidedPhoto.model_fields}) for photo in row["photos"])
    about = Decision(
        product_id=row["product_id"], photos=photos, run_id=row["run_id"], decision="rejected", confirmed=(),
        picked=picked.picked,
    )  # fmt: skip
    if truth.category not in labels:
        return about
    right = {"title": truth.title, "category": truth.category, "price": truth.price}
    return about.model_copy(update={"decision": "edited", "confirmed": tuple(right), **right})


def tables(found: Measured, seeds: int) -> dict[str, Any]:
    grouped: dict[tuple[str, int, str], list[Numbers]] = defaultdict(list)
    for one in found:
        grouped[one["what"], one["decisions"], one["way"]].append(one["numbers"])

    def rows(what: str) -> list[dict[str, Any]]:
        some = sorted((key[1:], numbers) for key, numbers in grouped.items() if key[0] == what)
        return [{"decisions": count, "way": way, **told(numbers)} for (count, way), numbers in some]

    gains = [
        {"decisions": count, **told(differences(numbers, grouped[what, count, "random"]), sign="+")}
        for (what, count, way), numbers in sorted(grouped.items())
        if (what, way) == (SCORES, "picked") and count
    ]
    mean = f"mean of {seeds} seeds, with its standard error"
    told_of = {
        f"Scores on the test products after so many decisions: {mean}": rows(SCORES),
        "Picked less random, in pairs of the same seed": gains,
        f"Share of wrong rows among those looked at, answers of the first adapter: {mean}": rows(WRONG),
        "Wrong categories in the bucket, estimated from random picks": estimates(found),
    }
    return {title: table for title, table in told_of.items() if table}


def estimates(found: Measured) -> list[dict[str, Any]]:
    made = [one["numbers"] for one in found if one["what"] == ESTIMATE]
    held = sum(one["low"] <= one["real"] <= one["high"] for one in made)
    row = {
        "interval holds the true rate": f"{held} of {len(made)}",
        "mean estimate": f"{fmean([one['wrong'] for one in made] or [math.nan]):.1%}",
        "mean true rate": f"{fmean([one['real'] for one in made] or [math.nan]):.1%}",
    }
    return [row] if made else []


def differences(some: Sequence[Numbers], others: Sequence[Numbers]) -> list[Numbers]:
    return [{name: one[name] - other[name] for name in one} for one, other in zip(some, others, strict=True)]


def told(some: Sequence[Numbers], sign: str = "") -> dict[str, str]:
    """Means with their standard errors."""
    cells = {}
    for name in some[0]:
        values = [one[name] for one in some]
        mean, error = fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        form = ".1f" if name == VALUE else ".1%"
        cells[name] = f"{mean:{sign}{form}} ± {error:{form}}"
    return cells


if __name__ == "__main__":
    main()
