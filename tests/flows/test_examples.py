"""Every example, and every command in README, on a small catalog: they run as they are written."""

import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import duckdb
import nbformat
import polars as pl
import pytest
import typer
from nbclient import NotebookClient

import enrich
from enrich import cli
from enrich.pipeline.serving import PageServer
from enrich.settings.catalog import SampleSettings
from enrich.settings.load import load_settings
from enrich.settings.training import TrainSettings
from enrich.storage import open_store
from sample.make import make_sample

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "DATA.md",
    *sorted(path for name in ("docs", "examples", "deployments") for path in (ROOT / name).glob("*.md")),
]
OWN_NAMES = {"product_code": "sku", "category3_code": "department"}
# So few steps teach nothing, and what is published is not the point here.
QUICK = """
finetune:
  {columns}
  model: phi3v-tiny
  epochs: 1
  evaluations: 1
run:
  gate: {{enabled: false}}
"""


@dataclass(frozen=True)
class Shop:
    """Two catalogs of the same photos, one with column names of its own, settings that take seconds, and an output."""

    root: Path

    @property
    def enriched(self) -> Path:
        return self.root / "out" / "enriched"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """What `own_catalog.py` makes; the other examples continue from there."""
    root = tmp_path_factory.mktemp("shop")
    sizes = SampleSettings(products=40, holdout=0, bucket=6, seed=2)
    make_sample(str(root / "catalog"), sizes, bucket=str(root / "photos"))
    shutil.copytree(root / "catalog", root / "own")
    table = pl.read_csv(root / "own" / "catalog.csv", infer_schema=False).rename(OWN_NAMES)
    table.write_csv(root / "own" / "catalog.csv")
    (root / "own.yaml").write_text(QUICK.format(columns="columns: {product_code: sku, category: [department]}"))
    (root / "quick.yaml").write_text(QUICK.format(columns="columns: {}"))
    with pytest.MonkeyPatch.context() as patch:
        run_example(patch, "own_catalog.py", root / "own", root / "photos", root / "out", root / "own.yaml")
    return Shop(root)


def run_example(patch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    patch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_own_catalog_to_parquet(shop: Shop) -> None:
    products = enrich.read_products(shop.enriched).collect()

    assert set(products["status"]) == {"ok", "failed"}  # the bucket has hostile files
    assert (shop.root / "out" / "adapter" / "metrics.json").is_file()


def test_s3_with_prefect(
    shop: Shop,
    s3_bucket: str,
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket = open_store(s3_bucket)
    for folder, name in (("out/adapter", "adapter"), ("photos", "photos")):
        local = open_store(str(shop.root / folder))
        for info in local.list():
            bucket.put(f"{name}/{info.key}", local.get(info.key)[0])

    run_example(monkeypatch, "s3_with_prefect.py", s3_bucket)

    assert re.match("(Completed|Held): ", capsys.readouterr().out)
    (record,) = [info.key for info in bucket.list("enriched/runs") if info.key.endswith("/run.json")]
    answered = enrich.read_products(shop.enriched).select(pl.len()).collect().item()
    assert json.loads(bucket.get(record)[0])["counts"]["rows"] == answered


def test_the_notebook_shows_photos_and_doubtful_rows(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTPUT", str(shop.enriched))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "examples" / "look_at_products.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # committed without results

    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()

    shown = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("<img src='data:image/jpeg;base64," in text for text in shown)


def commands(page: Path) -> list[str]:
    """The shell commands of a page: lines of blocks without a language, and `enrich ...` within its sentences."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = (
        "\n".join(block for language, block in blocks if language in ("", "bash", "sh"))
        .replace("\\\n", " ")
        .splitlines()
    )
    return [*lines, *re.findall(r"`(enrich [a-z][^`\n]*)`", text)]


def test_every_command_of_the_readme_runs(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {"finetune": ["--config", f"{shop.root}/quick.yaml"], "run": ["--config", f"{shop.root}/quick.yaml"]}
    monkeypatch.chdir(shop.root)  # some write into the directory they are called in
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    monkeypatch.setattr(PageServer, "serve_forever", Mock(side_effect=KeyboardInterrupt))  # Ctrl-C at once
    ran: list[str] = []
    for line in commands(ROOT / "README.md"):
        line = line.partition(" && ")[0].replace("s3://shop", str(shop.root))
        match shlex.split(line, comments=True):
            case ["enrich", *arguments]:
                arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
                monkeypatch.setattr(sys, "argv", ["enrich", *arguments, *quick.get(arguments[0], [])])
                with pytest.raises(SystemExit) as stop:
                    cli.main()
                # One epoch on 40 products taught nothing: that is said (3), and every row waits for review (2).
                untaught = {"finetune": 3, "export": 2}.get(arguments[0], 0)
                assert stop.value.code in (0, untaught), line
                if stop.value.code == 2:
                    assert "rows can be exported: " in capsys.readouterr().err
                ran.append(arguments[0])
            case ["duckdb", "-c", query]:
                assert duckdb.execute(query).fetchall()
                ran.append("duckdb")
            case ["make", target]:  # `make demo` and `make ui` are run by people and by test-ui
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
            case ["pip", "install", "-c", "constraints.txt", package]:
                assert set(re.findall(r"\w+", package)) <= set(extras)
            case ["git", "clone", "REPOSITORY", "enrich"] | []:
                pass
            case [first, *_]:
                assert first.startswith("catalog/"), f"nothing runs this: {line}"  # the layout of a catalog
    assert {"doctor", "finetune", "run", "review", "serve", "settings", "duckdb"} <= set(ran)


def test_the_readme_has_settings_that_load(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "settings.yaml").write_text(block)

    assert load_settings(TrainSettings, tmp_path / "settings.yaml", "finetune") != TrainSettings()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_on_other_pages_exist(page: Path) -> None:
    for line in commands(page):
        match shlex.split(line.replace("'", ""), comments=True):
            case ["enrich", *words]:
                command: Any = typer.main.get_command(cli.app)
                while words and hasattr(command, "commands"):
                    assert words[0].startswith("-") or words[0] in command.commands, line
                    command = command.commands.get(words.pop(0), command)
                known = {option for parameter in command.params for option in parameter.opts}
                assert {word for word in words if word.startswith("--")} - {"--help"} <= known, line
