"""Fine-tuning end to end: what it learns, what it writes, and what a kill costs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from enrich.answers.calibration import Calibration
from enrich.answers.prompt import Prompt, render_answer
from enrich.engines.adapter import read_adapter
from enrich.errors import RunFailed, UsageError
from enrich.models.adapted import load_merged
from enrich.models.base import PREPARATION_VERSION, Preparation
from enrich.models.checkpoint import load_model
from enrich.models.generation import generate_answers
from enrich.models.phi3_vision.processing import END, render_turn
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.photos.decode import prepare
from enrich.settings.photos import PhotoLimits
from enrich.train import merge_check
from enrich.train import run as run_module
from enrich.train.collate import Photos
from enrich.train.record import TrainProgress, TrainReport
from enrich.train.workdir import own_workdir
from tests.testing.tiny_job import TinyJob, weights

Trained = tuple[Path, TrainReport, list[TrainProgress]]


@pytest.fixture(scope="module")
def trained(job: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    workdir = tmp_path_factory.mktemp("trained") / "work"
    return workdir, *job.train(workdir)


def test_a_handful_of_photos_is_learned(trained: Trained) -> None:
    _, report, told = trained
    assert told[-1].loss is not None
    assert told[-1].loss < 0.05
    assert report.best.score == report.best.parse_rate == report.best.category_accuracy == 1.0
    assert report.best.mdape == 0.0
    assert [progress.stage for progress in told if progress.step == progress.steps] == ["photos", "base", "training"]
    assert [progress.step for progress in told[:10]] == list(range(1, 11))
    assert told[0].what == "reading photos"
    assert told[-1].what.startswith("training, loss 0.0")


def test_the_adapter_serves_what_was_taught(trained: Trained, job: TinyJob) -> None:
    adapter = trained[0] / "adapter"
    model = load_merged(job.tiny.path, adapter, dtype=torch.float32, device="cpu")
    processor = load_processor(adapter)
    photos = [[Image.open(product.image_paths[0])] for product in job.products]
    inputs = processor([render_turn(job.prompt.instruction)] * len(photos), photos)
    answers = generate_answers(
        model, inputs, max_new_tokens=70, stop_ids=[processor.tokenizer.convert_tokens_to_ids(END)]
    )
    assert [processor.tokenizer.decode(answer.token_ids) for answer in answers] == [
        render_answer(job.prompt, product.title, product.category, product.price) for product in job.products
    ]
    assert all(answer.finished for answer in answers)


def test_the_adapter_directory_is_complete(trained: Trained, job: TinyJob) -> None:
    workdir, report, _ = trained
    adapter = workdir / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(job.tiny.path)
    assert (config["revision"], config["r"], config["lora_alpha"]) == (None, 16, 32)
    assert all(".lora_A." in name or ".lora_B." in name for name in weights(workdir))
    assert (adapter / "config.json").read_bytes() == (job.tiny.path / "config.json").read_bytes()
    assert json.loads((adapter / "preprocessor_config.json").read_text())["num_crops"] == 4
    assert Prompt.read(adapter / "prompt.json") == job.prompt
    assert TrainReport.model_validate_json((adapter / "train.json").read_bytes()) == report
    assert not (workdir / "unverified").exists()
    assert (report.steps, report.planned_steps, report.skipped_steps, report.stopped) == (80, 80, 0, "finished")
    assert (report.rows.train, report.rows.validation, report.rows.dropped) == (5, 5, ())
    assert report.trainable_parameters == 2 * 16 * ((32 + 96) + (32 + 32) + (32 + 96) + (48 + 32))
    assert report.versions["torch"] == torch.__version__
    assert min(report.seconds, report.images_per_second, report.peak_memory_bytes) > 0


def test_processor_and_tokenizer_of_the_adapter_give_the_ids_and_pixels_of_training(
    trained: Trained, job: TinyJob
) -> None:
    adapter = trained[0] / "adapter"
    text = render_turn(job.prompt.instruction) + render_answer(job.prompt, "Red Scarf  ü", "WARM", 120) + END
    photo = Image.open(job.products[2].image_paths[0])
    before, after = job.tiny.processor(text, photo), load_processor(adapter)(text, photo)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain = text.replace("<|image_1|>", "")
    assert AutoTokenizer.from_pretrained(adapter)(plain).input_ids == job.tiny.processor.tokenizer(plain).input_ids


def test_num_crops_of_the_settings_reach_training_and_the_adapter(job: TinyJob, tmp_path: Path) -> None:
    job.train(tmp_path, num_crops=1, epochs=1, evaluations=1)
    processor = load_processor(tmp_path / "adapter")
    assert processor.image_processor.num_crops == 1
    # 5 photos of (1 + 1) * 4 + 1 + 2 * 2 tokens, 32 floats each
    assert (tmp_path / "train.features").stat().st_size == 5 * 13 * 32 * 4


@pytest.mark.parametrize("fast_decode", [False, True])
def test_photos_are_prepared_in_training_as_the_adapter_says_for_serving(
    fast_decode: bool, job: TinyJob, tmp_path: Path
) -> None:
    photo = Image.effect_noise((400, 300), 80).convert("RGB")
    photo.save(tmp_path / "photo.jpg", quality=95)
    job.train(tmp_path / "work", epochs=1, evaluations=1, fast_decode=fast_decode)
    adapter = tmp_path / "work" / "adapter"
    (adapter / "calibration.json").write_text(Calibration.uncalibrated().model_dump_json())
    how = read_adapter(adapter).preparation
    assert how == Preparation(4, 28, fast_decode, version=PREPARATION_VERSION)
    limits, processor = PhotoLimits(), load_processor(adapter)
    page = prepare((tmp_path / "photo.jpg").read_bytes(), limits, how).page
    served = processor.image_processor(page, do_hd_transform=False, do_normalize=False)
    product = replace(job.products[0], image_paths=(str(tmp_path / "photo.jpg"),))
    trained_on = Photos(job.build([product])[0], processor, limits)[0]
    assert isinstance(trained_on.images[0], dict)
    assert torch.equal(trained_on.images[0]["pixel_values"], served["pixel_values"])


def test_the_merged_model_is_the_adapter(trained: Trained) -> None:
    check = trained[1].merge_check
    assert (check.rows, check.same_answers) == (5, 5)
    assert check.relative_difference < 1e-4


def _with_lost(lost: Callable[[str], bool]) -> Callable[..., torch.nn.Module]:
    """A `load_merged` that loses the adapter of every module that `lost` says."""

    def forgets(base: Path, adapter: Path, *, quantize_on: object = None, **where: Any) -> torch.nn.Module:
        merged, plain = load_merged(base, adapter, **where), load_model(base, **where).state_dict()
        merged.load_state_dict({name: plain[name] for name in plain if lost(name)}, strict=False)
        return merged

    return forgets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lost", [lambda name: True, lambda name: name.startswith("model.layers.1.")], ids=["all", "half of the layers"]
)
def test_a_merge_that_loses_the_adapter_fails_and_the_adapter_is_kept_fit_to_be_served_unmerged(
    lost: Callable[[str], bool], dtype: torch.dtype, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "device_and_dtype", lambda _: (torch.device("cpu"), dtype))
    monkeypatch.setattr(merge_check, "load_merged", _with_lost(lost))
    with pytest.raises(RunFailed) as caught:
        job.train(tmp_path, epochs=20, evaluations=1)
    kept = tmp_path / "unverified"
    message = str(caught.value)
    assert message.startswith("the merged model is not the adapter: logits differ by ")
    assert message.endswith(
        f" of 5 answers agree; the adapter is kept in {kept}: serve it unmerged (engine: vllm, "
        "served: lora), or check the versions of peft and transformers against constraints.txt and try again"
    )
    assert not (tmp_path / "adapter").exists()
    assert read_adapter(kept).merge_only == ()
    check = TrainReport.model_validate_json((kept / "train.json").read_bytes()).merge_check
    assert not check.ok
    assert check.relative_difference > check.limit


@pytest.mark.usefixtures("bf16")
def test_the_limit_of_a_bf16_merge_follows_the_models_own_noise(job: TinyJob, tmp_path: Path) -> None:
    report, _ = job.train(tmp_path, epochs=20, evaluations=1)
    check = report.merge_check
    assert check.ok
    assert check.limit == max(merge_check.LEAST_LIMIT, merge_check.NOISE_FACTOR * check.noise)
    assert 0.3 * check.noise < check.relative_difference < merge_check.NOISE_FACTOR * check.noise
    assert check.served is None


@pytest.mark.usefixtures("bf16")
def test_a_bf16_base_trains_with_a_float32_adapter(job: TinyJob, tmp_path: Path) -> None:
    report, told = job.train(tmp_path, epochs=50, evaluations=1)
    assert told[-1].loss is not None
    assert told[-1].loss < 0.05
    assert report.best.score == 1.0
    assert {weight.dtype for weight in weights(tmp_path).values()} == {torch.float32}
    assert 1e-5 < report.merge_check.relative_difference < 0.05  # rounding to 8 bits, and no more
    assert report.merge_check.ok
    assert (tmp_path / "train.features").stat().st_size == (3 * 27 + 21 + 25) * 32 * 2


def test_cached_features_change_nothing(job: TinyJob, tmp_path: Path) -> None:
    job.train(tmp_path / "cached", epochs=5, evaluations=1)
    job.train(tmp_path / "fresh", epochs=5, evaluations=1, cache_vision_features=False)
    assert not (tmp_path / "fresh" / "train.features").exists()
    torch.testing.assert_close(weights(tmp_path / "fresh"), weights(tmp_path / "cached"), rtol=1e-3, atol=1e-5)


# Trains in one forked process after another, each of which kills itself at its moment: importing torch takes longer
# than such a run.
_KILLED = """
import json, os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from enrich.answers.prompt import Prompt
from enrich.vocabulary import Product
from enrich.settings.training import TrainSettings
from enrich.train import fit
from enrich.train.run import train
from enrich.train.trainer import AnswerTrainer

