"""The training loop: scale of the loss, broken gradients, evaluation, early ends."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from enrich.answers.prompt import Prompt
from enrich.errors import RunFailed
from enrich.models.registry import vision_model
from enrich.settings.training import TrainSettings
from enrich.train import callbacks
from enrich.train import fit as fit_module
from enrich.train import trainer as trainer_module
from enrich.train.collate import Collator, Photos
from enrich.train.evaluate import composite, evaluate
from enrich.train.fit import adapt, fit
from enrich.train.lora import add_lora
from enrich.train.record import Evaluation, Skipped, Training, TrainProgress
from enrich.train.trainer import AnswerTrainer, last_checkpoint
from tests.testing.tiny_job import TinyJob


def _fit(
    job: TinyJob, folder: Path, *, deadline: float = math.inf, model: Any = None, **changes: object
) -> tuple[torch.nn.Module, Training, list[TrainProgress]]:
    told: list[TrainProgress] = []
    photos, settings = job.photos(), job.settings(**changes)
    adapted = adapt(model or job.model(), settings, len(photos))
    arguments = job.arguments(settings, folder)
    training = fit(adapted, photos, photos, settings, job.prompt, arguments, on_progress=told.append, deadline=deadline)
    return adapted, training, told


class _Gradients(TrainerCallback):
    """Keeps the gradient of each optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def test_accumulation_does_not_change_the_scale_of_the_loss(photos: Photos, job: TinyJob, tmp_path: Path) -> None:
    def run(batch_size: int) -> tuple[dict[str, torch.Tensor], float]:
        settings = job.settings(
            batch_size=batch_size, effective_batch_size=4, epochs=1, optimizer={"max_grad_norm": 1e9}, evaluations=1
        )
        torch.manual_seed(0)
        gradients = _Gradients()
        model = add_lora(job.model(), settings)
        trainer = AnswerTrainer(
            model=model,
            args=job.arguments(settings, tmp_path / str(batch_size)),
            photos=photos,
            settings=settings,
            evaluate_step=lambda step: evaluate(model, photos, settings, job.prompt, step=step),
            callbacks=[gradients],
        )
        trainer.train()
        return gradients.steps[0], next(entry["loss"] for entry in trainer.state.log_history)

    whole, whole_loss = run(4)
    parts, parts_loss = run(1)
    assert whole_loss == pytest.approx(parts_loss, rel=1e-5)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def _poisoned(job: TinyJob, calls: Callable[[int], bool]) -> torch.nn.Module:
    """The base whose loss is NaN at the training steps `calls` says, counted from 1."""
    model, step = job.model(), 0

    def poison(module: torch.nn.Module, arguments: Any, outputs: Any) -> Any:
        nonlocal step
        if module.training:
            step += 1
            if calls(step):
                outputs.loss = outputs.loss * math.nan
        return outputs

    model.register_forward_hook(poison)
    return model


def test_one_nan_step_is_left_out(job: TinyJob, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted, training, _ = _fit(job, tmp_path, model=_poisoned(job, lambda step: step == 3), epochs=6, evaluations=1)
    assert (training.steps, training.skipped_steps) == (6, 1)
    (skipped,) = training.skipped
    assert (skipped.step, sorted(skipped.product_codes)) == (3, ["P0", "P1", "P2", "P3", "P4"])
    assert caplog.messages == [
        f"step 3 skipped: its gradient is not finite (products {', '.join(skipped.product_codes)})"
    ]
    assert all(torch.isfinite(parameter).all() for parameter in adapted.parameters())
    assert any(parameter.abs().max() > 0 for name, parameter in adapted.named_parameters() if "lora_B" in name)


def test_a_step_with_a_nan_names_the_batch_that_had_it(job: TinyJob, tmp_path: Path) -> None:
    """Steps of four photos in batches of two, then one of one: the sixth batch is the second step's last but one."""
    batches: list[tuple[str, ...]] = []

    class Recording(Collator):
        def __call__(self, items: Any) -> dict[str, Any]:
            batch = super().__call__(items)
            batches.append(tuple(item.example.product.product_code for item in items))
            return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "Collator", Recording)
        model = _poisoned(job, lambda batch: batch == 5)
        _, training, _ = _fit(job, tmp_path, model=model, epochs=4, evaluations=1, batch_size=2, effective_batch_size=4)
    assert [(row.step, row.product_codes) for row in training.skipped] == [(3, batches[4])]
    assert len(batches[4]) == 2


