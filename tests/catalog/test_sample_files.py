"""The sample on disk: the same bytes for the same seed, restartable, and a truth that holds."""

import csv
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from enrich.catalog.read import read_catalog
from enrich.catalog.sample import generate
from enrich.catalog.sample.draw import render
from enrich.catalog.sample.encode import encode
from enrich.catalog.sample.generate import COLUMNS, write_sample
from enrich.catalog.sample.products import sample_product
from enrich.catalog.sample.spec import BASE, DEMO
from enrich.errors import RunFailed, UsageError
from enrich.images import ImageRefused, decode
from enrich.settings import PhotoLimits


def _files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    summary = write_sample(root / "catalog", products=24, bucket=16, seed=3, bucket_out=root / "bucket")
    assert (summary.products, summary.bucket) == (24, 16 + 6 + 1 + 5)
    assert summary.categories == len(read_catalog(root / "catalog").categories)
    return root


@pytest.fixture(scope="module")
def truth(sample: Path) -> dict:
    return json.loads((sample / "catalog/truth.json").read_text("utf-8"))


def test_the_same_seed_gives_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "catalog", products=24, bucket=16, seed=3, bucket_out=tmp_path / "bucket")
    assert _files(tmp_path) == _files(sample)


def test_processes_draw_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(generate, "_PHOTOS_PER_TASK", 3)
    seen: list[tuple[int, int]] = []
    write_sample(tmp_path / "two", products=24, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 24) for done in range(3, 25, 3)]
    monkeypatch.setattr(generate.os, "cpu_count", lambda: 1)
    write_sample(tmp_path / "one", products=24)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_a_cut_short_run_continues(sample: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "catalog", products=24, seed=3)
    whole = _files(tmp_path / "catalog")
    images = sorted((tmp_path / "catalog/images").iterdir())
    for left in ("catalog.csv", "truth.json"):
        (tmp_path / "catalog" / left).unlink()
    images[0].unlink()
    images[0].with_name(f".{images[0].name}.part").write_bytes(b"half a pho")
    kept = images[1].stat().st_mtime_ns
    write_sample(tmp_path / "catalog", products=24, seed=3)
    assert _files(tmp_path / "catalog") == whole
    assert images[1].stat().st_mtime_ns == kept


def test_catalog_has_the_columns_of_the_tutorial(sample: Path, truth: dict) -> None:
    with (sample / "catalog/catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == 24
    for row in rows:
        told = truth["images"][row["local_image_path"]]
        assert (row["product_code"], row["title"]) == (told["product_code"], told["title"])
        assert float(row["full_price"]) == float(row["price"]) == told["price"]
        assert row["currency_code"] == truth["currency"] == "EUR"


def test_reading_the_catalog_gives_the_truth(sample: Path, truth: dict) -> None:
    catalog = read_catalog(sample / "catalog")
    assert not catalog.dropped
    assert catalog.currency == "EUR"
    read = {Path(p.image_path).name: (p.product_code, p.title, p.category, p.price) for p in catalog.products}
    assert read == {
        Path(key).name: (told["product_code"], told["title"], told["category"], told["price"])
        for key, told in truth["images"].items()
    }


def test_truth_of_the_bucket_is_what_decoding_finds(sample: Path, truth: dict) -> None:
    expected = truth["bucket"]
    assert set(expected) == set(_files(sample / "bucket"))
    kinds = []
    for key, content in _files(sample / "bucket").items():
        try:
            decode(content, PhotoLimits())
            found = "ok"
        except ImageRefused as refused:
            found = str(refused.kind)
            kinds.append(found)
        assert found == expected[key].get("error_kind", expected[key]["status"]), key
    assert sorted(kinds) == ["empty", "not_an_image", "not_an_image", "too_many_pixels", "truncated"]


def test_bucket_is_awkward(sample: Path, truth: dict) -> None:
    files = _files(sample / "bucket")
    contents = list(files.values())
    twice = [key for key, content in files.items() if contents.count(content) == 2]
    assert len(twice) == 2
    assert truth["bucket"][twice[0]] == truth["bucket"][twice[1]]
    names = "".join(files)
    assert all(character in names for character in " é%")
    assert len(files["2026/11/sku-bomb.png"]) <= 100_000
    labelled = {told["product_code"] for told in truth["images"].values()}
    assert labelled.isdisjoint(told.get("product_code") for told in truth["bucket"].values())


def test_truth_states_the_optimum(truth: dict) -> None:
    told = {name: truth[name] for name in ("version", "dialect", "seed", "sigma", "best_mdape", "ladder")}
    assert told == {
        "version": 1, "dialect": "demo", "seed": 3, "sigma": 0.15, "best_mdape": 0.1012,
        "ladder": [[500, 10], [2000, 50], [1e9, 100]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "most"),
    [("jpg", 4), ("png", 0), ("webp", 4), ("gif", 8), ("cmyk.jpg", 6), ("exif.jpg", 4), ("palette.png", 8)],
)
def test_encodings_decode_to_the_photo(encoding: str, most: float) -> None:
    photo = render(sample_product(0, 1, DEMO), 0)
    data = encode(photo, encoding, np.random.default_rng(0))
    shown = np.asarray(decode(data, PhotoLimits()), np.float32)
    assert np.abs(shown - np.asarray(photo, np.float32)).mean() <= most


def test_hidden_colours_and_16_bits_are_in_the_files() -> None:
    photo = render(sample_product(0, 1, DEMO), 0)
    alpha = Image.open(BytesIO(encode(photo, "alpha.png", np.random.default_rng(0))))
    assert alpha.getpixel((0, 0)) == (255, 0, 255, 0)
    assert Image.open(BytesIO(encode(photo, "gray16.png", np.random.default_rng(0)))).mode == "I;16"


def test_drawing_needs_numpy_and_pillow_only() -> None:
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['polars', 'pyarrow', 'pydantic', 'torch', 'httpx', 'yaml']))\n"
        "import enrich.catalog.sample.draw, enrich.catalog.sample.encode, enrich.catalog.sample.products\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_another_dialect_is_another_retailer(tmp_path: Path) -> None:
    write_sample(tmp_path / "catalog", products=6, dialect=BASE)
    catalog = read_catalog(tmp_path / "catalog")
    assert catalog.currency == "EUR"
    assert "BELTS" not in catalog.categories


def test_a_directory_with_another_sample_is_refused(sample: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_sample(sample / "catalog", products=24, bucket=16, seed=4, bucket_out=sample / "bucket")
    assert str(caught.value) == (
        f"{sample}/catalog holds a sample with seed 3, not 4; choose another directory or delete it first"
    )


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("")
    with pytest.raises(RunFailed) as caught:
        write_sample(tmp_path, products=1)
    name = f"{sample_product(0, 0, DEMO).product_code}.webp"
    assert str(caught.value) == f"sample file {tmp_path}/images/{name}: File exists; mend that and run again"


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sample of 0 products, 120 bucket photos and seed 0: give 1 to 1,000,000"):
        write_sample(tmp_path, products=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        write_sample(tmp_path / "file", products=1)
    assert str(caught.value) == f"sample directory {tmp_path}/file: File exists; choose another directory"
