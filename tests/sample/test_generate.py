"""The sample on disk: the same bytes for the same seed, restartable, and a truth that holds."""

import csv
import errno
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pytest
from PIL import Image

from enrich.catalog.read import read_catalog
from enrich.errors import RunFailed, UsageError
from enrich.photos.decode import ImageRefused, decode
from enrich.settings.photos import PhotoLimits
from sample import generate, photos, place
from sample import truth as truth_module
from sample.dialects import BASE, DEMO
from sample.draw import render
from sample.encode import encode
from sample.generate import COLUMNS, write_sample
from sample.products import SampleProduct, sample_product


def _files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    summary = write_sample(root / "catalog", products=24, bucket=16, seed=3, bucket_out=root / "bucket", holdout=6)
    assert (summary.products, summary.holdout, summary.bucket) == (24, 6, 16 + 6 + 1 + 5)
    assert summary.categories == len(read_catalog(root / "catalog").categories)
    return root


@pytest.fixture(scope="module")
def truth(sample: Path) -> dict:
    return json.loads((sample / "catalog/truth.json").read_text("utf-8"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of 24 pixels, in this process."""
    monkeypatch.setattr(photos, "render", lambda product, view_seed, view="front": Image.new("RGB", (24, 24), "red"))
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 1)


def test_the_same_seed_gives_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "catalog", products=24, bucket=16, seed=3, bucket_out=tmp_path / "bucket", holdout=6)
    assert _files(tmp_path) == _files(sample)


def test_processes_draw_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(photos, "_PHOTOS_PER_TASK", 3)
    seen: list[tuple[int, int]] = []
    write_sample(tmp_path / "two", products=24, holdout=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 27) for done in range(3, 28, 3)]
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 1)
    write_sample(tmp_path / "one", products=24, holdout=3)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_a_cut_short_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path / "whole", products=24, seed=3, holdout=6)
    drawn: list[int] = []

    def stopped(product: SampleProduct, view_seed: int) -> Image.Image:
        drawn.append(1)
        if len(drawn) == 9:
            raise KeyboardInterrupt
        return render(product, view_seed)

    monkeypatch.setattr(photos, "render", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "catalog", products=24, seed=3, holdout=6)
    left = _files(tmp_path / "catalog")
    assert not {"catalog.csv", "truth.json"} & set(left)
    image = next(path for path in (tmp_path / "catalog/images").iterdir() if path.suffix == ".jpg")
    image.with_name(f".{image.name}.part").write_bytes(b"half a pho")
    kept = image.stat().st_mtime_ns
    write_sample(tmp_path / "catalog", products=24, seed=3, holdout=6)
    rests = [path for path in (tmp_path / "catalog/images").iterdir() if path.suffix == ".part"]
    assert len(rests) == 1  # of a photo that is whole: nobody reads it
    rests[0].unlink()
    assert _files(tmp_path / "catalog") == _files(tmp_path / "whole")
    assert image.stat().st_mtime_ns == kept
    assert len(drawn) == 9 + 24 + 6 - 8


def test_a_full_disk_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    room = [60_000]

    class Filling:
        """A file on a disk that fills up."""

        def __init__(self, file: IO[Any]) -> None:
            self.file = file

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            room[0] -= len(data)
            if room[0] < 0:
                self.file.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", **k: Filling(opened(self, mode, **k)) if "w" in mode else opened(self, mode, **k),
    )
    with pytest.raises(RunFailed, match="No space left on device; fix that and run again"):
        write_sample(tmp_path / "catalog", products=200, holdout=20)
    left = _files(tmp_path / "catalog")
    assert len(left) > 20
    assert not {"catalog.csv", "truth.json", "holdout/catalog.csv"} & set(left)
    for name, content in left.items():
        if not name.startswith("."):
            assert Image.open(BytesIO(content)).convert("RGB").size == (24, 24)
    assert not list((tmp_path / "catalog").rglob("*.part"))
    room[0] = 10**9  # room was made: the same call continues
    assert write_sample(tmp_path / "catalog", products=200, holdout=20).products == 200
    assert len(read_catalog(tmp_path / "catalog").products) == 200


def test_a_table_that_cannot_be_finished_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    def broken(*_: object) -> Iterator[bytes]:
        yield b"the first line\n"
        raise OSError(errno.ENOSPC, "No space left on device")

    for maker, name in (("_table", "holdout/catalog.csv"), ("_json", "truth.json"), ("_table", "catalog.csv")):
        with monkeypatch.context() as patch:
            patch.setattr(generate, maker, broken)
            with pytest.raises(RunFailed, match=f"{name}: No space left on device; fix that and run again"):
                write_sample(tmp_path / name, products=5, holdout=2 if name.startswith("holdout") else 0)
        left = set(_files(tmp_path / name))
        assert name not in left
        assert "catalog.csv" not in left  # so nothing takes it for a catalog
        assert not [path for path in left if path.endswith(".part")]
        assert write_sample(tmp_path / name, products=5, holdout=2 if name.startswith("holdout") else 0).products == 5


def test_a_disk_that_takes_no_more_ends_the_command_in_one_line(tmp_path: Path) -> None:
    """With files of at most 20 kB, less than most photos. -B, because Python's bytecode caches would be cut too."""
    command = f"ulimit -f 20; exec {sys.executable} -B -m enrich.cli catalog sample --out {tmp_path}/out --products 130"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: sample file .*\.(jpg|png|webp): File too large; fix that and run again", done.stderr.strip()
    )
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix in (".csv", ".part")]
    for path in left:
        if path.parent.name == "images":
            Image.open(path).convert("RGB")


