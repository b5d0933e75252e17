"""Transformers in a process of its own, which merges, writes the checkpoint and answers."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from enrich.engines.adapter import Adapter, read_adapter
from enrich.engines.merged_model import merged_model
from enrich.engines.transformers_engine import load_engine
from enrich.errors import RunFailed, UsageError
from enrich.models.checkpoint import load_model
from enrich.phases import Phases
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from tests.testing.random_adapter import write_random_adapter
from tests.testing.vllm.serving import check_same, request

SETTINGS = RunSettings(device="cpu", max_new_tokens=12)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What is set for vLLM is for these tests alone."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    torch.set_num_threads(1)
    return read_adapter(write_random_adapter(tmp_path_factory.mktemp("a") / "adapter", TINY_MODEL_PATH, num_crops=4))


def test_it_answers_as_in_this_process_and_what_it_writes_is_what_answered(adapter: Adapter, tmp_path: Path) -> None:
    phases, photos, place = Phases(), [request(number) for number in range(3)], tmp_path / "merged"
    with merged_model(adapter, SETTINGS, phases, answers=True) as model:
        written, answers = model.keep(place), model.answer(photos)
        found = model.result(answers)
        model.result(written)
    engine = load_engine(adapter, SETTINGS)

    assert [answer.id for answer in found] == [photo.id for photo in photos]
    check_same(found, list(engine.complete(photos)))
    mine, theirs = engine.model.state_dict(), load_model(place, dtype=torch.float32, device="cpu").state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
    merge, write, ask = phases.end().phases
    assert (merge.name, write.name, ask.name) == ("merge", "write", "transformers")
    assert (write.began, ask.began) == pytest.approx((merge.ended, write.ended), abs=0.5)  # one after the other
    assert merge.began < write.began < ask.began < ask.ended
    assert 0 < merge.parts["imports"] < merge.seconds
    assert not multiprocessing.active_children()


def test_what_is_served_unmerged_is_not_merged(adapter: Adapter) -> None:
    phases, photos = Phases(), [request(number) for number in range(3)]
    beside = SETTINGS.model_copy(update={"served": "lora"})
    with merged_model(adapter, beside, phases, answers=True) as model:
        found = model.result(model.answer(photos))

    check_same(found, list(load_engine(adapter, SETTINGS).complete(photos)))
    assert [phase.name for phase in phases.end().phases] == ["load", "transformers"]


def test_a_killed_process_and_an_adapter_that_cannot_be_merged(adapter: Adapter, tmp_path: Path) -> None:
    with merged_model(adapter, SETTINGS, Phases(), answers=True) as model:
        written = model.keep(tmp_path / "merged")
        [process] = multiprocessing.active_children()
        process.kill()
        with pytest.raises(RunFailed, match="the process that merged it was killed; use a machine with more memory"):
            model.result(written)

    torn = Adapter(**{**vars(adapter), "base_at": tmp_path})
    with merged_model(torn, SETTINGS, Phases(), answers=True) as model:
        written = model.keep(tmp_path / "merged")
        with pytest.raises(UsageError):
            model.result(written)
    assert not (tmp_path / "merged").exists()
