"""What the engine does when its process dies, on a process that is made to."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from enrich.answers.calibration import Calibration
from enrich.answers.completion import Completion
from enrich.answers.prompt import make_prompt
from enrich.engines import vllm_clock
from enrich.engines.adapter import Adapter
from enrich.engines.base import Request
from enrich.engines.vllm_engine import DEATHS, VllmEngine, engine_arguments, load_vllm_engine, lora_arguments
from enrich.engines.vllm_process import EngineDied, last_error, start_failure, start_parts
from enrich.errors import RunFailed, UsageError
from enrich.models.checkpoint import load_processor
from enrich.models.registry import vision_model
from enrich.photos.decode import Preparation
from enrich.settings.models import TINY_MODEL, TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from tests.testing.vllm.serving import request

pytestmark = pytest.mark.vllm

PROMPT = make_prompt(("BAGS", "HATS"), "EUR")
MODEL = vision_model("phi3_v")


class Process:
    """Answers one request a step, the newest first; dies in the step after it was given one of `deadly`."""

    def __init__(self, deadly: set[str]) -> None:
        self.deadly = deadly
        self.waiting: deque[str] = deque()
        self.most = 0
        self.aborted: list[str] = []
        self.start_parts: dict[str, float] = {}
        self.dtype = torch.float32

    def add(self, id: str, prompt: Any, params: Any) -> None:
        self.waiting.append(id)
        self.most = max(self.most, len(self.waiting))

    def has_outputs(self) -> bool:
        return False

    def finished(self) -> tuple[int, float]:
        return 0, 0.0

    def outputs(self) -> list[Any]:
        if any(id.partition("-")[2] in self.deadly for id in self.waiting):
            raise EngineDied("its process ended with code -9")
        id = self.waiting.pop()
        from vllm.logprobs import FlatLogprobs

        answer = SimpleNamespace(finish_reason="length", token_ids=[], logprobs=FlatLogprobs())
        return [SimpleNamespace(request_id=id, prompt_token_ids=[1, 2], outputs=[answer])]

    def abort(self, ids: Sequence[str]) -> None:
        self.aborted += ids

    def close(self) -> None:
        """Nothing is held."""


def make(deadly: set[str], *, starts: int = 100, in_flight: int = 4) -> tuple[VllmEngine, list[Process]]:
    made: list[Process] = []

    def start() -> Any:
        if len(made) == starts:
            raise UsageError("engine vllm: not enough memory on the GPU")
        made.append(Process(deadly))
        return made[-1]

    return VllmEngine(start, load_processor(TINY_MODEL_PATH), PROMPT, in_flight=in_flight), made


def answers(engine: VllmEngine, numbers: Sequence[int]) -> dict[str, str | None]:
    found = [(answer.id, answer.error) for answer in engine.complete(map(request, numbers))]
    assert len(found) == len(dict(found))  # each of them once
    return dict(found)


def test_a_photo_that_the_engine_dies_of_twice_costs_one_row() -> None:
    engine, made = make({"photo 5"})

    found = answers(engine, range(12))

    assert found == {
        f"photo {number}": None
        if number != 5
        else "the engine failed: it died twice while it had this photo (its process ended with code -9)"
        for number in range(12)
    }
    assert (engine.restarts, len(made)) == (2, 3)
    assert all(process.most <= 4 for process in made)


def test_two_such_photos() -> None:
    engine, _ = make({"photo 5", "photo 6"})

    found = answers(engine, range(12))

    assert sorted(id for id, error in found.items() if error) == ["photo 5", "photo 6"]


def test_an_engine_that_dies_of_everything_ends_the_run() -> None:
    engine, made = make({f"photo {number}" for number in range(100)})

    with pytest.raises(RunFailed) as caught:
        answers(engine, range(100))

    assert str(caught.value) == (
        "engine vllm: died 4 times in a row: its process ended with code -9; continue with the same run id"
    )
    assert len(made) == DEATHS + 1


def test_an_engine_that_does_not_come_back() -> None:
    engine, _ = make({"photo 1"}, starts=1)

    with pytest.raises(RunFailed) as caught:
        answers(engine, range(4))

    assert str(caught.value) == (
        "engine vllm: it died (its process ended with code -9) and did not restart: "
        "engine vllm: not enough memory on the GPU"
    )


def test_what_a_stream_no_longer_wants_is_withdrawn() -> None:
    engine, [process] = make(set())
    stream = engine.complete(map(request, range(8)))
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]

    assert isinstance(first, Completion)
    assert sorted(process.aborted) == ["1-photo 0", "2-photo 1", "3-photo 2"]


def test_a_refused_request_is_an_answer() -> None:
    engine, _ = make(set())
    [refused] = engine.complete([Request("x", (request(0).pages[0][:100],))])

    assert refused.error == (
        "the engine failed: an image of 224x100 is not the result of hd_transform with num_crops=4 and image_size=112"
    )


LOG = Path("vllm.log")
_LOG = """(EngineCore) INFO Starting to load model
(EngineCore) ERROR Traceback (most recent call last):
(EngineCore) ERROR   File "x.py", line 1, in <module>
(EngineCore) ERROR {}
Process EngineCore:
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""
_WRAPPED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


