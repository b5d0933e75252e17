"""The engine in this process, on the tiny base and on models of random weights."""

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from enrich.answers.calibration import Calibration
from enrich.answers.completion import Completion
from enrich.answers.parse import parse_answer
from enrich.answers.prompt import make_prompt, render_answer
from enrich.answers.token_evidence import line_probability
from enrich.engines.adapter import Adapter, read_adapter
from enrich.engines.base import Request
from enrich.engines.predictor import Predictor, Shown
from enrich.engines.start import choose_engine, need_vllm_imports, start_engine
from enrich.engines.transformers_engine import TransformersEngine, find_base, load_base_engine, load_engine
from enrich.errors import UsageError
from enrich.models.adapted import load_adapted
from enrich.models.checkpoint import load_model, load_processor
from enrich.models.device import device_and_dtype
from enrich.models.phi3_vision.processing import render_turn
from enrich.settings.models import TINY_MODEL, TINY_MODEL_PATH
from enrich.settings.review import ReviewSettings
from enrich.settings.run import RunSettings
from tests.testing.tiny_phi3v import Tiny, tiny_phi3v
from tests.testing.tiny_tokenizer import CATEGORIES

PROMPT = make_prompt(CATEGORIES, "EUR")
SETTINGS = RunSettings(device="cpu", batch_size=2, max_new_tokens=80)


def request(number: int) -> Request:
    """A page of noise for the tiny base; sizes differ, and with them the number of image tokens."""
    rng = np.random.default_rng(number)
    return Request(str(number), (rng.integers(0, 256, (112 + 112 * (number % 3), 112, 3), dtype=np.uint8),))


BROKEN = Request("broken", (np.zeros((8, 8), np.uint8),))  # no colour channels


@pytest.fixture(scope="session")
def engine() -> TransformersEngine:
    """The shipped tiny base without an adapter."""
    torch.set_num_threads(1)
    model = load_model(TINY_MODEL_PATH, dtype=torch.float32, device="cpu")
    return TransformersEngine(model, load_processor(TINY_MODEL_PATH), PROMPT, batch_size=3, max_new_tokens=80)


