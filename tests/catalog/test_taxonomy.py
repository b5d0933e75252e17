"""Categories as paths, and as a standard's table writes them."""

from pathlib import Path

import polars as pl
import pytest

from enrich.catalog.read import Catalog, read_catalog
from enrich.catalog.taught import read_taught
from enrich.catalog.taxonomy import MAX_BYTES, Taxonomy, adopt, read_taxonomy
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from enrich.settings.training import TrainSettings

GOOGLE = """# Google_Product_Taxonomy_Version: 2021-09-21
1 - Animals & Pet Supplies
166 - Apparel & Accessories
1604 - Apparel & Accessories > Clothing
2271 - Apparel & Accessories > Clothing > Dresses
187 - Apparel & Accessories > Shoes
"""
SHOPIFY = """# Shopify Product Taxonomy - Categories: 2026-08
# Format: {GID} : {Ancestor name} > ... > {Category name}

gid://shopify/TaxonomyCategory/aa       : Apparel & Accessories
gid://shopify/TaxonomyCategory/aa-1     : Apparel & Accessories > Clothing
gid://shopify/TaxonomyCategory/aa-1-4   : Apparel & Accessories > Clothing > Dresses
gid://shopify/TaxonomyCategory/aa-8     : Apparel & Accessories > Shoes
"""
DRESSES, SHOES = "Apparel & Accessories > Clothing > Dresses", "Apparel & Accessories > Shoes"
LEVELS = "product_code,title,category1_code,category2_code,category3_code,full_price,currency_code,local_image_path"
ONE = "product_code,title,category,local_image_path"


