"""The comparison before an adapter's first run, where both engines are transformers, and one may lack the adapter."""

import json
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from enrich.answers.completion import Completion
from enrich.engines import merged_model
from enrich.engines.adapter import Adapter, read_adapter
from enrich.engines.transformers_engine import TransformersEngine, find_base, load_base_engine, load_engine
from enrich.errors import ParityFailed
from enrich.output.run_record import RunRecord
from enrich.phases import describe_start
from enrich.pipeline import comparing
from enrich.pipeline.drawn import draw_photo
from enrich.pipeline.run import parity_gate, start
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.parity_gate import precision
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import dry_run
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RunSettings
from enrich.storage import open_store
from enrich.storage.exclusive import if_first
from flows.tasks import worth_retrying
from sample.make import make_sample
from tests.testing.cli import RunCli
from tests.testing.random_adapter import write_random_adapter

SETTINGS = RunSettings(
    engine="vllm",
    device="cpu",
    shard_size=8,
    batch_size=3,
    max_new_tokens=12,
    gate=GateSettings(enabled=False),
)


@dataclass(frozen=True)
class Places:
    """An adapter of random weights on the tiny base, five photos, and a catalog it has not seen."""

    adapter: Path
    bucket: Path
    catalog: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("parity")
    torch.set_num_threads(1)
    adapter = write_random_adapter(root / "adapter", TINY_MODEL_PATH, num_crops=4)
    (adapter / "train.json").write_text(json.dumps({"settings": {}, "data_fingerprint": "another"}))
    (root / "bucket").mkdir()
    for number in range(5):
        draw_photo(number).resize((150, 200)).save(root / "bucket" / f"{number}.png")
    make_sample(str(root / "catalog"), SampleSettings(products=6))
    return Places(adapter, root / "bucket", root / "catalog")


@dataclass
class FakeVllm:
    """Transformers instead of vLLM. `broken`: without the adapter."""

    broken: bool = False
    started: list[TransformersEngine] = field(default_factory=list)
    references: int = 0  # times that transformers was asked

    def start(self, adapter: Adapter, settings: RunSettings) -> TransformersEngine:
        base = find_base(adapter.base, adapter.revision)
        engine = load_base_engine(base, adapter, settings) if self.broken else load_engine(adapter, settings)
        self.started.append(engine)
        return engine

    def answer(self, *asked: Any) -> list[Completion]:
        self.references += 1
        return ANSWER(*asked)


ANSWER = merged_model._answer


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> FakeVllm:
    fake = FakeVllm()
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(parity_gate, "PROMPTS", 3)
    monkeypatch.setattr(parity_gate, "start_engine", fake.start)
    monkeypatch.setattr(parity_gate, "import_vllm", lambda *, cpu: None)
    for module in (merged_model, start):
        monkeypatch.setattr(module, "begin_imports", lambda *, cpu: None)
    monkeypatch.setattr(merged_model, "forked", lambda: ThreadPoolExecutor(1))  # which sees what is changed here
    monkeypatch.setattr(merged_model, "_answer", fake.answer)
    for module in (comparing, parity_gate, start):
        monkeypatch.setattr(module, "choose_engine", lambda name, device="auto": "vllm")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="1.2"))
    return fake


def run(
    places: Places, output: Path, run_id: str | None = None, limit: int = 3, **changes: Any
) -> tuple[RunRecord, list[str]]:
    """A run, and what it announced."""
    told: list[str] = []
    settings = SETTINGS.model_copy(update=changes)
    record = run_enrichment(
        RunRequest(str(places.bucket), str(places.adapter), str(output), settings, run_id=run_id, limit=limit),
        on_message=told.append,
    )
    return record, told


def kept(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "parity").glob("*"))


def test_an_adapter_is_compared_before_its_first_run_only(places: Places, tmp_path: Path, vllm: FakeVllm) -> None:
    record, told = run(places, tmp_path)

    name = read_adapter(places.adapter).id
    found = json.loads((tmp_path / record.run.folder / "parity.json").read_text())
    assert (found["adapter"], found["engine"], found["ok"], found["same_answers"]) == (name, "vllm 1.2", True, 3)
    [parity] = [line for line in told if line.startswith("parity: ")]
    assert parity.startswith("parity: 3 prompts through transformers and vllm 1.2 (merged, float32): 3 prompts and 3 ")
    assert kept(tmp_path) == [f"{name}-vllm_1.2-merged-float32-weights_none-cache_auto.json"]
    assert (record.counts["rows"], len(vllm.started), vllm.references) == (3, 1, 1)

    again, told = run(places, tmp_path)

    assert (again.by_reason, vllm.references) == ({"new": 2}, 1)
    assert not any(line.startswith("parity") for line in told)
    assert not (tmp_path / again.run.folder / "parity.json").exists()