products, prompt, settings, base, moments = json.loads(sys.stdin.read())

def start(workdir, moment, step):
    def die(now, at):
        if (now, at) == (moment, step):
            os.kill(os.getpid(), signal.SIGKILL)

    class Watched(AnswerTrainer):
        def save_model(self, *arguments, **more):
            super().save_model(*arguments, **more)
            die("saving", self.state.global_step)
        def _save_checkpoint(self, *arguments):
            super()._save_checkpoint(*arguments)
            die("saved", self.state.global_step)

    fit.AnswerTrainer = Watched
    rows = [Product(**product) for product in products]
    train(rows, rows, Prompt(**prompt), TrainSettings(**settings), Path(base), Path(workdir), data_fingerprint="data",
          on_progress=lambda told: die(told.stage, told.step))

for moment in moments:
    child = os.fork()
    if not child:
        start(*moment)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        sys.exit(f"not killed: {moment}")
"""
# Two steps an epoch, the second of one photo; evaluations and checkpoints at steps 3, 5, 8 and 10; NEFTune draws random
# noise, which a resumed run must draw alike.
_RESUMED: dict[str, Any] = {
    "epochs": 5,
    "evaluations": 4,
    "batch_size": 2,
    "effective_batch_size": 4,
    "optimizer": {"neftune_noise_alpha": 1},
}
_MOMENTS = {  # of the kill, and the step at which the run then continues
    ("training", 1): 1,  # before any checkpoint
    ("training", 7): 6,  # in the middle of an epoch, two steps after a checkpoint
    ("saved", 5): 6,  # right after an evaluation and its checkpoint
    ("saving", 8): 6,  # with half of a checkpoint written, at the end of an epoch
}


@pytest.fixture(scope="module")
def undisturbed(job: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, job.train(workdir, **_RESUMED)[0]


@pytest.fixture(scope="module")
def killed(job: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Work directories of runs that were killed, by the moment of it."""
    left = {moment: tmp_path_factory.mktemp("killed") for moment in _MOMENTS}
    arguments = [
        [asdict(product) for product in job.products],
        job.prompt.model_dump(),
        job.settings(**_RESUMED).model_dump(),
        str(job.tiny.path),
        [(str(workdir), *moment) for moment, workdir in left.items()],
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED],
        input=json.dumps(arguments),
        text=True,
        capture_output=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return left


