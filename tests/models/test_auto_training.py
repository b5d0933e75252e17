"""LoRA on the generic families: where it sits, that a batch can be memorised, and that merging changes nothing."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

from enrich.models.adapted import load_adapted, load_merged, save_merged
from enrich.models.checkpoint import TOKENIZER_FILES
from enrich.settings.training import TrainSettings
from enrich.train.lora import add_lora
from tests.testing.tiny_families import Member, open_member

ANSWERS = [
    "Product: Blue shirt\nCategory: HATS\nFull Price: 1250",
    "Product: Red shirt\nCategory: BAGS\nFull Price: 90",
    "Product: Shirt\nCategory: HATS\nFull Price: 7",
    "Product: 青いシャツ\nCategory: COATS\nFull Price: 333",
]
PHOTOS = [[(100, 133)], [(300, 200)], [(60, 60), (90, 90)], [(200, 90)]]


def settings(member: Member, **changes: Any) -> TrainSettings:
    return TrainSettings(model=str(member.path), lora_r=16, lora_alpha=32, **changes)


def adapted(member: Member, **changes: Any) -> PeftModel:
    torch.manual_seed(0)
    return add_lora(copy.deepcopy(member.model), settings(member, **changes))


def batch(member: Member, *, features: bool) -> dict[str, torch.Tensor]:
    """As training makes it: right padding, no mask, logits at the answers."""
    processor = member.processor
    pages = [[member.page(*size, seed=row) for size in sizes] for row, sizes in enumerate(PHOTOS)]
    prompts = [processor.prompt_ids("What is it?", [processor.page_tokens(page) for page in row]) for row in pages]
    end = processor.tokenizer.convert_tokens_to_ids(processor.stop_tokens[0])
    answers = [[*processor.tokenizer(answer, add_special_tokens=False).input_ids, end] for answer in ANSWERS]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(prompts), length), processor.tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole = torch.tensor([*prompt, *answer])
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    joined = processor.join([processor.preprocess(page, at) for row in pages for at, page in enumerate(row)])
    images = processor.pixels(joined, torch.device("cpu"), torch.float32)
    if features:
        with torch.no_grad():
            found = member.how.image_features(member.model, images)
        images = member.how.with_features(found, [processor.page_tokens(page) for row in pages for page in row])
    places = (labels.flatten() != -100).nonzero()[:, 0] - 1
    return {"input_ids": ids, "labels": labels, "predict_at": places, **images}


def test_lora_sits_on_all_linears_of_the_decoder_layers_and_nowhere_else(member: Member) -> None:
    model = adapted(member)
    found = {name.split(".lora_")[0] for name, one in model.named_parameters() if one.requires_grad}
    layers = model.get_base_model().config.get_text_config().num_hidden_layers
    assert all(re.fullmatch(rf"base_model\.model\.{member.how.facts.decoder}\.\w+_proj", name) for name in found)
    # Gemma's last layer uses the keys and values of an earlier one.
    assert len(found) == 7 * layers - (2 if member.family.model_types == ("gemma4",) else 0)


def test_the_tower_is_adapted_on_request_but_not_what_cuts_patches(member: Member) -> None:
    found = {name.split(".lora_")[0] for name, one in adapted(member, adapt_vision=True).named_parameters()
             if one.requires_grad}  # fmt: skip
    tower = {name for name in found if not re.search(member.how.facts.decoder, name)}
    linears = {
        f"base_model.model.{name}"
        for name, module in member.model.named_modules()
        if isinstance(module, torch.nn.Linear) and not re.search(rf"{member.how.facts.decoder}|lm_head", name)
    }
    text = {"per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"}
    left = {name for name in linears - tower if name.rpartition(".")[2] not in text}
    assert {name.rpartition(".")[2] for name in left} <= {"input_proj"}  # Gemma's patch embedding, a linear layer
    assert tower


@pytest.mark.parametrize("adapt_vision", [False, True])
def test_a_batch_is_learned_by_heart_and_merging_changes_nothing(
    learner: Member, adapt_vision: bool, tmp_path: Path
) -> None:
    model = adapted(learner, adapt_vision=adapt_vision).train()
    given = batch(learner, features=not adapt_vision)
    # At 1e-2 a difference of rounding can send the tower astray; at 3e-3 all families take 11 to 29 steps.
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3, weight_decay=0)
    losses = []
    for step in range(150):
        loss = model(**given).loss
        losses.append(loss.item())
        if losses[-1] < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        if step == 1:  # A gets a gradient only when B is not zero
            unused = [name for name, one in model.named_parameters() if one.requires_grad and not one.grad.any()]
            assert unused == []
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[0] > 3
    assert losses[-1] < 0.05

    model.eval().save_pretrained(tmp_path, save_embedding_layers=False)
    merged = load_merged(learner.path, tmp_path, dtype=torch.float32, device="cpu")
    beside = load_adapted(learner.path, tmp_path, dtype=torch.float32, device="cpu")
    assert get_peft_model_state_dict(beside).keys() == get_peft_model_state_dict(model).keys()
    with torch.inference_mode():
        expected, found, loaded = (one(**given).logits for one in (model, merged, beside))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=1e-5)
        inputs = learner.processor.inputs("What is it?", [[learner.page(*PHOTOS[0][0])]])
        ids = merged.generate(**inputs, max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0)
    answer = ids[0, inputs["input_ids"].shape[1] :].tolist()
    end = learner.processor.tokenizer.convert_tokens_to_ids(learner.processor.stop_tokens[0])
    assert learner.processor.tokenizer.decode(answer[: answer.index(end)]) == ANSWERS[0]


def test_checkpointing_gives_the_same_gradients(learner: Member) -> None:
    given, grads = batch(learner, features=True), []
    for checkpointing in (False, True):
        model = adapted(learner).train()
        for name, one in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(one, 0.01)  # zero at first, which hides A's gradient
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**given).loss.backward()
        grads.append([one.grad for one in model.parameters() if one.requires_grad and one.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_layers_of_both_towers_are_compiled(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    member.how.compile_layers(member.model)
    assert len(compiled) == 3 + 2
    assert len(set(compiled)) == 2


def test_trainer_tells_the_model_how_many_tokens_a_step_has(member: Member) -> None:
    """The stock classes of two families say that they would rather not be told."""
    assert member.model.accepts_loss_kwargs
    assert type(member.model).__name__ == member.model.config.architectures[0]


def test_a_merged_checkpoint_is_one_of_the_family(member: Member, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapted(member).save_pretrained(adapter, save_embedding_layers=False)
    for name in ("config.json", *TOKENIZER_FILES):
        if (member.path / name).is_file():
            (adapter / name).write_bytes((member.path / name).read_bytes())
    member.processor.save(adapter)
    merged = load_merged(member.path, adapter, dtype=torch.float32, device="cpu")
    save_merged(merged, adapter, tmp_path / "merged")
    again = open_member(tmp_path / "merged")
    assert again.processor.preparation == member.processor.preparation
    inputs = member.processor.inputs("?", [[member.page(90, 120)]])
    with torch.inference_mode():
        torch.testing.assert_close(again.model(**inputs).logits, merged(**inputs).logits)