@pytest.fixture(scope="session")
def constrained(engine: TransformersEngine) -> list[Completion]:
    return list(engine.complete(map(request, range(5)), grammar=True))


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_phi3v(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(random_base: Tiny, tmp_path: Path) -> Adapter:
    """A LoRA adapter of random weights on the random base."""
    path = tmp_path / "adapter"
    torch.manual_seed(1)
    base = load_model(random_base.path, dtype=torch.float32, device="cpu")
    targets = r"model\.layers\.\d+\.(?:self_attn|mlp)\.(?:qkv_proj|down_proj)"
    wrapped = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    wrapped.peft_config["default"].base_model_name_or_path = str(random_base.path)
    wrapped.save_pretrained(path, save_embedding_layers=False)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((random_base.path / name).read_bytes())
    random_base.processor.image_processor.save_pretrained(path)
    (path / "prompt.json").write_text(PROMPT.model_dump_json())
    (path / "calibration.json").write_text(Calibration.uncalibrated().model_dump_json())
    (path / "train.json").write_text("{}")
    return read_adapter(path)


def test_the_grammar_gives_answers_of_the_taxonomy(engine: TransformersEngine, constrained: list[Completion]) -> None:
    assert [completion.id for completion in constrained] == ["0", "1", "2", "3", "4"]
    for completion in constrained:
        assert completion.error is None
        assert completion.finished
        assert parse_answer(completion.text, PROMPT).category in CATEGORIES
        assert 0 <= line_probability(completion, engine.tokens.spans(completion.token_ids), "category") <= 1


def test_a_stream_may_depend_on_its_own_answers(engine: TransformersEngine) -> None:
    found: list[str] = []

    def requests() -> Iterator[Request | None]:
        yield from map(request, range(3))
        while len(found) < 3:
            yield None
        yield request(3)

    for completion in engine.complete(requests()):
        found.append(completion.id)
    assert found == ["0", "1", "2", "3"]


def test_a_completion_holds_its_evidence(engine: TransformersEngine, constrained: list[Completion]) -> None:
    prompt = len(engine.processor.tokenizer(render_turn(PROMPT.instruction).replace("<|image_1|>", "")).input_ids)
    for completion in constrained:
        n = len(completion.token_ids)
        assert completion.text == engine.processor.tokenizer.decode(completion.token_ids)
        assert completion.logprobs.shape == (n,)
        assert completion.top_ids.shape == completion.top_logprobs.shape == (n, 8)
        assert completion.top_ids[:, 0].tolist() == list(completion.token_ids)
        assert (np.diff(completion.top_logprobs[:, :2]) <= 0).all()
        assert completion.prompt_tokens > prompt
    # Photos of another shape take another number of tokens; padding is not counted.
    assert constrained[0].prompt_tokens == constrained[3].prompt_tokens != constrained[2].prompt_tokens


def test_batches_change_nothing(engine: TransformersEngine, constrained: list[Completion]) -> None:
    for alone in (completion for i in range(5) for completion in engine.complete([request(i)], grammar=True)):
        assert alone.text == constrained[int(alone.id)].text
        assert alone.logprobs == pytest.approx(constrained[int(alone.id)].logprobs, abs=1e-3)


def test_every_request_has_one_completion(engine: TransformersEngine) -> None:
    pulled = []

    def requests() -> Iterator[Request]:
        for i in range(7):
            pulled.append(i)
            yield request(i)

    stream = engine.complete(requests())
    first = next(stream)

    assert len(pulled) == 3  # a batch, no more
    assert [first.id, *(completion.id for completion in stream)] == list("0123456")


def test_a_photo_that_breaks_the_batch_costs_one_row(engine: TransformersEngine, constrained: list[Completion]) -> None:
    found = {c.id: c for c in engine.complete([request(0), BROKEN, request(1), request(2)], grammar=True)}

    assert {*found} == {"0", "broken", "1", "2"}
    assert found["broken"].error == (
        "the engine failed: an image must be a PIL image or a uint8 array (height, width, 3), got uint8 array (8, 8)"
    )
    assert found["broken"].token_ids == ()
    for number in range(3):
        assert found[str(number)].text == constrained[number].text


def test_a_model_that_fails_costs_its_rows_only(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("\nCUDA error: out of luck\nCompile with ...")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model.model, "forward", fail)
        failed = list(engine.complete(map(request, range(2))))
    healthy = list(engine.complete([request(0)], grammar=True))

    assert [(c.id, c.error) for c in failed] == [(i, "the engine failed: CUDA error: out of luck") for i in "01"]
    assert healthy[0].error is None


def test_a_budget_that_runs_out_is_reported(engine: TransformersEngine) -> None:
    short = TransformersEngine(engine.model, engine.processor, PROMPT, max_new_tokens=3)

    [completion] = short.complete([request(0)], grammar=True)

    assert (completion.finished, len(completion.token_ids)) == (False, 3)


@pytest.mark.parametrize("title", ["Blue shirt", "x  y", "T-shirt (2 pcs.)", "Überwurf 帽子 🙂", "don't , stop ."])
def test_an_answer_survives_the_tokenizer(engine: TransformersEngine, title: str) -> None:
    tokenizer = engine.processor.tokenizer
    for category in CATEGORIES:
        text = render_answer(PROMPT, title, category, 1290)
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True) == text


def test_a_predictor_ends_in_known_categories(engine: TransformersEngine) -> None:
    predictor = Predictor(engine, engine.tokens, Calibration.uncalibrated(), ReviewSettings())
    photos = [Shown(f"{i}.jpg", (request(i % 4),)) for i in range(6)]

    outcomes = dict(predictor.answer(photos))

    assert {*outcomes} == {f"{i}.jpg" for i in range(6)}
    for outcome in outcomes.values():
        assert outcome.answer is not None
        assert outcome.answer.category in CATEGORIES
    assert outcomes["0.jpg"] == outcomes["4.jpg"]


def test_an_adapter_is_served_merged(adapter: Adapter, random_base: Tiny) -> None:
    served, base = load_engine(adapter, SETTINGS), load_base_engine(random_base.path, adapter, SETTINGS)

    photo = Request("0", (np.random.default_rng(0).integers(0, 256, (56, 28, 3), dtype=np.uint8),))
    [with_adapter], [without] = (list(e.complete([photo])) for e in (served, base))

    assert served.name == base.name == "transformers"
    assert with_adapter.error is without.error is None
    assert with_adapter.prompt_tokens == without.prompt_tokens
    assert not np.array_equal(with_adapter.logprobs[:1], without.logprobs[:1])
    beside: Any = load_adapted(random_base.path, adapter.path, dtype=torch.float32, device="cpu")
    [unmerged] = TransformersEngine(beside, served.processor, PROMPT, max_new_tokens=80).complete([photo])
    assert with_adapter.token_ids == unmerged.token_ids
    assert with_adapter.logprobs == pytest.approx(unmerged.logprobs, abs=1e-4)
    served.close()
    assert not hasattr(served, "model")


