"""A small catalog on disk."""

import csv
from pathlib import Path

from PIL import Image

COLUMNS = ("product_code", "title", "category1_code", "category2_code", "category3_code", "full_price", "currency_code",
           "local_image_path")  # fmt: skip


def write_catalog(folder: Path, *titles: str) -> None:
    """One coat of 100 EUR with a photo of 8 x 8 for each title."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "catalog.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for number, title in enumerate(titles):
            Image.new("RGB", (8, 8)).save(folder / "images" / f"{number}.png")
            rows.writerow([number, title, "Clothes", "Coats", "N.A.", 100, "EUR", f"images/{number}.png"])