def write(folder: Path, *categories: str, header: str = ONE) -> Path:
    """A catalog of one product a cell, or line of cells, of categories."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images/a.jpg").write_bytes(b"photo")
    ends = "1,EUR,images/a.jpg" if header == LEVELS else "images/a.jpg"
    lines = [f"{number},Title {number},{category},{ends}" for number, category in enumerate(categories)]
    (folder / "catalog.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return folder


def taught(folder: Path, **changes: object) -> Catalog:
    columns = Columns() if "category1_code" in (folder / "catalog.csv").read_text() else Columns(category=("category",))
    return read_taught(folder, TrainSettings.model_validate({"columns": columns, "category_path": True, **changes}))


def labels(catalog: Catalog) -> list[str]:
    return [product.category for product in catalog.products]


def refusal(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(UsageError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cells", "path"),
    [
        ("WOMAN,SHOES,PUMPS", "WOMAN > SHOES > PUMPS"),
        ("WOMAN,SCARVES,SCARVES", "WOMAN > SCARVES"),
        ("WOMAN,Scarves,SCARVES", "WOMAN > SCARVES"),
        ("WOMAN,SCARVES,N.A.", "WOMAN > SCARVES"),
        ("WOMAN,,PUMPS", "WOMAN > PUMPS"),
        ("N.A., ,PUMPS", "PUMPS"),
        ("SHOES,WOMAN,SHOES", "SHOES > WOMAN > SHOES"),
        (",,WOMAN>SHOES >PUMPS", "WOMAN > SHOES > PUMPS"),
        ("WOMAN,SHOES,SHOES > > N.A. > PUMPS", "WOMAN > SHOES > PUMPS"),
    ],
)
def test_a_path_goes_from_the_last_column_to_the_first(tmp_path: Path, cells: str, path: str) -> None:
    catalog = taught(write(tmp_path, cells, "MAN,TIES,TIES", header=LEVELS))

    assert labels(catalog) == [path, "MAN > TIES"]
    assert catalog.paths[path] == tuple(path.split(" > "))


def test_without_the_setting_a_category_is_its_last_level_whatever_it_holds(tmp_path: Path) -> None:
    catalog = read_catalog(write(tmp_path, "WOMAN,SHOES > NEW,PUMPS > 8 CM", "MAN,TIES,N.A.", header=LEVELS))

    assert labels(catalog) == ["PUMPS > 8 CM", "TIES"]
    assert catalog.paths == {"PUMPS > 8 CM": ("WOMAN", "SHOES > NEW", "PUMPS > 8 CM"), "TIES": ("MAN", "TIES")}


def test_a_leaf_is_beneath_what_most_of_its_rows_say(tmp_path: Path) -> None:
    rows = ("MAN,HATS,CAPS", "KIDS,HATS,CAPS", "KIDS,HATS,CAPS", "MAN,TIES,TIES")

    assert read_catalog(write(tmp_path, *rows, header=LEVELS)).paths["CAPS"] == ("KIDS", "HATS", "CAPS")


def test_levels_that_differ_in_case_only_are_one_beneath_the_same_level(tmp_path: Path) -> None:
    catalog = taught(write(tmp_path, "Woman > SHOES", "WOMAN > Coats", "WOMAN > coats > Parkas", "MAN > Shoes"))

    assert labels(catalog) == ["WOMAN > SHOES", "WOMAN > Coats", "WOMAN > Coats > Parkas", "MAN > Shoes"]
    assert catalog.lines == ("categories that differ only in case are merged: Woman as WOMAN; coats as Coats",)


def test_a_catalog_without_levels_is_not_taught_as_paths(tmp_path: Path) -> None:
    assert refusal(taught, write(tmp_path, "Dresses", "Women/Shoes")) == (
        f"catalog {tmp_path}: category_path is set, and no category has more than one level, such as 'Dresses'; name "
        "the columns of the broader levels in columns.category, the most specific first, or write categories as `A > B`"
    )


@pytest.mark.parametrize(
    ("name", "text", "shoes"),
    [
        ("taxonomy-with-ids.en-US.txt", GOOGLE, "187"),
        ("google.txt", "\ufeff" + GOOGLE.replace("\n", "\r\n"), "187"),
        ("categories.txt", SHOPIFY, "gid://shopify/TaxonomyCategory/aa-8"),
        ("table.csv", f"id,path\n012,{DRESSES}\n7,Apparel & Accessories>Shoes\n", "7"),
        ("table.tsv", f"Path\tId\tnote\n{DRESSES}\t012\t\n{SHOES}\t7\tx\n", "7"),
    ],
)
def test_tables_of_standards_are_read(tmp_path: Path, name: str, text: str, shoes: str) -> None:
    (tmp_path / name).write_text(text, "utf-8", newline="")

    assert read_taxonomy(str(tmp_path / name)).ids[SHOES] == shoes


def test_a_table_may_be_parquet_with_numbers_as_ids_and_in_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    from enrich.storage import open_store

    pl.DataFrame({"path": [DRESSES, SHOES], "id": [2271, None]}).write_parquet(tmp_path / "holes.parquet")
    pl.DataFrame({"path": [DRESSES, SHOES], "id": [2271, 187]}).write_parquet(tmp_path / "table.parquet")
    open_store(s3_bucket).put("standards/table.parquet", (tmp_path / "table.parquet").read_bytes())

    assert read_taxonomy(f"{s3_bucket}/standards/table.parquet").ids == {DRESSES: "2271", SHOES: "187"}
    assert "row 2 has no id; fill it in" in refusal(read_taxonomy, str(tmp_path / "holes.parquet"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("table.xlsx", "", "neither .csv, .tsv, .parquet nor .txt; convert it to one of these"),
        ("none.csv", None, "no such file; check the path"),
        ("taxonomy.txt", "Apparel > Shoes\n", "line 1 is not `ID - PATH`: 'Apparel > Shoes'; name the file with ids"),
        ("table.csv", "name,id\nShoes,1\n", "no column 'path'; its columns are: name, id; name them path and id"),
        ("table.csv", "path,id\n", "it has no rows; name the table of a standard"),
        ("table.csv", "path,id\nShoes,\n", "row 1 has no id; fill it in, or take the row out"),
        ("table.csv", "path,id\n>,1\n", "row 1 has no path; fill it in, or take the row out"),
        ("table.csv", "path,id\nA > B,1\na>b,2\n", "row 2 has the path of row 1: 'a>b'; take one out"),
        ("table.csv", "path,id\nA,1\nB,1\n", "row 2 has the id of row 1: 'B'; take one out"),
        ("table.csv", "path,id\nA <|end|>,1\n", "row 1 spells a control token of the model: 'A <|end|>'; correct it"),
        ("table.txt", b"1 - Caf\xe9\n", "is not UTF-8; save it as UTF-8"),
        ("table.txt", b"#" * (MAX_BYTES + 1), "larger than 67,108,864 bytes; name the table of one standard"),
    ],
)
def test_a_table_that_is_not_one_is_refused_in_one_line(
    tmp_path: Path, name: str, text: str | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    assert refusal(read_taxonomy, str(path)) == f"taxonomy {path}: {message}"


@pytest.mark.parametrize("text", [b"PAR1 not really", b""])
def test_a_damaged_table_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "table.parquet").write_bytes(text)

    assert refusal(read_taxonomy, str(tmp_path / "table.parquet")).startswith(
        f"table {tmp_path}/table.parquet cannot be read: "
    )


@pytest.mark.parametrize(
    "category",
    [DRESSES, "apparel & accessories>clothing>DRESSES", "2271", "Apparel  &  Accessories > Clothing > Dresses"],
)
def test_a_category_is_found_by_its_path_or_by_its_id(tmp_path: Path, category: str) -> None:
    (tmp_path / "google.txt").write_text(GOOGLE)
    catalog = taught(write(tmp_path, category, SHOES), taxonomy=str(tmp_path / "google.txt"))

    assert labels(catalog) == [DRESSES, SHOES]
    assert catalog.category_ids == {DRESSES: "2271", SHOES: "187"}
    assert catalog.paths[DRESSES] == ("Apparel & Accessories", "Clothing", "Dresses")
    assert (
        catalog.fingerprint == read_catalog(tmp_path, Columns(category=("category",)), category_path=True).fingerprint
    )  # so that an adapter knows its catalog without the table


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("Cafe\u0301 > Bar", "Caf\u00e9 > Bar"), ("Caf\u00e9 &gt; Bar &amp; Grill", "Caf\u00e9 > Bar & Grill"),
        ("\u200fCaf\u00e9\u200f > \u202bBar\u202c", "Caf\u00e9 > Bar"), ("Caf\u00e9\u00a0> Bar >", "Caf\u00e9 > Bar"),
        ("<b>Caf\u00e9</b> > Bar", "Caf\u00e9 > Bar"), ("Caf\u00e9 > 5,<3 cm", "Caf\u00e9 > 5,<3 cm"),
    ],
)  # fmt: skip
def test_paths_are_read_as_the_cells_of_a_catalog_are(tmp_path: Path, written: str, path: str) -> None:
    """They become labels: one in another form of Unicode could be in no answer, and its rows were left out."""
    (tmp_path / "table.csv").write_text(f'path,id\n"{written}",01\nCaf\u00e9,2\n', "utf-8")
    folder = write(tmp_path / "catalog", f'"{written}"', f'"{path}"', "2")

    catalog = taught(folder, taxonomy=str(tmp_path / "table.csv"))

    assert labels(catalog) == [path, path, "Caf\u00e9"]
    assert catalog.category_ids == {path: "01", "Caf\u00e9": "2"}


def test_levels_of_a_table_that_repeat_the_one_above_are_found_without_them(tmp_path: Path) -> None:
    paths = ("Footwear", "Footwear > Footwear", "Footwear > Footwear > Boots", "A > A > B", "A > B > B", "A > a > C")
    (tmp_path / "gs1.csv").write_text("\n".join(["path,id", *(f"{one},{n}" for n, one in enumerate(paths))]))
    folder = write(tmp_path, "Footwear > Footwear > Boots", "Footwear > Boots", "FOOTWEAR", "4", "A > A > C")

    catalog = taught(folder, taxonomy=str(tmp_path / "gs1.csv"))

    assert labels(catalog) == [paths[2], paths[2], paths[0], paths[4], paths[5]]
    assert catalog.paths[paths[2]] == ("Footwear", "Footwear", "Boots")
    write(tmp_path, "A > B", "Footwear > Boots")
    assert "1 of 2 categories of the catalog are not in it: 'A > B'" in refusal(
        taught, tmp_path, taxonomy=str(tmp_path / "gs1.csv")
    )  # which may be either of two


def test_a_catalog_of_ids_only_is_taught_as_paths(tmp_path: Path) -> None:
    (tmp_path / "shopify.txt").write_text(SHOPIFY)
    ids = ("gid://shopify/TaxonomyCategory/aa-1-4", "gid://shopify/TaxonomyCategory/aa-8")

    assert labels(taught(write(tmp_path, *ids), taxonomy=str(tmp_path / "shopify.txt"))) == [DRESSES, SHOES]


def test_categories_that_the_table_lacks_are_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "google.txt").write_text(GOOGLE)
    write(tmp_path, SHOES, "Apparel & Accessories > Clothing > Dress", "zzz", "A > 1", "A > 2")

    assert refusal(taught, tmp_path, taxonomy=str(tmp_path / "google.txt")) == (
        f"taxonomy {tmp_path}/google.txt: 4 of 5 categories of the catalog are not in it: 'A > 1', 'A > 2', "
        f"'Apparel & Accessories > Clothing > Dress' (nearest: {DRESSES!r}) and 1 more; "
        "write them as the table does, as paths or as ids"
    )


def test_an_adapter_reads_another_catalog_by_the_ids_that_it_knows(tmp_path: Path) -> None:
    known = Taxonomy("", {DRESSES: "2271"})
    catalog = read_catalog(write(tmp_path, "2271", "187", SHOES), Columns(category=("category",)), category_path=True)

    adopted = adopt(catalog, known, strict=False)

    assert labels(adopted) == [DRESSES, "187", SHOES]
    assert adopted.category_ids == {DRESSES: "2271"}


@pytest.mark.parametrize(
    ("label", "nearest"),
    [
        ("Dresses", DRESSES),
        ("Apparel and Accessories > Cloths > Drss", DRESSES),
        ("Apparel & Accessories > Shoes > Pumps", SHOES),
        ("Groceries > Bread", None),
    ],
)
def test_the_nearest_match_has_the_same_last_level_or_similar_levels(
    tmp_path: Path, label: str, nearest: str | None
) -> None:
    (tmp_path / "google.txt").write_text(GOOGLE)
    write(tmp_path, SHOES, label)

    told = f"'{label}' (nearest: {nearest!r}); " if nearest else f"'{label}'; "
    assert told in refusal(taught, tmp_path, taxonomy=str(tmp_path / "google.txt"))
