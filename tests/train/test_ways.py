"""Other ways to train: the vision side too, a 4-bit base, compiled layers, several processes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image

from enrich.errors import UsageError
from enrich.models.adapted import load_merged
from enrich.models.checkpoint import load_model
from enrich.models.phi3_vision.processing import render_turn
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.settings.models import TINY_MODEL, TINY_MODEL_PATH
from enrich.train import trainer
from enrich.train.record import TrainReport
from tests.testing.tiny_job import TinyJob, weights


@pytest.mark.parametrize("adapt_vision", [True, False])
def test_with_and_without_the_vision_side_it_learns_and_merges(
    adapt_vision: bool, job: TinyJob, tmp_path: Path
) -> None:
    report, told = job.train(tmp_path, epochs=12, evaluations=1, adapt_vision=adapt_vision)
    losses = [progress.loss for progress in told if progress.loss is not None]
    assert losses[-1] < 0.6 * losses[0]
    assert report.merge_check.relative_difference < 1e-3
    adapter = tmp_path / "adapter"
    assert (tmp_path / "train.features").exists() != adapt_vision
    learned = {name for name, weight in weights(tmp_path).items() if weight.any()}
    assert any("img_processor" in name and ".lora_B." in name for name in learned) == adapt_vision
    inputs = load_processor(adapter)(render_turn(job.prompt.instruction), Image.open(job.products[0].image_paths[0]))
    merged = load_merged(job.tiny.path, adapter, dtype=torch.float32, device="cpu")
    beside = PeftModel.from_pretrained(load_model(job.tiny.path, dtype=torch.float32, device="cpu"), str(adapter))
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, beside(**inputs).logits, rtol=1e-3, atol=1e-3)


def test_what_can_only_be_served_merged_says_so(job: TinyJob, tmp_path: Path) -> None:
    report, _ = job.train(tmp_path, epochs=1, evaluations=1, adapt_vision=True)
    (reason,) = report.preflight.merge_only
    assert reason == "adapt_vision: vLLM has LoRA on the language model only"
    assert report.preflight.lines[-1] == f"served merged into the base only: {reason}"


@pytest.mark.usefixtures("bf16")
def test_vision_lora_on_a_bf16_base_ends_in_an_adapter(job: TinyJob, tmp_path: Path) -> None:
    """The noise of random bf16 weights goes through tower and decoder: no constant limit fits it."""
    report, _ = job.train(tmp_path, epochs=12, evaluations=1, adapt_vision=True)
    assert report.merge_check.ok
    assert (tmp_path / "adapter" / "train.json").is_file()


def test_a_4bit_base_learns_and_its_merge_is_compared_with_what_was_trained_on(job: TinyJob, tmp_path: Path) -> None:
    # The shipped base: bitsandbytes' CPU kernels take no layers as small as the random one's.
    changes: dict[str, Any] = {"load_in_4bit": True, "epochs": 12, "evaluations": 1, "learning_rate": 3e-3}
    report, told = job.train(tmp_path, base=TINY_MODEL_PATH, model=TINY_MODEL, **changes)
    losses = [progress.loss for progress in told if progress.loss is not None]
    assert losses[-1] < 0.6 * losses[0]
    check = report.merge_check
    assert check.ok
    assert check.relative_difference < 0.02  # 1e-3
    assert check.served is not None  # the base in full precision says something else, which is reported
    assert check.served.relative_difference > 3 * check.relative_difference
    plain = load_model(TINY_MODEL_PATH, dtype=torch.float32, device="cpu")
    packed = load_model(TINY_MODEL_PATH, dtype=torch.float32, device="cpu", load_in_4bit=True)
    assert packed.get_memory_footprint() < 0.6 * plain.get_memory_footprint()
    assert type(packed.model.layers[0].mlp.down_proj).__name__ == "Linear4bit"
    tower: Any = packed.model.vision_embed_tokens.tower_layers[0]
    assert type(tower.mlp.fc1) is torch.nn.Linear


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_compiled_layers_learn_the_same(load_in_4bit: bool, job: TinyJob, tmp_path: Path) -> None:
    pair = job.products[:2]  # one batch, so one length to compile for
    own: dict[str, Any] = {"load_in_4bit": True, "base": TINY_MODEL_PATH, "model": TINY_MODEL, "learning_rate": 3e-3}
    losses, names, graphs = [], [], []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        changes: dict[str, Any] = {"epochs": 4, "evaluations": 1, "batch_size": 2, "effective_batch_size": 2}
        changes |= own if load_in_4bit else {}
        _, told = job.train(tmp_path / str(compiled), pair, compile=compiled, **changes)
        losses.append([progress.loss for progress in told if progress.loss is not None])
        names.append(weights(tmp_path / str(compiled)).keys())
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert names[0] == names[1]
    # A tower layer, the first decoder layer, which has no gradient to pass on, and the others: training reuses the
    # code that the trial step compiled. A 4-bit base's layers are no more, so nothing in them interrupts a graph.
    assert graphs == [0, 3]


_ONE_OF_TWO = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from enrich.answers.prompt import Prompt
from enrich.vocabulary import Product
from enrich.settings.training import TrainSettings
from accelerate import PartialState
from enrich.train.run import train

products, prompt, settings, base, workdir = json.loads(Path(sys.argv[1]).read_text())
losses = []
report = train([Product(**product) for product in products], [Product(**product) for product in products],
               Prompt(**prompt), TrainSettings(**settings), Path(base), Path(workdir), data_fingerprint="data",
               on_progress=lambda told: losses.append(told.loss) if told.loss is not None else None)
state = PartialState()
assert (state.num_processes, torch.distributed.get_world_size()) == (2, 2), state
assert torch.distributed.get_backend() == "gloo"
Path(sys.argv[1]).with_suffix(f".{state.process_index}").write_text(json.dumps([state.num_processes, losses]))
"""


