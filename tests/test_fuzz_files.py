"""With edited or damaged files, every command does its work, or says in one line why it cannot."""

import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from enrich.engines.adapter import read_adapter
from enrich.engines.transformers_engine import load_engine
from enrich.errors import EnrichError
from enrich.output.history import commit_shard
from enrich.output.manifest import items
from enrich.pipeline.run.enrichment import finish_run
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import start_run
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from tests.testing.cli import RunCli
from tests.testing.random_adapter import write_random_adapter
from tests.testing.rows import make_row

SETTINGS = RunSettings(engine="transformers", device="cpu")
VALUES: tuple[Any, ...] = (
    None, "x", "", -1, 0, 10**30, 1e308, math.nan, math.inf, True, [], {}, [[]], {"a": 1}, "2026-01-01",
    "\ud800", "a\nb",
)  # fmt: skip


@dataclass(frozen=True)
class Shop:
    photos: Path
    adapter: Path
    output: Path  # with one published run, `night`
    catalog: Path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    photos, output, catalog = root / "photos", root / "output", root / "catalog"
    (catalog / "images").mkdir(parents=True)
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 80, 90)).save(photos / f"{number}.png")
        Image.new("RGB", (32, 32), (number, 0, 0)).save(catalog / "images" / f"{number}.png")
    lines = [f"{number},Wool Coat {number},BAGS,90,EUR,images/{number}.png" for number in range(3)]
    header = "product_code,title,category3_code,full_price,currency_code,local_image_path"
    (catalog / "catalog.csv").write_text("\n".join([header, *lines]) + "\n")
    adapter = write_random_adapter(root / "adapter", TINY_MODEL_PATH, num_crops=1, idle=True)
    (adapter / "train.json").write_text(json.dumps({"settings": {}, "data_fingerprint": "x", "preflight": {}}))
    with start_run(RunRequest(str(photos), str(adapter), str(output), SETTINGS, run_id="night")) as run:
        for shard in run.manifest.shards:
            found = items(run.manifest, shard)
            rows = [
                make_row(
                    run.info, item.photos[0].key, product_id=item.product_id, shard=shard, etag=item.photos[0].etag,
                    needs_review=True, review_reasons=("price",),
                    category="BAGS", category_confidence=0.5, price_low=50.0, price_high=200.0, sha256="ab" * 32,
                )
                for item in found
            ]  # fmt: skip
            commit_shard(run.output, run.info, shard, rows, [item.product_id for item in found])
        finish_run(run)
    return Shop(photos, adapter, output, catalog)


def accept(what: str, code: int, _: str, err: str) -> None:
    """Check that a command ended well: it did its work, or printed one line that says what is wrong."""
    told = f"{what}: exit code {code}, {err[:600]!r}"
    assert code in (0, 1, 2, 3), told
    assert "Traceback" not in err, told
    assert "report it" not in err, told
    if code:
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, told
        # Transformers' progress bar, which the `enrich` process turns off before it imports transformers.
        lines = [line for line in re.split(r"[\r\n]+", err) if line.strip() and not line.startswith("Loading weights")]
        assert len(lines) == 1, told


# ---- ways to damage a file