def test_a_process_that_dies_while_drawing_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(photos, "_draw", _die)
    with pytest.raises(RunFailed, match="a process that generates photos died, perhaps out of memory"):
        write_sample(tmp_path / "catalog", products=130, holdout=0)
    assert "catalog.csv" not in _files(tmp_path / "catalog")


def _die(task: object, seed: int, most: int) -> int:
    os._exit(9)


def test_memory_does_not_grow_with_the_number_of_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(truth_module, "_OF_THE_OPTIMUM", 50)  # else both would need 16 MB for that

    def peak(products: int, again: str = "") -> int:
        tracemalloc.start()
        write_sample(tmp_path / f"{products}{again}", products=products, holdout=products // 10)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(50)  # imports and caches
    small = peak(200)
    large = min(peak(2200), peak(2200, " again"))  # threads that other tests left may need memory meanwhile
    assert large - small < 250_000  # bytes; 2,000 rows of truth are 1.5 MB


def test_catalog_has_the_columns_of_the_tutorial(sample: Path, truth: dict) -> None:
    for table, told_of, below in (("catalog.csv", "images", ""), ("holdout/catalog.csv", "holdout", "holdout/")):
        with (sample / "catalog" / table).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == [*COLUMNS, "colour", "fabric", "sleeve", "closure", "heel"]
        assert len(rows) == len(truth[told_of])
        for row in rows:
            told = truth[told_of][below + row["local_image_path"]]
            assert (row["product_code"], row["title"]) == (told["product_code"], told["title"])
            assert float(row["full_price"]) == float(row["price"]) == told["price"]
            assert [row["category1_code"], told["category"]] == [told["levels"][0], told["levels"][2]]
            assert row["currency_code"] == truth["currency"] == "EUR"
            assert {name: row[name] for name in told["fields"]} == told["fields"]


@pytest.mark.parametrize(("folder", "told_of"), [("catalog", "images"), ("catalog/holdout", "holdout")])
def test_reading_a_catalog_gives_the_truth(sample: Path, truth: dict, folder: str, told_of: str) -> None:
    catalog = read_catalog(sample / folder)
    assert not catalog.dropped
    assert catalog.currency == "EUR"
    read = {Path(p.image_paths[0]).name: (p.product_code, p.title, p.category, p.price) for p in catalog.products}
    assert read == {
        Path(key).name: (told["product_code"], told["title"], told["category"], told["price"])
        for key, told in truth[told_of].items()
    }


def test_no_holdout_can_be_asked_for(tmp_path: Path, quick: None) -> None:
    assert write_sample(tmp_path / "catalog", products=3, holdout=0).holdout == 0
    assert not (tmp_path / "catalog/holdout").exists()
    assert json.loads((tmp_path / "catalog/truth.json").read_text())["holdout"] == {}


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
    told = {name: truth[name] for name in ("version", "dialect", "seed", "products", "holdout_products", "sigma")}
    assert told == {
        "version": 2, "dialect": "demo", "seed": 3, "products": 24, "holdout_products": 6, "sigma": 0.25,
    }  # fmt: skip
    assert 0.13 < truth["best_mdape"] < 0.19
    assert 0.55 < truth["ideal_intervals"]["0.8"]["log_width"] < truth["ideal_intervals"]["0.9"]["log_width"] < 0.95


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
        "import sample.draw, sample.encode, sample.products\n"
        "import sample.dialects\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_another_dialect_is_another_retailer(tmp_path: Path, quick: None) -> None:
    write_sample(tmp_path / "catalog", products=6, dialect=BASE)
    catalog = read_catalog(tmp_path / "catalog")
    assert catalog.currency == "EUR"
    assert "BELTS" not in catalog.categories
    with (tmp_path / "catalog/catalog.csv").open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == list(COLUMNS)  # this one has no further fields


def test_a_directory_with_another_sample_is_refused(sample: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_sample(sample / "catalog", products=24, bucket=16, seed=4, bucket_out=sample / "bucket", holdout=6)
    assert str(caught.value) == (
        f"{sample}/catalog contains a sample with seed 3, not 4; choose another directory or give --overwrite"
    )


def test_an_unfinished_sample_of_other_settings_is_refused(tmp_path: Path, quick: None) -> None:
    write_sample(tmp_path / "catalog", products=4)
    (tmp_path / "catalog/truth.json").unlink()
    place.write(tmp_path / "catalog/.sample.json", b'{"version": 1}')  # the same names, drawn by an earlier version
    with pytest.raises(UsageError, match="contains a sample with "):
        write_sample(tmp_path / "catalog", products=4)


def test_overwriting_removes_the_other_sample(tmp_path: Path, quick: None) -> None:
    write_sample(tmp_path / "catalog", products=9, seed=1, bucket=3, bucket_out=tmp_path / "bucket")
    write_sample(tmp_path / "catalog", products=4, seed=2, bucket=2, bucket_out=tmp_path / "bucket", overwrite=True)
    write_sample(tmp_path / "new" / "catalog", products=4, seed=2, bucket=2, bucket_out=tmp_path / "new" / "bucket")
    assert _files(tmp_path / "catalog") == _files(tmp_path / "new/catalog")
    assert _files(tmp_path / "bucket") == _files(tmp_path / "new/bucket")


@pytest.mark.parametrize("place_of", ["catalog", "bucket"])
def test_what_is_not_a_samples_is_left_alone(tmp_path: Path, place_of: str) -> None:
    (tmp_path / place_of).mkdir()
    mine = tmp_path / place_of / "mine.txt"
    mine.write_text("do not lose this")
    arguments: dict[str, Any] = {"products": 1, "bucket_out": tmp_path / "bucket"}
    with pytest.raises(UsageError) as caught:
        write_sample(tmp_path / "catalog", **arguments)
    assert str(caught.value) == (
        f"{tmp_path}/{place_of} is not empty (mine.txt); choose another directory or give --overwrite"
    )
    with pytest.raises(UsageError) as caught:
        write_sample(tmp_path / "catalog", overwrite=True, **arguments)
    assert str(caught.value) == f"{mine} is not a sample's; move it elsewhere, or choose another directory"
    assert mine.read_text() == "do not lose this"


def test_a_truth_that_is_not_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text("[]")
    with pytest.raises(
        UsageError, match=r"truth\.json is not a sample's; choose another directory or give --overwrite"
    ):
        write_sample(tmp_path, products=1)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sample of 0 products, 60 held out, 120 bucket photos and seed 0: give 1 to"):
        write_sample(tmp_path, products=0)
    with pytest.raises(UsageError, match="sample of 1 products, -1 held out"):
        write_sample(tmp_path, products=1, holdout=-1)
    (tmp_path / "file").write_text("")
    for out, why in (("file", "File exists"), ("file/below", "Not a directory")):
        with pytest.raises(UsageError) as caught:
            write_sample(tmp_path / out, products=1)
        assert str(caught.value) == f"sample directory {tmp_path}/{out}: {why}; choose another directory"