@pytest.mark.parametrize(
    "reason",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "ValueError: Free memory on device cuda:0 (1/140 GiB) on startup is less than desired GPU memory utilization",
        "ValueError: No available memory for the cache blocks.",
    ],
)
def test_too_little_memory_says_what_to_lower(reason: str) -> None:
    arguments = {"gpu_memory_utilization": 0.9, "max_num_batched_tokens": 8192, "max_num_seqs": 256}

    told = start_failure(_WRAPPED, _LOG.format(reason), arguments, LOG)

    assert isinstance(told, UsageError)
    assert str(told) == (
        f"engine vllm: not enough memory on the GPU: {reason}; lower vllm.gpu_memory_utilization (0.9), "
        "vllm.max_num_batched_tokens (8192), vllm.max_num_seqs (256), set quantization and kv_cache_dtype to fp8, or "
        "stop what else runs on this GPU"
    )


def test_other_failures_to_start() -> None:
    wrong = start_failure(ValueError("max_num_batched_tokens (1024) must be\n larger"), "", {}, LOG)
    broken = start_failure(_WRAPPED, _LOG.format("AssertionError: no such kernel"), {}, LOG)

    assert (type(wrong), type(broken)) == (UsageError, RunFailed)
    assert str(wrong) == "engine vllm: max_num_batched_tokens (1024) must be larger; change that setting"
    assert str(broken) == "engine vllm: does not start: AssertionError: no such kernel; see its log vllm.log"


def test_a_log_without_errors() -> None:
    assert last_error("(EngineCore) INFO all is well\n") is None


def test_arguments_follow_the_settings() -> None:
    plain = engine_arguments(RunSettings(), torch.device("cpu"), torch.float32, MODEL)
    asked = engine_arguments(
        RunSettings(quantization="fp8", kv_cache_dtype="fp8", vllm={"max_num_seqs": 3, "block_size": 32}),
        torch.device("cpu"),
        torch.float32,
        MODEL,
    )

    assert (plain["quantization"], plain["kv_cache_dtype"], plain["max_num_seqs"]) == (None, "auto", 8)
    assert (asked["quantization"], asked["kv_cache_dtype"]) == ("fp8", "fp8")
    assert (asked["max_num_seqs"], asked["max_num_batched_tokens"], asked["block_size"]) == (3, 4096, 32)
    assert plain["max_model_len"] == 4096


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("max_model_len", "enrich sets it itself"),
        ("trust_remote_code", "enrich sets it itself"),
        ("enable_lora", "enrich sets it itself"),
        ("max_sequences", "vLLM's EngineArgs have no such field"),
    ],
)
def test_arguments_that_are_not_a_users_to_set(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"^setting vllm.{name}: {why}; remove it$"):
        engine_arguments(RunSettings(vllm={name: 1}), torch.device("cpu"), torch.float32, MODEL)