@pytest.mark.parametrize("moment", _MOMENTS, ids=str)
def test_a_killed_run_continues_and_ends_bit_for_bit_as_if_nothing_had_happened(
    job: TinyJob, undisturbed: tuple[Path, TrainReport], killed: dict[tuple[str, int], Path], moment: tuple[str, int]
) -> None:
    workdir = killed[moment]
    assert not (workdir / "adapter").exists()
    resumed, told = job.train(workdir, **_RESUMED)
    steps = [progress.step for progress in told if progress.stage == "training"]
    assert steps == list(range(_MOMENTS[moment], 11))
    reference, report = undisturbed
    assert resumed.evaluations == report.evaluations
    assert _same(weights(workdir), weights(reference))
    # The adapter is the best checkpoint's, which may be older than the kill: the last one shows what came after it.
    last = Path("checkpoints", "checkpoint-10", "adapter_model.safetensors")
    assert _same(load_file(workdir / last), load_file(reference / last))


def _same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in others)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, []),
        # What a run that ran out of memory is told to change must not throw its work away.
        ({"batch_size": 1, "gradient_checkpointing": True}, []),
        ({"epochs": 3}, [1, 2, 3]),
    ],
    ids=["the same", "a smaller batch", "other settings"],
)
def test_a_finished_run_is_not_trained_again_unless_its_result_would_differ(
    changes: dict[str, Any], steps: list[int], job: TinyJob, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"epochs": 4, "evaluations": 2}
    first, _ = job.train(tmp_path, **settings)
    before = weights(tmp_path)
    again, told = job.train(tmp_path, **{**settings, **changes})
    assert [progress.step for progress in told if progress.stage == "training"] == steps
    if not steps:
        assert (again.steps, again.evaluations, again.best) == (first.steps, first.evaluations, first.best)
        assert _same(weights(tmp_path), before)


