"""`enrich catalog check` on photos: the same pictures, placeholders, leaks, broken files, and its page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enrich.catalog.check import check
from enrich.catalog.photo_files import PhotoFiles
from enrich.catalog.read import read_catalog
from enrich.settings.training import TrainSettings
from enrich.storage import open_store
from tests.testing.cli import RunCli
from tests.testing.s3_server import Environ, S3Server, WsgiApp, real
from tests.testing.tables import COLUMNS, csv_text, products

SETTINGS = TrainSettings(columns=COLUMNS)
TITLES = ("Red Shirt", "Wool Coat", "Green Bag", "Long Dress", "Blue Jeans", "Silk Scarf", "Felt Hat", "Grey Socks",
          "Belt", "Sun Glasses", "Black Boots", "Swim Suit")  # fmt: skip


def picture(seed: int, side: int = 200) -> Image.Image:
    """Blocks of colours, no two pictures alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (10, 10, 3)).astype(np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST)


def write(directory: Path, image: Callable[[int], str] = "images/{}.jpg".format, **cells: Any) -> None:
    """A catalog of twelve different photos."""
    (directory / "images").mkdir()
    for n in range(12):
        picture(n).save(directory / f"images/{n}.jpg", quality=95)
    rows = products(**{"title": lambda n: TITLES[n], "image": image, **cells})
    (directory / "catalog.csv").write_text(csv_text(rows))


def wrong(directory: Path, **options: Any) -> dict[str, int]:
    found = check(read_catalog(directory, COLUMNS), SETTINGS, lambda done, all: None, **options)
    return {one.what: len(one.examples) for one in found.wrong}


def test_different_photos_are_neither_equal_nor_alike(tmp_path: Path) -> None:
    write(tmp_path)
    assert wrong(tmp_path) == {}


def test_the_same_photo_saved_again_and_scaled_is_found(tmp_path: Path) -> None:
    write(tmp_path, category="All")
    picture(3).resize((140, 140)).save(tmp_path / "images/5.jpg", quality=40)
    found = check(read_catalog(tmp_path, COLUMNS), SETTINGS, lambda done, all: None)
    [told] = [one for one in found.wrong if "look the same" in one.what]
    assert told.examples == ("'Long Dress' and 'Silk Scarf' (00104, 00106)",)
    assert [Path(shot.path).name for shot in told.pictures[0]] == ["3.jpg", "5.jpg"]


def test_the_same_shape_in_another_colour_is_another_picture(tmp_path: Path) -> None:
    write(tmp_path)
    Image.fromarray(np.asarray(picture(3))[..., ::-1].copy()).save(tmp_path / "images/5.jpg", quality=95)
    assert wrong(tmp_path) == {}


@pytest.mark.parametrize(
    ("title", "told"),
    [
        (lambda n: TITLES[n], "placeholders, the same picture for products of many titles"),
        (lambda n: f"Wool Coat size {n}", "the same photo under titles that differ"),
    ],
)
def test_a_picture_of_many_titles_is_a_placeholder_unless_the_titles_are_of_one_kind(
    tmp_path: Path, title: Callable[[int], str], told: str
) -> None:
    write(tmp_path, image=lambda n: f"images/{max(n, 5)}.jpg", title=title)  # six products have that of the fifth
    assert wrong(tmp_path)[told] == 1


