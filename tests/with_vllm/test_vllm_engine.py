"""The engine on the tiny base: as the transformers engine, merged and unmerged, through deaths and odd photos."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from enrich.answers.completion import Completion
from enrich.answers.parse import parse_answer
from enrich.engines import vllm_process
from enrich.engines.adapter import Adapter, read_adapter
from enrich.engines.base import Request
from enrich.engines.merged_cache import merged_checkpoint
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import TransformersEngine, load_engine
from enrich.engines.vllm_engine import VllmEngine
from enrich.engines.vllm_render import completion, sampling
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision.processing import render_turn
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from tests.testing.random_adapter import write_random_adapter
from tests.testing.vllm.serving import check_same, photo, request, settings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

NUMBERS = range(24)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return read_adapter(write_random_adapter(tmp_path_factory.mktemp("a") / "adapter", TINY_MODEL_PATH, num_crops=4))


@pytest.fixture(scope="module")
def transformers(adapter: Adapter) -> TransformersEngine:
    return load_engine(adapter, RunSettings(device="cpu", max_new_tokens=80))


@pytest.fixture(scope="module")
def expected(transformers: TransformersEngine) -> list[Completion]:
    return list(transformers.complete(map(request, NUMBERS)))


@pytest.fixture(scope="module")
def engine(adapter: Adapter) -> Iterator[VllmEngine]:
    """Merged. That its process loads a tower of 112 pixels shows that the entry point was found there."""
    started = start_engine(adapter, settings())
    assert isinstance(started, VllmEngine)
    yield started
    started.close()


def test_the_same_answers_as_transformers(engine: VllmEngine, expected: list[Completion]) -> None:
    check_same(list(engine.complete(map(request, NUMBERS))), expected)


def test_the_same_answers_under_the_grammar(engine: VllmEngine, transformers: TransformersEngine) -> None:
    got = list(engine.complete(map(request, NUMBERS), grammar=True))

    check_same(got, list(transformers.complete(map(request, NUMBERS), grammar=True)))
    for answer in got:
        assert answer.finished
        assert parse_answer(answer.text, engine.tokens.prompt).category in ("BAGS", "HATS")


def test_no_more_is_pulled_than_fits_in_flight(engine: VllmEngine) -> None:
    pulled = []

    def requests() -> Iterator[Request]:
        for number in range(12):
            pulled.append(number)
            yield request(number)

    stream = engine.complete(requests())
    next(stream)

    assert len(pulled) <= 6  # five at a time, and one instead of the first that was answered
    assert len(list(stream)) == 11


def test_streams_may_be_nested(engine: VllmEngine, expected: list[Completion]) -> None:
    texts = {answer.id: answer.text for answer in expected}
    outer, inner = [], []
    for answer in engine.complete(map(request, range(8))):
        outer.append(answer)
        if len(outer) == 2:
            inner = list(engine.complete(map(request, range(8, 14))))

    assert sorted(answer.id for answer in outer) == sorted(f"photo {number}" for number in range(8))
    assert sorted(answer.id for answer in inner) == sorted(f"photo {number}" for number in range(8, 14))
    assert all(texts[answer.id] == answer.text for answer in outer + inner)


def test_a_stream_may_depend_on_its_own_answers(engine: VllmEngine, expected: list[Completion]) -> None:
    texts = {answer.id: answer.text for answer in expected}
    found: list[Completion] = []

    def requests() -> Iterator[Request | None]:
        yield from map(request, range(7))
        while len(found) < 7:
            yield None
        yield from map(request, range(7, 9))

    for answer in engine.complete(requests()):
        found.append(answer)
    assert sorted(answer.id for answer in found) == sorted(f"photo {number}" for number in range(9))
    assert all(texts[answer.id] == answer.text for answer in found)


def test_a_stream_left_early_leaves_nothing_behind(engine: VllmEngine, expected: list[Completion]) -> None:
    stream = engine.complete(map(request, range(12)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator

    check_same(list(engine.complete(map(request, NUMBERS))), expected)


def test_an_odd_page_costs_one_row(engine: VllmEngine, expected: list[Completion]) -> None:
    grey, torn = np.zeros((112, 112), np.uint8), np.zeros((112, 100, 3), np.uint8)
    large = np.zeros((336, 224, 3), np.uint8)
    odd = [Request("grey", (grey,)), Request("torn", (torn,)), Request("large", (large,))]

    got = {answer.id: answer for answer in engine.complete([*odd, request(0)])}

    assert got["grey"].error == (
        "the engine failed: an image must be a PIL image or a uint8 array (height, width, 3), "
        "got uint8 array (112, 112)"
    )
    for name, size in (("torn", "100x112"), ("large", "224x336")):
        assert got[name].error == (
            f"the engine failed: an image of {size} is not the result of hd_transform with num_crops=4 and "
            "image_size=112"
        )
    check_same([got["photo 0"]], expected[:1])


def test_a_request_that_vllm_refuses_costs_one_row(
    engine: VllmEngine, expected: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    nonsense = {"type": "structural_tag", "format": {"type": "nonsense"}}
    monkeypatch.setattr(engine, "_constrained", sampling([], 80, nonsense))

    [got] = engine.complete([request(0)], grammar=True)

    assert got.error is not None
    assert got.error.startswith("the engine failed: Invalid")
    check_same(list(engine.complete([request(0)])), expected[:1])


def test_the_ordinary_way_in(engine: VllmEngine, adapter: Adapter, expected: list[Completion]) -> None:
    """What LLM.generate and `vllm serve` do: a PIL image and the prompt's text, prepared by vLLM."""
    text = render_turn(adapter.prompt.instruction)
    wanted = {answer.id: answer for answer in expected}
    stops = [engine.processor.tokenizer.convert_tokens_to_ids("<|end|>")]
    for number in range(4):
        data = {"image": Image.fromarray(photo(number))}
        engine.process.add(f"photo {number}", {"prompt": text, "multi_modal_data": data}, sampling(stops, 80))
        while not (outputs := engine.process.outputs()):
            pass
        got = completion(outputs[0], f"photo {number}", engine.processor.tokenizer)
        check_same([got], [wanted[got.id]])