def spoiled(path: Path, each: int = 2) -> Iterator[tuple[str, bytes]]:
    """Yield damaged versions of a file, each with a label. `each` values are tried in each place of a JSON file."""
    data = path.read_bytes()
    yield "empty", b""
    yield "cut", data[: len(data) // 2]
    yield "garbage", b"\xff\xfe\x00 no such file \x00"
    if path.suffix == ".json":
        for text in ("null", "[]", "{}", '"x"', "NaN", "[" * 50_000, '{"a":' * 50_000, "1" * 5000):
            yield text[:5], text.encode()
        whole = json.loads(data)
        for number, place in enumerate(places(whole)):
            for step in range(each):
                value = VALUES[(number * each + step) % len(VALUES)]
                yield f"{place} = {value!r}", json.dumps(put(whole, place, value)).encode("utf-8", "surrogatepass")
            yield f"without {place}", json.dumps(put(whole, place, ...)).encode()
    if path.suffix == ".parquet":
        yield from spoiled_table(data)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; only the first ones in lists and long mappings."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(inside)[: 40 if isinstance(value, dict) else 2]:
        yield (*at, key)
        if len(at) < 3:
            yield from places(child, (*at, key))


def put(whole: Any, place: Sequence[Any], value: Any) -> Any:
    """Return a copy of a JSON value with one place replaced, or removed if the new value is an Ellipsis."""
    copy = json.loads(json.dumps(whole))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return copy


def spoiled_table(data: bytes) -> Iterator[tuple[str, bytes]]:
    table = pq.read_table(io.BytesIO(data))
    pairs = table.schema.metadata or {}
    yield "another table", encode(pl.DataFrame({"a": [1]}).to_arrow())
    yield "another table that says it is ours", encode(pa.table({"a": [1]}).replace_schema_metadata(pairs))
    yield "without metadata", encode(table.replace_schema_metadata(None))
    yield "no rows", encode(table.slice(0, 0))
    yield "rows twice", encode(pa.concat_tables([table, table]))
    strings = pa.table({name: pa.array(["x"] * table.num_rows) for name in table.column_names})
    yield "strings", encode(strings.replace_schema_metadata(pairs))
    for name in table.column_names:
        yield f"no {name}", encode(table.drop_columns([name]).replace_schema_metadata(pairs))
        nulls = pa.nulls(table.num_rows, table.schema.field(name).type)
        place = table.column_names.index(name)
        yield f"nulls in {name}", encode(table.set_column(place, table.schema.field(name), nulls))
    for name in pairs:
        if name.startswith(b"enrich."):
            for value in (b"", b"{", b"{}", b"null", b"[1]", b"999999999", b'{"a": {"b": NaN}}', b"\xff"):
                changed = encode(table.replace_schema_metadata({**pairs, name: value}))
                yield f"{name.decode()} = {value!r}", changed
    for at in range(7, len(data), max(1, len(data) // 12)):
        yield f"byte {at}", data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


# ---- an output


def commands(shop: Shop, output: Path) -> list[str]:
    run = f"run --images {shop.photos} --adapter {shop.adapter} --output {output} --engine transformers"
    return [
        f"report --output {output}",
        f"{run} --dry-run",
        f"tidy --output {output} --grace 0s --keep 0s",
        f"{run} --run-id night",
        f"publish --output {output} --run-id night",
        f"review --output {output}",
        f"rollback --output {output} --run-id night",
        run,
    ]


FILES = [
    "runs/night/run.json", "runs/night/manifest.parquet", "runs/night/source.parquet", "products.parquet",
    "history/*/*/shard-00000.parquet",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_an_output_is_reported_in_one_line(
    shop: Shop, tmp_path: Path, run_cli: RunCli, name: str
) -> None:
    [original] = shop.output.glob(name)
    for number, (how, data) in enumerate(spoiled(original, each=1)):
        for turn in (0, 4):  # two commands per case; every command meets every kind of damage in some file
            output = tmp_path / f"{number}-{turn}"
            shutil.copytree(shop.output, output)
            (output / original.relative_to(shop.output)).write_bytes(data)
            command = commands(shop, output)[(number + turn) % 8]
            accept(f"{name}, {how}: {command}", *run_cli(command))
            shutil.rmtree(output)


def test_a_missing_file_of_an_output_is_reported_in_one_line(shop: Shop, tmp_path: Path, run_cli: RunCli) -> None:
    for number, name in enumerate(FILES):
        for turn in range(8):
            output = tmp_path / f"{number}-{turn}"
            shutil.copytree(shop.output, output)
            [path] = output.glob(name)
            path.unlink()
            if turn % 2:
                path.mkdir()  # as a careless copy would leave it
            command = commands(shop, output)[turn]
            accept(f"{name} missing: {command}", *run_cli(command))


def test_every_command_works_on_the_files_as_they_are(shop: Shop, tmp_path: Path, run_cli: RunCli) -> None:
    for number, command in enumerate(commands(shop, tmp_path)):
        shutil.copytree(shop.output, tmp_path, dirs_exist_ok=True)
        code, _, err = run_cli(command)
        expected = 2 if number == 4 else 0  # it is already published
        assert code == expected, (command, err)


# ---- an adapter

ADAPTER_FILES = [
    "adapter_config.json", "config.json", "preprocessor_config.json", "prompt.json", "calibration.json", "train.json",
    "tokenizer_config.json",
]  # fmt: skip
ENGINE_FILES = ADAPTER_FILES[:3] + ADAPTER_FILES[-1:]  # what the engine reads; the others are read before it starts


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_damaged_file_of_an_adapter_is_reported_in_one_line(
    shop: Shop, tmp_path: Path, run_cli: RunCli, name: str
) -> None:
    for number, (how, data) in enumerate(spoiled(shop.adapter / name, each=2)):
        adapter = tmp_path / str(number)
        shutil.copytree(shop.adapter, adapter)
        (adapter / name).write_bytes(data)
        run = f"run --images {shop.photos} --adapter {adapter} --output {tmp_path}/out --dry-run --engine transformers"
        code, told, err = run_cli(run)
        accept(f"{name}, {how}", code, told, err)
        if code == 0 and name in ENGINE_FILES and number % 4 == 0:
            try_engine(f"{name}, {how}", adapter)
        shutil.rmtree(adapter)


def try_engine(what: str, adapter: Path) -> None:
    try:
        load_engine(read_adapter(adapter), SETTINGS)
    except EnrichError:
        return
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def test_a_damaged_tokenizer_is_reported_in_one_line(shop: Shop, tmp_path: Path, run_cli: RunCli) -> None:
    whole = json.loads((shop.adapter / "tokenizer.json").read_bytes())
    texts = ["", "{}", "null", "[" * 50_000, json.dumps(whole)[:5000]]
    values: tuple[Any, ...] = (None, {}, "x", ...)
    texts += [json.dumps(put(whole, (key,), value)) for key in whole for value in values]
    for number, text in enumerate(texts):
        adapter = tmp_path / str(number)
        shutil.copytree(shop.adapter, adapter)
        (adapter / "tokenizer.json").write_text(text)
        run = f"run --images {shop.photos} --adapter {adapter} --output {tmp_path}/out --dry-run --engine transformers"
        code, told, err = run_cli(run)
        accept(f"tokenizer.json: {text[:80]}", code, told, err)
        if code == 0:
            try_engine(f"tokenizer.json: {text[:80]}", adapter)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "has values that are not numbers (NaN or infinite) in base_model."),
        ("infinite", "has values that are not numbers (NaN or infinite) in base_model."),
        ("empty file", "is damaged"),
        ("cut", "is damaged"),
        ("absurd header", "is damaged"),
        ("garbage", "is damaged"),
        ("no tensors", "contains no weights"),
    ],
)
def test_weights_that_are_not_numbers_or_cannot_be_read_are_refused(
    shop: Shop, tmp_path: Path, run_cli: RunCli, how: str, message: str
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(shop.adapter, adapter)
    path = adapter / "adapter_model.safetensors"
    data, weights = path.read_bytes(), load_file(path)
    last = sorted(weights)[-1]
    if how in ("nan", "infinite"):
        weights[last][-1, -1] = torch.nan if how == "nan" else -torch.inf
        save_file(weights, path)
    elif how == "no tensors":
        save_file({}, path)
    else:
        path.write_bytes(
            {"empty file": b"", "cut": data[:-10], "absurd header": b"\xff" * 8 + data[8:], "garbage": b"x" * 99}[how]
        )
    for command in (
        f"run --adapter {adapter} --images {shop.photos} --output {tmp_path}/out --dry-run",
        f"score --adapter {adapter} --catalog {shop.catalog} --engine transformers",
        f"merge --adapter {adapter} --out {tmp_path}/merged",
    ):
        code, _, err = run_cli(command)
        accept(how, code, "", err)
        assert code == 2
        assert message in err


def test_weights_of_other_shapes_are_reported_in_one_line(shop: Shop, tmp_path: Path, run_cli: RunCli) -> None:
    weights = load_file(shop.adapter / "adapter_model.safetensors")
    first = sorted(weights)[0]
    others = [
        {**weights, "another": torch.zeros(2)},
        {name: value for name, value in weights.items() if name != first},
        {**weights, first: torch.zeros(3, 3)},
        {**weights, first: weights[first].to(torch.int8)},
    ]
    for number, changed in enumerate(others):
        adapter = tmp_path / str(number)
        shutil.copytree(shop.adapter, adapter)
        save_file(changed, adapter / "adapter_model.safetensors")
        try_engine(f"weights {number}", adapter)


def test_a_damaged_record_is_reported_where_an_adapter_is_scored(shop: Shop, tmp_path: Path, run_cli: RunCli) -> None:
    with mock.patch("enrich.pipeline.scoring.start_engine", side_effect=EnrichError("no engine here")):
        for number, (how, data) in enumerate(spoiled(shop.adapter / "train.json")):
            adapter = tmp_path / str(number)
            shutil.copytree(shop.adapter, adapter)
            (adapter / "train.json").write_bytes(data)
            accept(f"train.json, {how}", *run_cli(f"score --adapter {adapter} --catalog {shop.catalog}"))


# ---- decisions and settings


def test_a_damaged_file_of_decisions_is_reported_in_one_line(shop: Shop, tmp_path: Path, run_cli: RunCli) -> None:
    row = pl.read_parquet(shop.output / "products.parquet").row(0, named=True)
    decision = {
        **{name: row[name] for name in ("product_id", "run_id")},
        "photos": [{name: photo[name] for name in ("key", "etag", "sha256")} for photo in row["photos"]],
        "decision": "edited", "title": "Felt Hat", "category": "BAGS", "price": 120.0, "currency": "EUR",
        "suggested_title": row["title"], "suggested_category": row["category"], "suggested_price": row["price"],
        "reviewed_at": "2026-11-23T02:00:00Z",
    }  # fmt: skip
    path = tmp_path / "decisions.json"
    whole = {"format": "enrich-review-2", "output": str(shop.output), "reviewed_by": "Ann", "decisions": [decision]}
    path.write_text(json.dumps(whole))
    for number, (how, data) in enumerate(spoiled(path, each=len(VALUES))):
        output, file = tmp_path / str(number), tmp_path / "changed.json"
        shutil.copytree(shop.output, output)
        file.write_bytes(data)
        accept(f"decisions, {how}", *run_cli(f"review --output {output} --apply {file}"))
        shutil.rmtree(output)


YAML = [
    "seed: 2026-01-01", "seed: 2026-99-99", "epochs: 1_000:30", "1: 2", "? [a]\n: 3", "{a: 1}: 2", "a: &a [*a]",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "epochs: .nan", "epochs: .inf", "batch_size: " + "9" * 5000,
    "[" * 20_000, "{a: " * 20_000, "seed: 1\nseed: 2", "x: !!python/object:os.system 1", "\ttab: 1", "null: 3",
    "limits: {max_pixels: 1e400}", "- a", "just words", "7", "limits: 3", "limits: [1]", "limits: {2026-01-01: 3}",
    "x: !!binary =", "x: !!timestamp 2", "!!set {a}", "<<: {seed: 4}", "batch_size: !!int x", "a: \x00", "a: 'x",
    "columns: {category: {a: 1}}", "gate: {max_failed: .nan}", "s3: {encryption: 3}", "# " + "x" * (2 << 20),
    "limits: {formats: 3}", "limits: {formats: [[]]}", "device: [cuda]", "batch_size: 1e30", "batch_size: -1",
    "group_by: '(((('", "review: {titles: {max_characters: x}}", "true: 1", "a: b: c", "%YAML 9.9\n---\na: 1",
    "--- a\n--- b",
]  # fmt: skip


@pytest.mark.parametrize("command", ["run", "finetune", "tidy", "merge", "score", "review", "catalog fetch", "doctor"])
def test_a_damaged_settings_file_is_reported_in_one_line(
    shop: Shop, tmp_path: Path, run_cli: RunCli, command: str
) -> None:
    out = tmp_path / "out"
    more = {
        "run": f"--images {shop.photos} --adapter {shop.adapter} --output {out} --dry-run",
        "finetune": f"--catalog {tmp_path}/none --out {out}",
        "tidy": f"--output {tmp_path}/none",
        "merge": f"--adapter {tmp_path}/none --out {out}",
        "score": f"--adapter {tmp_path}/none --catalog {tmp_path}/none",
        "review": f"--output {tmp_path}/none --apply {tmp_path}/none",
        "catalog fetch": f"--source {tmp_path}/none.csv --out {out}",
        "doctor": "",
    }
    path = tmp_path / "settings.yaml"
    for text in [*(text.encode() for text in YAML), b"a: \xff\xfe", b"\xff\xfea\x00"]:
        path.write_bytes(text)
        code, told, err = run_cli(f"{command} {more[command]} --config {path}")
        accept(f"{text[:60]!r}", code, told, err)
        assert code == 2, (text[:60], err)
    for unreadable in (tmp_path, tmp_path / "none", "/dev/zero"):
        code, told, err = run_cli(f"{command} {more[command]} --config {unreadable}")
        accept(str(unreadable), code, told, err)
        assert code == 2
    assert not out.exists()