@pytest.mark.parametrize(
    ("changes", "kept_as"),
    [
        ({"served": "lora"}, "lora-float32-weights_none-cache_auto"),
        ({"quantization": "fp8"}, "merged-float32-weights_fp8-cache_auto"),
        ({"kv_cache_dtype": "fp8"}, "merged-float32-weights_none-cache_fp8"),
    ],
)
def test_another_way_of_serving_is_compared_anew(
    places: Places, tmp_path: Path, vllm: FakeVllm, changes: dict[str, Any], kept_as: str
) -> None:
    run(places, tmp_path)
    run(places, tmp_path, **changes)

    assert [name for name in kept(tmp_path) if kept_as in name]
    assert vllm.references == 2


def test_vllm_is_imported_while_transformers_merges(
    places: Places, tmp_path: Path, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, imported = merged_model._merge, threading.Event()

    def after_the_imports(*asked: Any) -> float:
        assert imported.wait(60)
        return merge(*asked)

    monkeypatch.setattr(merged_model, "_merge", after_the_imports)
    monkeypatch.setattr(parity_gate, "import_vllm", lambda *, cpu: imported.set())
    record, _ = run(places, tmp_path)

    assert record.start is not None
    found = {phase.name: phase for phase in record.start.phases}
    here, merged = ["adapter", "plan", "photos", "vLLM's imports"], ["merge", "write", "transformers"]
    assert sorted(found) == sorted([*here, *merged, "engine", "parity", "first answer"])
    assert found["merge"].began <= found["vLLM's imports"].began
    assert found["vLLM's imports"].ended <= found["merge"].ended <= found["write"].began
    assert found["transformers"].ended <= found["engine"].began  # a GPU has no room for both
    assert found["first answer"].ended == pytest.approx(record.start.seconds, abs=0.01)
    written = json.loads((tmp_path / record.run.folder / "run.json").read_text())["start"]
    assert [phase["name"] for phase in written["phases"]] == [phase.name for phase in record.start.phases]
    report = (tmp_path / record.run.folder / "report.html").read_text()
    assert f"<b>Start:</b> {record.start.seconds:.0f} s" in report

    again = dry_run(RunRequest(str(places.bucket), str(places.adapter), str(tmp_path), SETTINGS)).lines()
    assert f"expected start: {describe_start(record.start)} or less, as run {record.run.run_id} took" in again


@pytest.mark.parametrize("killed", [False, True])
def test_a_worker_waits_for_the_one_that_compares_on_its_machine(
    places: Places, tmp_path: Path, vllm: FakeVllm, killed: bool
) -> None:
    """If that one is killed, the worker compares by itself."""
    run(places, tmp_path / "other")
    [name], output = kept(tmp_path / "other"), open_store(str(tmp_path / "out"), create=True)
    with ThreadPoolExecutor(1) as pool:
        with if_first(parity_gate.lock_of(output, f"parity/{name}")) as held:
            assert held
            running = pool.submit(run, places, tmp_path / "out")
            while len(vllm.started) < 2 and not running.done():
                time.sleep(0.05)
            time.sleep(0.2)
            assert not running.done()
            assert not (tmp_path / "out" / "history").exists()
            if not killed:
                output.put(f"parity/{name}", (tmp_path / "other" / "parity" / name).read_bytes())
        record, _ = running.result()

    assert record.counts["ok"] + record.counts["failed"] == 3
    assert vllm.references == (2 if killed else 1)
    assert [hasattr(engine, "model") for engine in vllm.started[1:-1]] == [False] * killed  # closed
    assert kept(tmp_path / "out") == [name]


def test_an_engine_without_the_adapter_is_blocked_until_it_is_fixed(
    places: Places, tmp_path: Path, vllm: FakeVllm
) -> None:
    vllm.broken = True
    with pytest.raises(ParityFailed) as caught:
        run(places, tmp_path, run_id="night")

    message = str(caught.value)
    assert message.startswith("run night: vllm 1.2 does not give the trained model's answers: product ")
    assert message.endswith(
        f"; {tmp_path}/runs/night/parity.json has the figures; check the versions of vllm and transformers against "
        "constraints.txt, or use the engine transformers"
    )
    assert ", token " in message
    found = json.loads((tmp_path / "runs" / "night" / "parity.json").read_text())
    assert not found["ok"]
    assert found["finding"] in message
    assert kept(tmp_path) == []
    assert not (tmp_path / "history").exists()
    [engine] = vllm.started
    assert not hasattr(engine, "model")  # closed
    state: Any = SimpleNamespace(data=caught.value)
    assert not worth_retrying(*[state] * 3)

    vllm.broken = False
    record, _ = run(places, tmp_path, run_id="night")

    assert record.state == "published"
    assert len(kept(tmp_path)) == 1


def test_transformers_is_not_compared_with_itself(
    places: Places, tmp_path: Path, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_gate, "choose_engine", lambda name, device: "transformers")

    record, _ = run(places, tmp_path)

    assert (len(vllm.started), vllm.references, kept(tmp_path)) == (1, 0, [])
    assert record.start is not None
    assert [phase.name for phase in record.start.phases] == ["adapter", "plan", "engine", "first answer"]
    again = dry_run(RunRequest(str(places.bucket), str(places.adapter), str(tmp_path), SETTINGS)).lines()
    assert f"expected start: {describe_start(record.start)}, as run {record.run.run_id} took" in again


def test_faulty_photos_and_copies_are_passed_over(places: Places, tmp_path: Path, vllm: FakeVllm) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    for name, number in {"b": 0, "c": 0, "d": 1, "e": 2}.items():
        shutil.copy(places.bucket / f"{number}.png", bucket / f"{name}.png")
    (bucket / "a.jpg").write_text("no photo")
    asked: list[str] = []
    complete = TransformersEngine.complete

    def watched(self: TransformersEngine, requests: Any, **options: Any) -> Any:
        listed = list(requests)
        asked.extend(request.id for request in listed)
        return complete(self, listed, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersEngine, "complete", watched)
        run_enrichment(RunRequest(str(bucket), str(places.adapter), str(tmp_path / "out"), SETTINGS))

    assert asked[:6] == ["b", "d", "e"] * 2


def test_a_bucket_without_a_photo(tmp_path: Path, places: Places, vllm: FakeVllm) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a.jpg").write_text("no photo")

    record = run_enrichment(RunRequest(str(tmp_path / "bucket"), str(places.adapter), str(tmp_path / "out"), SETTINGS))

    assert (record.counts["failed"], kept(tmp_path / "out")) == (1, [])


@pytest.mark.parametrize("catalog", [True, False])
def test_the_command(places: Places, tmp_path: Path, vllm: FakeVllm, run_cli: RunCli, catalog: bool) -> None:
    out, source = tmp_path / "parity.json", f"--catalog {places.catalog}" if catalog else ""
    command = f"score --adapter {places.adapter} --parity --rows 5 --out {out} {source}"
    code, told, _ = run_cli(command)

    assert code == 0
    assert told.startswith("5 prompts through transformers and vllm 1.2 (merged, float32): 5 prompts and 5 answers ")
    assert told.endswith(f"the same model: adapter {read_adapter(places.adapter).id}: {out}\n")
    assert json.loads(out.read_text())["rows"] == 5

    vllm.broken = True
    code, _, told = run_cli(command)

    assert code == 1
    assert told.splitlines()[-1].startswith(
        f"error: adapter {places.adapter}: vllm 1.2 does not give the trained model's answers: product "
    )
    assert not json.loads(out.read_text())["ok"]


@pytest.mark.parametrize("arguments", ["--rows 3", "--catalog c --rows 3", "--out o.json", ""])
def test_options_that_do_not_go_together(run_cli: RunCli, arguments: str) -> None:
    code, _, told = run_cli(f"score --adapter a {arguments}")

    assert code == 2
    assert "scoring needs --catalog; --rows needs --parity; `enrich --help` lists commands and options" in told


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, "float32"), ({"quantization": "fp8"}, "fp8"), ({"kv_cache_dtype": "fp8"}, "fp8")],
)
def test_precision(changes: dict[str, Any], expected: str) -> None:
    assert precision(RunSettings(device="cpu", **changes)) == expected