def test_a_killed_engine_is_started_again(engine: VllmEngine, expected: list[Completion]) -> None:
    answered = []
    for answer in engine.complete(map(request, NUMBERS)):
        answered.append(answer)
        if len(answered) == 3:
            os.kill(engine.process.pids[0], signal.SIGKILL)

    assert engine.restarts == 1
    check_same(answered, expected)  # every photo once, and none with an error


def test_an_engine_that_hangs_is_started_again(
    engine: VllmEngine, expected: list[Completion], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vllm_process, "HANG_SECONDS", 10.0)  # a step of the tiny base takes a tenth of one
    before = engine.restarts
    answered = []
    for answer in engine.complete(map(request, range(8))):
        answered.append(answer)
        if len(answered) == 1:
            os.kill(engine.process.pids[0], signal.SIGSTOP)

    assert engine.restarts == before + 1
    assert "vLLM died (it made no step for" in caplog.text
    check_same(answered, expected[:8])


def test_an_engine_killed_between_streams(engine: VllmEngine, expected: list[Completion]) -> None:
    before = engine.restarts
    os.kill(engine.process.pids[0], signal.SIGKILL)
    time.sleep(2)

    check_same(list(engine.complete(map(request, range(4)))), expected[:4])
    assert engine.restarts == before + 1


def test_the_adapter_unmerged(adapter: Adapter, expected: list[Completion]) -> None:
    unmerged = start_engine(adapter, settings(served="lora"))
    try:
        check_same(list(unmerged.complete(map(request, NUMBERS))), expected)
    finally:
        unmerged.close()


def test_a_merged_checkpoint_is_written_once_and_replaces_those_that_nobody_uses(
    adapter: Adapter, tmp_path: Path
) -> None:
    of_another_run = "fedcba9876543210-bfloat16"
    for name in ("0123456789abcdef-bfloat16", "mine", "catalog-float32"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / of_another_run).mkdir()
    made = merged_checkpoint(adapter, torch.float32, tmp_path)
    stamp = (made / "model.safetensors").stat().st_mtime_ns

    assert merged_checkpoint(adapter, torch.float32, tmp_path) == made == tmp_path / f"{adapter.id}-float32"
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
    kept = {made.name, f"{made.name}.lock", "mine", "catalog-float32", of_another_run}
    assert {entry.name for entry in tmp_path.iterdir()} == kept
    assert load_processor(made).preparation.num_crops == 4