def test_a_nan_of_the_gradient_alone_names_the_whole_step(job: TinyJob, tmp_path: Path) -> None:
    model, calls = job.model(), 0

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * (math.nan if calls == 1 else 1.0)

    def watch(module: torch.nn.Module, arguments: Any, outputs: Any) -> None:
        if module.training:
            outputs.logits.register_hook(poison)

    model.register_forward_hook(watch)
    _, training, _ = _fit(job, tmp_path, model=model, epochs=2, evaluations=1, batch_size=2, effective_batch_size=4)
    assert [(row.step, len(row.product_codes)) for row in training.skipped] == [(1, 4)]


@pytest.mark.parametrize(
    ("codes", "named"),
    [(1, "product 0"), (3, "products 0, 1, 2"), (10, "products 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")],
)
def test_a_message_names_a_few_products(codes: int, named: str) -> None:
    assert Skipped(step=1, product_codes=tuple(map(str, range(codes)))).named == named


def test_a_diverged_run_stops_and_keeps_its_best_adapter(job: TinyJob, tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as raised:
        _fit(job, tmp_path, model=_poisoned(job, lambda step: step > 3), epochs=20, evaluations=10)
    kept = tmp_path / "checkpoint-2"
    message, codes = re.subn(r"products ((?:P\d, ){4}P\d)", "WHICH", str(raised.value))
    assert codes == 1
    assert message == (
        "training: 5 steps in a row, the last of them 8 (WHICH), had a non-finite gradient; lower learning_rate and "
        f"run again; the best adapter so far is kept in {kept}"
    )
    assert (kept / "adapter_model.safetensors").is_file()


def test_evaluation_generates_and_never_sees_an_answer(photos: Photos, job: TinyJob, tmp_path: Path) -> None:
    adapted, _, _ = _fit(job, tmp_path)
    fed: list[dict[str, Any]] = []
    base: Any = adapted.get_base_model()  # type: ignore[operator]  # mypy sees no types of peft
    base.register_forward_pre_hook(lambda _, __, arguments: fed.append(arguments), with_kwargs=True)
    assert evaluate(adapted, photos, job.settings(), job.prompt, step=1).score == 1.0
    longest = max(len(example.prompt_ids) for example in photos.examples)
    assert fed[0]["input_ids"].shape[1] == longest
    assert all(arguments["input_ids"].shape[1] == 1 for arguments in fed[1:])
    assert all(arguments.get("labels") is None for arguments in fed)
    # Teacher-forced argmax would still be right here; an answer without its end is none.
    short = job.prompt.model_copy(update={"max_new_tokens": 40})
    cut = evaluate(adapted, photos, job.settings(), short, step=1)
    assert (cut.parse_rate, cut.score) == (0.0, 0.0)


def test_the_best_weights_are_kept_not_the_last(job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, seen = iter([0.1, 0.9, 0.9, 0.2]), {}

    def scripted(
        model: torch.nn.Module, photos: Photos, settings: TrainSettings, prompt: Prompt, *, step: int, **_: Any
    ) -> Evaluation:
        seen[step] = {name: weight.clone() for name, weight in model.named_parameters() if "lora_" in name}
        values = dict.fromkeys(("parse_rate", "category_accuracy", "title_token_f1"), 0.0)
        return Evaluation(step=step, score=next(scores), mdape=None, **values)

    monkeypatch.setattr(fit_module, "evaluate", scripted)
    adapted, training, _ = _fit(job, tmp_path, epochs=8, evaluations=4)
    assert training.best.step == 4
    kept = {name: weight for name, weight in adapted.named_parameters() if "lora_" in name}
    torch.testing.assert_close(kept, seen[4], rtol=0, atol=0)
    assert not torch.equal(next(iter(seen[8].values())), next(iter(kept.values())))


@pytest.mark.parametrize(
    ("mdape", "expected"), [(0.2, (1.0 + 0.5 + 0.6 + 0.8) / 4), (3.0, (1.0 + 0.5 + 0.6) / 4), (None, 0.7)]
)
def test_the_score_is_the_mean_of_what_people_read(mdape: float | None, expected: float) -> None:
    scores: Any = {
        "parse_rate": 1.0,
        "category_accuracy": 0.5,
        "title_token_f1": 0.6,
        "price": None if mdape is None else {"mdape": mdape},
    }
    assert composite(scores) == pytest.approx(expected)


def test_evaluations_come_at_even_steps_and_at_the_end(job: TinyJob, tmp_path: Path) -> None:
    _, training, told = _fit(job, tmp_path, epochs=10, evaluations=4, patience=9)
    assert [evaluation.step for evaluation in training.evaluations] == [3, 5, 8, 10]
    assert (training.stopped, training.planned_steps) == ("finished", 10)
    assert [progress.step for progress in told] == list(range(1, 11))
    assert told[3].evaluation == training.evaluations[0]
    first, last = told[0].loss, told[-1].loss
    assert first is not None
    assert last is not None
    assert last < first


def test_a_run_that_no_longer_improves_stops(job: TinyJob, tmp_path: Path) -> None:
    _, training, _ = _fit(job, tmp_path, epochs=20, evaluations=10, patience=2, learning_rate=1e-9)
    assert (training.stopped, training.steps, training.planned_steps) == ("no improvement", 6, 20)


def test_a_run_out_of_time_evaluates_and_stops(job: TinyJob, tmp_path: Path) -> None:
    _, training, _ = _fit(job, tmp_path, deadline=0.0)
    assert (training.stopped, training.steps) == ("out of time", 1)
    assert training.best.step == 1


def test_gradient_checkpointing_gives_the_same_losses(any_job: TinyJob, tmp_path: Path) -> None:
    losses, forwards = [], []
    for switch in (False, True):
        model = any_job.model()
        calls: list[bool] = []
        linears = vision_model(model.config.model_type).decoder_linears(model)
        attention = next(layer for name, layer in model.named_modules() if re.fullmatch(linears, name))
        attention.register_forward_pre_hook(lambda layer, _, calls=calls: calls.append(layer.training))
        changes = {"epochs": 4, "evaluations": 1, "gradient_checkpointing": switch}
        _, _, told = _fit(any_job, tmp_path / str(switch), model=model, **changes)
        losses.append([progress.loss for progress in told])
        forwards.append(sum(calls))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert forwards == [4, 8]  # each step computes its layers once more


def test_the_rate_leaves_out_the_first_steps_in_which_code_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, now = [60.0, 9.0, 5.0, 1.0, 3.0], [0.0]
    rates: list[float] = []
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    reporter = callbacks.Reporter(lambda state: rates.append(reporter.images_per_second(arguments)))
    arguments: Any = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=3, world_size=4)
    for step in seconds:
        now[0] += 100.0  # an evaluation in between
        reporter.on_step_begin(arguments, TrainerState(), TrainerControl())
        now[0] += step
        reporter.on_log(arguments, TrainerState(), TrainerControl(), {"loss": 1.0})
    photos = 2 * 3 * 4
    assert reporter.images_per_second(arguments) == pytest.approx(2 * photos / (1.0 + 3.0))
    assert rates == pytest.approx([photos / 60, photos / 9, photos / 5, photos / 1, photos / 2])


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((9, "{}"), (10, "{}"), (20, '{"global')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-30").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path / "nowhere") is None