def test_two_runs_in_one_directory_are_refused(job: TinyJob, tmp_path: Path) -> None:
    with own_workdir(tmp_path / "work", "another"), pytest.raises(UsageError) as raised:
        job.train(tmp_path / "work")
    assert str(raised.value) == (
        f"work directory {tmp_path / 'work'}: another fine-tuning is using it; wait for it, or name another directory"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_vanishes_on_the_way_is_named(
    workers: int, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Photos, "workers", workers)
    photo = tmp_path / "photo.png"
    photo.write_bytes(Path(job.products[0].image_paths[0]).read_bytes())
    rows = [*job.products, replace(job.products[0], image_paths=(str(photo),))]

    def progress(told: TrainProgress) -> None:
        if told.stage == "training":
            photo.unlink(missing_ok=True)

    with pytest.raises(RunFailed) as raised:
        job.train(tmp_path / "w", rows, on_progress=progress, cache_vision_features=False)
    assert str(raised.value) == (
        f"training: photo {photo}: No such file or directory; it existed when training began; restore it and run "
        "again: training continues from its last checkpoint"
    )


def test_workers_that_load_photos_end_without_the_exit_hooks_of_their_parent(
    job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook() -> None:
        raise AssertionError("Prefect's thread does not exist in a forked process")

    monkeypatch.setattr(Photos, "workers", 1)
    monkeypatch.setattr(threading, "_threading_atexits", [hook])
    report, _ = job.train(tmp_path / "work")
    assert report.stopped == "finished"
    assert threading._threading_atexits == [hook]  # type: ignore[attr-defined]  # the parent keeps them


def test_files_of_others_are_left_alone(job: TinyJob, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError) as raised:
        job.train(tmp_path)
    assert str(raised.value) == (
        f"work directory {tmp_path}: has files that fine-tuning did not write; name an empty one"
    )
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0, "device cuda: no CUDA GPU is visible here; use device auto or cpu"),
        ("auto", 2, "4 processes: only 2 GPUs are visible here; start one for each GPU"),
    ],
)
def test_gpus_that_are_not_there_are_named(
    device: str, gpus: int, message: str, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError) as raised:
        job.train(tmp_path / "work", device=device)
    assert str(raised.value) == message
    assert not (tmp_path / "work").exists()


def test_a_base_without_weights_is_named(job: TinyJob, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in job.tiny.path.iterdir():
        if file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match=f"^model {job.tiny.path}: no model.safetensors and no .*index.json; "):
        job.train(tmp_path / "work", base=base)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """transformers' bars for loading weights would fill the log."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    disable_progress_bar()
    yield
    enable_progress_bar()