def test_equal_photos_in_two_splits_are_a_leak_and_those_of_one_title_are_not(tmp_path: Path) -> None:
    write(tmp_path, image=lambda n: f"images/{n // 2}.jpg")
    leaks = [name for name in wrong(tmp_path) if name.startswith("leaks between splits")]
    assert len(leaks) == 1
    rows = products(title=lambda n: TITLES[n // 2], image=lambda n: f"images/{n // 2}.jpg")
    (tmp_path / "catalog.csv").write_text(csv_text(rows))
    assert wrong(tmp_path) == {}


def test_broken_photos_are_named_with_their_rows_and_hostile_ones_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "images/4.jpg").write_bytes(b"<html>")
    whole = (tmp_path / "images/6.jpg").read_bytes()
    (tmp_path / "images/6.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images/7.jpg").chmod(0)
    found = check(read_catalog(tmp_path, COLUMNS), SETTINGS, lambda done, all: None)
    [told] = [one for one in found.wrong if "cannot be read" in one.what]
    assert told.examples[0].startswith("images/4.jpg (row 5, product 00105: no image of an accepted format")
    assert told.examples[1].startswith("images/6.jpg (row 7, product 00107: ")


def test_no_more_photos_are_decoded_than_allowed_and_equal_bytes_are_found_anyway(tmp_path: Path) -> None:
    write(tmp_path, image=lambda n: f"images/{n % 11}.jpg", category="All")
    catalog = read_catalog(tmp_path, COLUMNS)
    for most in (0, 3):
        found = check(catalog, SETTINGS, lambda done, all: None, most_photos=most)
        assert (found.photos.looked_at, len(found.photos.pictures), found.photos.files) == (most, 1, 11)


def test_photos_on_s3_are_listed_and_only_some_are_read(
    tmp_path: Path, s3_bucket: str, s3_server: S3Server, run_cli: RunCli
) -> None:
    write(tmp_path, image=lambda n: "images/none.jpg" if n == 2 else f"images/{n}.jpg")
    (tmp_path / "images/11.jpg").write_bytes((tmp_path / "images/10.jpg").read_bytes())
    store = open_store(f"{s3_bucket}/shop")
    for path in sorted(tmp_path.rglob("*.*")):
        store.put(str(path.relative_to(tmp_path)), path)
    (tmp_path / "s.yaml").write_text(json.dumps({"finetune": {"columns": COLUMNS.model_dump(mode="json")}}))
    read: list[str] = []

    def note(app: WsgiApp, environ: Environ, start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith(".jpg"):
            read.append(environ["PATH_INFO"])
        return real(app, environ, start_response)

    s3_server.fault = note
    options = ("catalog", "check", "--catalog", f"{s3_bucket}/shop", "--config", f"{tmp_path}/s.yaml", "--photos", "4")
    code, out, err = run_cli(*options, "--json", f"{tmp_path}/rows.json")
    assert (code, len(read), len({*read})) == (0, 4, 4), err
    assert "photos: 11 files" in out
    assert "(4 decoded); 2 products share a photo's bytes" in out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["rows"][0]["photos"] == ["images/0.jpg"]
    assert found["dropped"] == [{"row": 3, "product_code": "00103", "reason": "photo not found: images/none.jpg"}]
    assert run_cli(*options, "--page", f"{tmp_path}/page.html")[0] == 0
    assert (tmp_path / "page.html").read_text().count("<img ") == 15  # eleven products, two of them in two pairs


def test_folders_of_photos_on_s3_are_a_catalog_too(s3_bucket: str, run_cli: RunCli, tmp_path: Path) -> None:
    store = open_store(s3_bucket)
    for n in range(6):
        picture(n).save(tmp_path / "photo.jpg")
        store.put(f"{'coats' if n % 2 else 'hats'}/{TITLES[n]}.jpg", tmp_path / "photo.jpg")
    code, out, err = run_cli("catalog", "check", "--catalog", s3_bucket)
    assert code == 0, err
    assert "categories: 2: coats 3, hats 3" in out
    assert "photos: 6 files" in out
    assert "nothing looks wrong" in out


def test_the_page_shows_pictures_and_escapes_what_the_catalog_says(tmp_path: Path, run_cli: RunCli) -> None:
    title = "5 < 6 & 'x' \"y\" {{ 7 * 7 }}"
    write(tmp_path, image=lambda n: f"images/{n % 11}.jpg", title=lambda n: TITLES[n] if n else title, category="All")
    (tmp_path / "images/4.jpg").write_bytes(b"<html>")
    (tmp_path / "s.yaml").write_text(json.dumps({"finetune": {"columns": COLUMNS.model_dump(mode="json")}}))
    code, out, err = run_cli(
        "catalog", "check", "--catalog", str(tmp_path), "--config", f"{tmp_path}/s.yaml", "--page", f"{tmp_path}/p.html"
    )
    assert (code, f"page: {tmp_path}/p.html" in out) == (0, True), err
    page = (tmp_path / "p.html").read_text()
    assert "5 &lt; 6 &amp; &#39;x&#39; &#34;y&#34; {{ 7 * 7 }}" in page
    assert "5 < 6" not in page
    assert page.count('<img src="data:image/jpeg;base64,') >= 12
    assert '<div class="none">cannot be read</div>' in page
    assert "the same photo under titles that differ: 1" in page


@pytest.mark.parametrize("uri", ["hf://owner/name", "hf://datasets/owner/name", "owner/name"])
def test_a_data_set_of_hugging_face_is_to_be_downloaded_first(uri: str, run_cli: RunCli) -> None:
    code, _, err = run_cli("catalog", "check", "--catalog", uri)
    assert (code, "`enrich catalog fetch --source owner/name" in err, err.strip().count("\n")) == (2, True, 0)


def test_photos_of_one_size_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in "abcde"]
    for name, data in zip(names, (b"x" * 5000, b"y" * 5000, b"x" * 5000, b"x" * 4999 + b"z", b"x"), strict=True):
        Path(name).write_bytes(data)
    same = PhotoFiles().same(names)
    assert [same[name] == same[names[0]] for name in names] == [True, False, True, False, False]