@pytest.mark.parametrize(
    ("major", "dtype", "backend"),
    [(9, "bfloat16", "CUSTOM"), (9, "float32", None), (8, "bfloat16", None), (10, "bfloat16", None)],
)
def test_answers_have_a_kernel_of_their_own_on_hopper(
    major: int, dtype: str, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    arguments = engine_arguments(RunSettings(), torch.device("cuda"), getattr(torch, dtype), MODEL)
    assert arguments["attention_backend"] == backend


@pytest.mark.parametrize(
    ("given", "count", "last"),
    [({}, 22, 512), ({"max_num_seqs": 16}, 7, 32), ({"max_cudagraph_capture_size": 100}, 10, 100)],
)
def test_few_sizes_of_steps_get_a_graph(
    given: dict[str, int], count: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=141 << 30))
    arguments = engine_arguments(RunSettings(vllm={**given}), torch.device("cuda"), torch.bfloat16, MODEL)
    sizes = arguments["cudagraph_capture_sizes"]
    assert (len(sizes), sizes[-1], sizes) == (count, last, sorted(set(sizes)))
    assert "max_cudagraph_capture_size" not in arguments
    eager = engine_arguments(RunSettings(vllm={"enforce_eager": True}), torch.device("cuda"), torch.bfloat16, MODEL)
    assert "cudagraph_capture_sizes" not in eager


_STARTED = """\
(EngineCore) INFO Loading weights took 3.10 seconds
(EngineCore) INFO Model loading took 7.83 GiB memory and 5.500000 seconds
(EngineCore) INFO torch.compile took 8.25 s in total
(EngineCore) INFO torch.compile took 1.25 s in total
(EngineCore) INFO Graph capturing finished in 6 secs, took 0.31 GiB
(EngineCore) INFO init engine (profile, create kv cache, warmup model) took 20.50 s (compilation: 8.25 s)
"""


def test_a_start_has_parts_by_its_log() -> None:
    assert start_parts(_STARTED) == {"model": 5.5, "compile": 9.5, "graphs": 6.0, "profile": 5.0}
    assert start_parts("") == dict.fromkeys(("model", "compile", "graphs", "profile"), 0.0)


def test_an_adapter_gets_room_for_its_rank(tmp_path: Path) -> None:
    from peft import LoraConfig

    LoraConfig(r=24, target_modules=["qkv_proj"]).save_pretrained(tmp_path)
    assert lora_arguments(tmp_path) == {"enable_lora": True, "max_loras": 1, "max_lora_rank": 32}


def test_an_adapter_that_can_only_be_served_merged_is_not_served_unmerged(tmp_path: Path) -> None:
    prompt, how = make_prompt(("BAGS", "HATS"), "EUR"), Preparation(4, 112)
    adapter = Adapter(
        tmp_path, "id", TINY_MODEL, None, how, ("adapt_vision: no LoRA",), prompt, Calibration.uncalibrated()
    )
    with pytest.raises(UsageError) as caught:
        load_vllm_engine(adapter, RunSettings(served="lora"))
    assert str(caught.value) == f"adapter {tmp_path}: served: lora: adapt_vision: no LoRA; set served to merged"


@pytest.mark.parametrize(
    ("finished", "busy", "starved"),
    [
        ([(0, 0.0)] * 4, 20.0, 10.0),  # nothing is through when the next photo comes
        ([(0, 0.0), (1, 12.0), (2, 23.0), (3, 30.0)], 5.0, 25.0),  # 2 s and 3 s after the last photo came
        ([(0, 0.0), (1, 12.0), (1, 23.0), (3, 30.0)], 12.0, 18.0),  # one of two is not
    ],
)
def test_an_engine_starves_once_it_is_through_with_what_it_had(
    monkeypatch: pytest.MonkeyPatch, finished: list[tuple[int, float]], busy: float, starved: float
) -> None:
    now, told = [0.0], iter(finished)
    monkeypatch.setattr(vllm_clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    engine, [process] = make(set())
    monkeypatch.setattr(process, "finished", lambda: next(told))

    def slow() -> Any:
        for number in range(3):
            now[0] += 10.0
            yield request(number)

    assert len(list(engine.complete(slow()))) == 3
    assert (engine.clock.busy, engine.clock.starved) == (busy, starved)