def test_two_processes_learn_what_one_does(any_job: TinyJob, tmp_path: Path) -> None:
    """As torchrun starts them, on the CPU: the effective batch is the same, so the losses are."""
    changes: dict[str, Any] = {"epochs": 3, "evaluations": 1, "effective_batch_size": 4, "max_minutes": 60}
    four = [*any_job.products[:3], any_job.products[4]]
    rows, settings = [asdict(product) for product in four], any_job.settings(batch_size=2, **changes)
    given = tmp_path / "job.json"
    places = (str(any_job.tiny.path), str(tmp_path / "two"))
    given.write_text(json.dumps([rows, any_job.prompt.model_dump(), settings.model_dump(), *places]))
    root = Path(__file__).parents[2]
    script = tmp_path / "one_of_two.py"
    script.write_text(_ONE_OF_TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), str(given)], capture_output=True, text=True, cwd=root, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    _, told = any_job.train(tmp_path / "one", four, batch_size=4, **changes)
    # Each was one of two; both saw the same losses, for they learn from all photos together.
    (size, losses), (_, others) = (json.loads(given.with_suffix(f".{rank}").read_text()) for rank in (0, 1))
    assert size == 2
    assert len(losses) == 3
    assert others == losses
    assert losses == pytest.approx([progress.loss for progress in told if progress.loss is not None], rel=1e-4)
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert two.keys() == one.keys()
    # AdamW makes whole steps of gradients that are hardly more than rounding: one weight in thousands goes astray.
    close = {name: torch.isclose(two[name], one[name], rtol=1e-2, atol=1e-4).float().mean() for name in one}
    assert min(close.values()) > 0.999
    report = TrainReport.model_validate_json((tmp_path / "two" / "adapter" / "train.json").read_bytes())
    assert (report.rows.train, report.steps) == (4, 3)


def test_a_batch_that_the_processes_cannot_share_is_refused(job: TinyJob, monkeypatch: pytest.MonkeyPatch) -> None:

    class Three:
        num_processes = 3

    monkeypatch.setattr(trainer, "PartialState", Three)
    with pytest.raises(UsageError) as raised:
        trainer.training_arguments(
            job.settings(batch_size=2, effective_batch_size=8), Path("x"), device=torch.device("cpu"),
            dtype=torch.float32,
        )  # fmt: skip
    assert str(raised.value) == (
        "effective_batch_size 8 is not a multiple of batch_size 2 times 3 processes; "
        "lower batch_size or raise effective_batch_size"
    )
