"""Samples whose products have several photos: files, table, truth, and both optima; and one photo stays as it was."""

import csv
import hashlib
import json
import math
import re
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from enrich.errors import UsageError
from enrich.photos.decode import ImageRefused, decode
from enrich.settings.photos import PhotoLimits
from sample import photos
from sample.dialects import BASE, DEMO
from sample.draw import render
from sample.generate import COLUMNS, write_sample
from sample.pricing import on_ladder
from sample.products import SampleProduct, sample_product, views_of
from sample.spec import HIDDEN, VIEWS
from sample.unseen import from_main_photo, on_main_photo

MOST = 4
HIDDEN_NAMES = {name: view for view, of in HIDDEN.items() for name in of}

# Index, seed, and the mean light of each ninth of the photo, row by row.
PINNED = [
    (0, 0, [233, 191, 235, 199, 141, 197, 229, 177, 222]),
    (3, 1, [165, 185, 172, 95, 76, 103, 178, 169, 187]),
    (7, 0, [232, 235, 234, 163, 139, 197, 210, 208, 210]),
    (12, 5, [221, 206, 231, 124, 83, 189, 182, 182, 179]),
    (20, 2, [215, 110, 205, 158, 48, 159, 167, 128, 167]),
]


def _files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of 24 pixels, in this process."""
    monkeypatch.setattr(photos, "render", lambda product, view_seed, view="front": Image.new("RGB", (24, 24), "red"))
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def products() -> list[SampleProduct]:
    return [sample_product(5, index, DEMO, MOST) for index in range(3000)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    summary = write_sample(
        root / "catalog", products=16, bucket=6, seed=3, bucket_out=root / "bucket", holdout=4, photos=MOST
    )
    assert (summary.products, summary.holdout, summary.bucket) == (16, 4, 6 + 6 + 3 + 5)
    return root


@pytest.fixture(scope="module")
def truth(sample: Path) -> dict:
    return json.loads((sample / "catalog/truth.json").read_text("utf-8"))


# --- one photo


def test_except_for_further_fields_one_photo_writes_what_it_did_before_there_were_several(
    tmp_path: Path, quick: None
) -> None:
    # Pinned: the bundled base was trained on these drawings, and scores of the demo are of these products.
    catalog = tmp_path / "catalog"
    write_sample(catalog, products=40, bucket=16, seed=3, bucket_out=tmp_path / "bucket", holdout=6)
    truth = re.sub(r'"fields": \{.*?\}, ', "", (catalog / "truth.json").read_text("utf-8"))
    earlier = {"truth.json": truth}
    for name in ("catalog.csv", "holdout/catalog.csv"):
        table = pl.read_csv(catalog / name, infer_schema=False)
        earlier[name] = table.select(COLUMNS).write_csv()
    assert {name: hashlib.sha256(text.encode()).hexdigest() for name, text in earlier.items()} == {
        "catalog.csv": "3b75cc1269cfd4ea9d5ece57fe9d1ef116e121ea0b661dfc576cea6e0ebd8037",
        "truth.json": "abcdc96f89ba99a583f24f4ade95ba1ffa7dccebbab9c3f11f625dc1c5fe433b",
        "holdout/catalog.csv": "a7fc661204d1ce5fa8617cc24c7fa1f9e1672b76f23929ac1f2c89432d62810d",
    }


@pytest.mark.parametrize(("index", "seed", "sums"), PINNED)
def test_the_front_is_drawn_as_before(index: int, seed: int, sums: list[int]) -> None:
    # Pinned: mean light of the ninths of the photo; not its hash, since the last bit may differ between processors.
    photo = render(sample_product(seed, index, DEMO), seed, 240).convert("L").resize((3, 3), Image.Resampling.BOX)
    assert np.abs(np.asarray(photo).ravel().astype(int) - sums).max() <= 1


# --- products


def test_the_number_of_photos_is_evenly_distributed(products: list[SampleProduct]) -> None:
    for most in (2, 3, 4):
        counts = Counter(len(views_of(5, index, most)) for index in range(3000))
        assert set(counts) == set(range(1, most + 1))
        assert max(counts.values()) - min(counts.values()) < 0.08 * 3000
    for product in products:
        assert product.views[0] == "front"
        assert list(product.views) == [view for view in VIEWS if view in product.views]
    shares = {view: statistics.fmean(view in product.views for product in products) for view in VIEWS[1:]}
    assert all(share == pytest.approx(0.5, abs=0.03) for share in shares.values())


def test_a_hidden_fact_is_in_a_third_of_the_products_with_its_photo_and_in_no_other(
    products: list[SampleProduct],
) -> None:
    for name, view in HIDDEN_NAMES.items():
        assert all((name in product.attributes) == (view in product.views) for product in products)
        values = [product.attributes[name] for product in products if name in product.attributes]
        assert statistics.fmean(value not in ("plain", "basic") for value in values) == pytest.approx(1 / 3, abs=0.04)


def test_except_for_what_further_photos_show_it_is_the_same_product(products: list[SampleProduct]) -> None:
    for index, product in enumerate(products[:300]):
        alone = sample_product(5, index, DEMO)
        assert on_main_photo(product) == alone.attributes
        assert (product.product_code, product.category) == (alone.product_code, alone.category)
        raised = sum(
            DEMO.prices.effects.get(f"{name}={product.attributes.get(name)}", 0.0) for name in ("back", "label")
        )
        assert math.log(product.noiseless_price / alone.noiseless_price) == pytest.approx(raised, abs=1e-3)
        word = {"emblem": "Emblem ", "panel": "Two-Tone "}.get(product.attributes.get("back", ""), "")
        assert product.title == word + alone.title


# --- optima


def _best_mdape(answers: list[float], products: list[SampleProduct]) -> float:
    return min(
        statistics.median(abs(factor * answer / p.price - 1) for answer, p in zip(answers, products, strict=True))
        for factor in np.linspace(0.85, 1.4, 56)
    )


def test_the_optimum_of_the_main_photo_is_what_its_best_answer_scores(products: list[SampleProduct]) -> None:
    exact, best = from_main_photo(products[:1000], DEMO, MOST)
    alone = [sample_product(5, index, DEMO) for index in range(3000)]
    assert statistics.fmean(a.title == p.title for a, p in zip(alone, products, strict=True)) == pytest.approx(
        exact, abs=0.025
    )
    assert _best_mdape([p.noiseless_price for p in alone], products) == pytest.approx(best.mdape, abs=0.01)
    log = np.log([p.price / a.noiseless_price for a, p in zip(alone, products, strict=True)])
    for level, width in best.log_widths.items():
        inside = max(np.mean(np.abs(log - centre) <= width / 2) for centre in np.linspace(-0.1, 0.5, 61))
        assert inside == pytest.approx(float(level), abs=0.02)


def test_the_more_photos_there_may_be_the_less_the_first_one_tells(products: list[SampleProduct]) -> None:
    exact, mdape = zip(
        *((share, best.mdape) for share, best in (from_main_photo(products[:200], DEMO, n) for n in (2, 3, 4))),
        strict=True,
    )
    assert exact == pytest.approx((1 - 1 / 18, 1 - 1 / 9, 1 - 1 / 6), abs=1e-4)
    assert mdape[0] < mdape[1] < mdape[2]


def test_a_title_that_does_not_depend_on_it_can_be_known(products: list[SampleProduct]) -> None:
    silent = replace(DEMO, words={name: word for name, word in DEMO.words.items() if not name.startswith("back=")})
    assert from_main_photo(products[:50], silent, MOST)[0] == 1.0
    assert from_main_photo(products[:50], BASE, MOST)[0] < 0.5  # it also names what the others leave unsaid


def test_truth_states_both_optima(truth: dict) -> None:
    both = truth["optimum"]
    fields = {known: both[known].pop("fields") for known in both}
    assert list(fields["all_photos"]) == ["colour", "fabric", "sleeve", "closure", "heel", "back", "label"]
    assert set(fields["all_photos"].values()) == {1.0}
    # Half of the products have no such photo, so that an empty value is the best guess.
    assert fields["main_photo"] == fields["all_photos"] | {"back": 0.5, "label": 0.5}
    assert both["all_photos"] == {
        "title_exact": 1.0,
        **{name: truth[name] for name in ("best_mdape", "ideal_intervals")},
    }
    assert both["main_photo"]["title_exact"] == pytest.approx(1 - 1 / 6, abs=1e-3)
    assert both["main_photo"]["best_mdape"] > both["all_photos"]["best_mdape"] + 0.015
    widths = [both[known]["ideal_intervals"]["0.8"]["log_width"] for known in ("main_photo", "all_photos")]
    assert widths[0] > widths[1] + 0.1
    assert truth["photos"] == MOST


# --- files


@pytest.mark.parametrize(("table", "told_of", "below"), [("", "images", ""), ("holdout/", "holdout", "holdout/")])
def test_a_row_names_all_photos_in_their_order(sample: Path, truth: dict, table: str, told_of: str, below: str) -> None:
    with (sample / "catalog" / table / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(truth[told_of])
    listed: list[str] = []
    for row in rows:
        keys = row["local_image_path"].split("|")
        told = truth[told_of][below + keys[0]]
        assert list(told["photos"]) == [below + key for key in keys]
        assert told["photos"][below + keys[0]]["view"] == "front"
        assert (row["title"], float(row["price"])) == (told["title"], told["price"])
        for number, key in enumerate(keys, start=1):
            assert key.startswith(f"images/{row['product_code']}/{number}.")
        hidden = told["attributes"].get("back", "plain") != "plain"
        assert (told["title"] == told["main_photo"]["title"]) != hidden
        assert told["noiseless_price"] >= told["main_photo"]["noiseless_price"] - 1e-4
        assert {name: row[name] for name in told["fields"]} == told["fields"]
        assert told["main_photo"]["fields"] == told["fields"] | {"back": "", "label": ""}
        listed += keys
    assert len({len(told["photos"]) for told in truth[told_of].values()}) > 1
    assert set(listed) == {f"images/{key}" for key in _files(sample / "catalog" / table / "images")}


def test_a_product_of_the_bucket_is_a_folder(sample: Path, truth: dict) -> None:
    files, expected = _files(sample / "bucket"), truth["bucket"]
    folders: dict[str, dict[str, str]] = {}
    for key, content in files.items():
        try:
            decode(content, PhotoLimits())
            found = "ok"
        except ImageRefused as refused:
            found = str(refused.kind)
        folders.setdefault(key.rpartition("/")[0], {})[key] = found
    assert set(folders) == set(expected)
    for folder, of_folder in folders.items():
        told = expected[folder]
        assert of_folder == {key: photo.get("error_kind", "ok") for key, photo in told["photos"].items()}
        assert told["status"] == ("ok" if "ok" in of_folder.values() else "failed")
        numbers = [int(Path(key).stem) for key in told["photos"]]
        assert numbers == sorted(numbers)
    partly = [of for of in folders.values() if "ok" in of.values() and set(of.values()) != {"ok"}]
    assert len(partly) == 2
    failed = [told["error_kind"] for told in expected.values() if told["status"] == "failed"]
    assert sorted(failed) == ["empty", "not_an_image", "not_an_image", "too_many_pixels", "truncated"]


def test_a_copied_product_has_the_bytes_of_another(sample: Path, truth: dict) -> None:
    files = _files(sample / "bucket")
    copy = next(folder for folder in truth["bucket"] if "/copy of " in folder)
    original = next(
        f for f in truth["bucket"] if f.endswith(copy.partition("/copy of ")[2]) and f != copy and "broken" not in f
    )
    told = [truth["bucket"][folder] for folder in (copy, original)]
    assert told[0]["title"] == told[1]["title"]
    assert [files[key] for key in told[0]["photos"]] == [files[key] for key in told[1]["photos"]]


def test_the_same_seed_gives_the_same_bytes_also_after_a_cut(sample: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"products": 16, "bucket": 6, "seed": 3, "holdout": 4, "photos": MOST}
    whole = _files(sample)
    for name, content in whole.items():  # as a run leaves it that was cut short
        if not name.endswith((".csv", "truth.json")) and "/2." not in name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    settings = (sample / "catalog/truth.json").read_text("utf-8").splitlines()[0].rstrip(",") + "}"
    (tmp_path / "catalog/.sample.json").write_text(settings)
    drawn: list[int] = []
    write_sample(
        tmp_path / "catalog", bucket_out=tmp_path / "bucket", progress=lambda done, _: drawn.append(done), **arguments
    )
    assert _files(tmp_path) == whole
    told = json.loads(whole["catalog/truth.json"])
    of_products = [len(t["photos"]) for part in ("images", "holdout") for t in told[part].values()]
    usual = [len(t["photos"]) for f, t in told["bucket"].items() if " of sku" not in f and t["status"] == "ok"]
    assert drawn[-1] == sum(of_products) + sum(usual)


def test_a_sample_of_other_numbers_of_photos_is_another_sample(tmp_path: Path, quick: None) -> None:
    write_sample(tmp_path, products=3, holdout=0, photos=3)
    with pytest.raises(UsageError, match="contains a sample with photos 3, not 2"):
        write_sample(tmp_path, products=3, holdout=0, photos=2)
    with pytest.raises(UsageError, match="products with up to 5 photos: give 1 to 4"):
        write_sample(tmp_path / "other", products=3, photos=5)


def test_prices_are_on_the_ladder(products: list[SampleProduct]) -> None:
    for product in products[:200]:
        assert product.price == on_ladder(product.price, DEMO.prices.ladder)