def test_starting_takes_the_engine_asked_for(adapter: Adapter) -> None:
    started = start_engine(adapter, SETTINGS)

    assert started.name == "transformers"
    assert len(list(started.complete(map(request, range(3))))) == 3


def test_an_adapter_of_another_base_is_refused(adapter: Adapter) -> None:
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = TINY_MODEL
    (adapter.path / "adapter_config.json").write_text(json.dumps(config))

    with pytest.raises(UsageError) as caught:
        load_engine(read_adapter(adapter.path), SETTINGS)

    message = str(caught.value)
    assert message.startswith(f"adapter {adapter.path}: it does not fit its base {TINY_MODEL}: ")
    assert "tensors do not match the model: " in message
    assert message.endswith("; fine-tune on this base, or name the base it was made from")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/base", "model /no/such/base: no such directory; give a local checkpoint or a Hub name"),
        ("./base", "model ./base: no such directory; give a local checkpoint or a Hub name"),
        ("two words", "model two words: neither a local directory nor a Hub name"),
    ],
)
def test_a_base_that_cannot_be_had(model: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_base(model, None)

    assert str(caught.value) == message


def test_a_base_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3_v"}')

    with pytest.raises(UsageError) as caught:
        find_base(str(tmp_path), None)

    assert str(caught.value) == (f"model {tmp_path}: no *.safetensors weights; give a complete checkpoint directory")


def test_the_tiny_base_is_found_by_name() -> None:
    assert find_base(TINY_MODEL, None) == TINY_MODEL_PATH


@pytest.mark.parametrize(
    ("device", "gpu", "expected"),
    [
        ("cpu", False, ("cpu", torch.float32)),
        ("auto", False, ("cpu", torch.float32)),
        ("cpu", True, ("cpu", torch.float32)),
        ("auto", True, ("cuda", torch.bfloat16)),
        ("cuda", True, ("cuda", torch.bfloat16)),
    ],
)
def test_the_device_decides_the_precision(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu: bool, expected: tuple[str, torch.dtype]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    assert device_and_dtype(device) == (torch.device(expected[0]), expected[1])


def test_vllm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert choose_engine("auto") == choose_engine("transformers") == "transformers"
    with pytest.raises(UsageError) as caught:
        choose_engine("vllm")
    assert str(caught.value) == (
        "engine vllm: vLLM is not installed; pip install 'enrich[vllm]', or use --engine transformers"
    )


def test_packages_that_vllm_imports_for_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(model_type: str) -> str:
        (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
        with pytest.raises(UsageError) as caught:
            need_vllm_imports(tmp_path)
        return str(caught.value)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    assert refusal("qwen3_vl") == (
        "engine vllm: for Qwen3-VL it needs torchvision: operator torchvision::nms does not exist; install torchvision "
        f"(the build for torch {torch.__version__}), or use --engine transformers"
    )
    (tmp_path / "torchvision.py").write_text("")
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert refusal("smolvlm") == (
        "engine vllm: for SmolVLM2 it needs num2words: import of num2words halted; None in sys.modules; "
        "install num2words, or use --engine transformers"
    )
    monkeypatch.delitem(sys.modules, "torchvision")


@pytest.mark.parametrize(
    ("name", "device", "gpu", "chosen"),
    [
        ("auto", "auto", True, "vllm"),
        ("auto", "cuda", True, "vllm"),
        ("auto", "cpu", True, "transformers"),
        ("auto", "auto", False, "transformers"),
        ("transformers", "auto", True, "transformers"),
        ("vllm", "cpu", False, "vllm"),
    ],
)
def test_vllm_that_is_installed_is_taken_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch, name: Any, device: Any, gpu: bool, chosen: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    assert choose_engine(name, device) == chosen


def test_the_engine_times_what_only_it_can(engine: TransformersEngine) -> None:
    before = replace(engine.clock)

    def slow() -> Iterator[Request]:
        for number in range(2):
            time.sleep(0.1)
            yield request(number)

    start = time.perf_counter()
    [first, _] = engine.complete(slow())
    spent = time.perf_counter() - start

    clock = engine.clock
    starved, render, busy = clock.starved - before.starved, clock.render - before.render, clock.busy - before.busy
    assert 0.2 <= starved < 0.3
    assert min(render, busy) > 0
    assert spent - 0.1 < starved + render + busy < spent
    prompt = engine.processor.inputs(PROMPT.instruction, [request(0).pages])
    ids = prompt["input_ids"][0]
    assert first.prompt_ids.tolist() == ids.masked_fill(ids < 0, engine.processor.image_token_id).tolist()
    assert first.prompt_tokens == len(ids)
