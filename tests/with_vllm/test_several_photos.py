"""Products with one to four photos in vLLM: as the transformers engine, merged and unmerged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from enrich.answers.completion import Completion
from enrich.engines.adapter import Adapter, read_adapter
from enrich.engines.base import Request
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import load_engine
from enrich.engines.vllm_engine import VllmEngine
from enrich.engines.vllm_render import completion, sampling
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.models.phi3_vision.processing import render_turn
from enrich.pipeline.comparing import measure_parity
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from tests.testing.random_adapter import write_random_adapter
from tests.testing.vllm.serving import check_same, photo, settings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CROPS, MORE = 4, 2


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    path = tmp_path_factory.mktemp("a") / "adapter"
    write_random_adapter(path, TINY_MODEL_PATH, num_crops=CROPS, photos_per_product=4, more_crops=MORE)
    return read_adapter(path)


def _requests() -> list[Request]:
    """Products of one to four photos; every third photo is one that another product has too, in another place."""
    made = []
    for number in range(16):
        numbers = [(number + 3 * at) % 11 for at in range(1 + number % 4)]
        pages = tuple(hd_transform(photo(which), MORE if at else CROPS, 112) for at, which in enumerate(numbers))
        made.append(Request(f"product {number}", pages, tuple(f"photo {which}" for which in numbers)))
    return made


@pytest.fixture(scope="module")
def expected(adapter: Adapter) -> dict[bool, list[Completion]]:
    engine = load_engine(adapter, RunSettings(device="cpu", max_new_tokens=40))
    return {grammar: list(engine.complete(_requests(), grammar=grammar)) for grammar in (False, True)}


@pytest.mark.parametrize("served", ["merged", "lora"])
def test_the_same_answers_as_transformers(
    adapter: Adapter, expected: dict[bool, list[Completion]], served: str
) -> None:
    engine = start_engine(adapter, settings(served=served, max_new_tokens=40))
    assert isinstance(engine, VllmEngine)
    try:
        check_same(list(engine.complete(_requests())), expected[False])
        check_same(list(engine.complete(_requests(), grammar=True)), expected[True])
        unnamed = [Request(one.id, one.pages) for one in _requests()]
        check_same(list(engine.complete(unnamed)), expected[False])
        too_many = Request("many", tuple(hd_transform(photo(0), MORE if at else CROPS, 112) for at in range(5)))
        [refused] = engine.complete([too_many])
        assert refused.error == "the engine failed: 5 photos, and the adapter's prompts show 4 at most"
        if served == "merged":
            _check_the_ordinary_way_in(engine, adapter)
    finally:
        engine.close()


def _check_the_ordinary_way_in(engine: VllmEngine, adapter: Adapter) -> None:
    """What LLM.generate and `vllm serve` do: PIL images and the prompt's text, prepared by vLLM."""
    stops = [engine.processor.tokenizer.convert_tokens_to_ids("<|end|>")]
    numbers = (0, 1, 2)
    data = {"image": [Image.fromarray(photo(number)) for number in numbers]}
    prompt = {"prompt": render_turn(adapter.prompt.instruction, 3), "multi_modal_data": data}
    engine.process.add("x", prompt, sampling(stops, 40))
    while not (outputs := engine.process.outputs()):
        pass
    got = completion(outputs[0], "x", engine.processor.tokenizer)
    pages = tuple(hd_transform(photo(number), MORE if number else CROPS, 112) for number in numbers)
    [wanted] = engine.complete([Request("x", pages)])
    assert got.token_ids == wanted.token_ids
    assert np.array_equal(got.prompt_ids, wanted.prompt_ids)


def test_parity_of_prompts_of_one_to_four_photos(adapter: Adapter, tmp_path: Path) -> None:
    record = measure_parity(str(adapter.path), None, settings(max_new_tokens=16), 8, tmp_path / "parity.json")
    assert (record.ok, record.rows, record.same_prompts) == (True, 8, 8)
    assert load_processor(adapter.path).preparation.photos_per_product == 4
