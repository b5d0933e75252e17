from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VModel
from tests.testing.published_phi3v import expected_tensors
from tests.testing.tiny_phi3v import image_inputs, prompt_inputs, random_model, tiny_config

LM_TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture(scope="module")
def model() -> Phi3VForCausalLM:
    return random_model(tiny_config())


def test_full_size_has_the_published_tensors() -> None:
    factors = [1.0] * 48
    rope = {"type": "su", "short_factor": factors, "long_factor": factors}
    config = Phi3VConfig(num_key_value_heads=32, rope_scaling=rope, original_max_position_embeddings=4096)
    with torch.device("meta"):
        full = Phi3VForCausalLM(config)
    actual = {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()}
    assert actual == expected_tensors()
    assert len(actual) == 592
    assert sum(parameter.numel() for parameter in full.parameters()) == 4_146_621_440


def test_checkpoints_keep_the_original_names(model: Phi3VForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "first")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert type(loaded) is Phi3VForCausalLM
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded.save_pretrained(tmp_path / "second")
    for directory in ("first", "second"):
        with safe_open(tmp_path / directory / "model.safetensors", "pt") as file:
            names = set(file.keys())
            assert names == set(model.state_dict())
            assert "model.vision_embed_tokens.img_processor.vision_model.pre_layrnorm.weight" in names
            for name in names:
                assert torch.equal(file.get_tensor(name), model.state_dict()[name])
    bare = AutoModel.from_pretrained(tmp_path / "first")
    assert type(bare) is Phi3VModel
    assert torch.equal(bare.vision_embed_tokens.glb_GN, model.model.vision_embed_tokens.glb_GN)


def test_a_repeated_text_embedding_in_a_checkpoint_is_ignored(model: Phi3VForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.vision_embed_tokens.wte.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = Phi3VForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    random_model(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path)
    loaded = Phi3VForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_new_weights_are_initialised() -> None:
    fresh = Phi3VForCausalLM(tiny_config())
    assert not fresh.model.vision_embed_tokens.glb_GN.any()
    assert not fresh.model.vision_embed_tokens.sub_GN.any()
    assert fresh.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to("cpu", torch.float16),
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=LM_TARGETS)).to(torch.bfloat16),
    ],
)
def test_a_cast_leaves_the_rotary_tables_in_float32(cast: Callable[[Any], Any]) -> None:
    model = random_model(tiny_config())
    before = {name: table.clone() for name, table in model.named_buffers()}
    assert cast(model).dtype in (torch.bfloat16, torch.float16)
    assert model.lm_head.weight.dtype == model.model.vision_embed_tokens.glb_GN.dtype != torch.float32
    for name, table in model.named_buffers():
        assert table.dtype == before[name].dtype
        assert torch.equal(table, before[name])
    tables = {"model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"}
    assert {name for name, table in before.items() if table.dtype == torch.float32} == tables


def test_rotary_tables_move_with_the_model() -> None:
    model = random_model(tiny_config()).to("meta", torch.bfloat16)
    assert {table.device.type for _, table in model.named_buffers()} == {"meta"}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.to_empty(device="cpu").model.rotary_emb.inv_freq.device.type == "cpu"


def test_image_features_follow_the_published_arrangement(model: Phi3VForCausalLM) -> None:
    """Against a reading of the description with loops, on the stock tower's own hidden_states[-2]."""
    images = image_inputs((80, 50), (30, 60), num_crops=6)
    embedding = model.model.vision_embed_tokens
    tower = embedding.img_processor["vision_model"]
    with torch.no_grad():
        actual = model.get_image_features(images["pixel_values"], images["image_sizes"])
        for number, (height, width) in enumerate(images["image_sizes"].tolist()):
            hidden = tower(images["pixel_values"][number], output_hidden_states=True).hidden_states[-2][:, 1:]
            patches = hidden.reshape(len(hidden), 4, 4, 16)
            rows, columns = height // 28, width // 28

            def token(crop: int, y: int, x: int, patches: torch.Tensor = patches) -> torch.Tensor:
                return torch.cat([patches[crop, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1)])

            tokens = []
            for y in range(2 * rows):
                tokens += [token(1 + y // 2 * columns + x // 2, y % 2, x % 2) for x in range(2 * columns)]
                tokens.append(embedding.sub_GN.flatten())
            tokens.append(embedding.glb_GN.flatten())
            for y in range(2):
                tokens += [token(0, y, 0), token(0, y, 1), embedding.sub_GN.flatten()]
            weights = dict(embedding.img_projection.named_parameters())
            inner = torch.stack(tokens) @ weights["0.weight"].T + weights["0.bias"]
            inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))  # exact GELU
            expected = inner @ weights["2.weight"].T + weights["2.bias"]
            assert len(expected) == images["num_img_tokens"][number]
            torch.testing.assert_close(actual[number], expected, rtol=1e-4, atol=1e-5)


def test_image_positions_hold_the_features(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(([5, 6], (28, 28), [7]), ([5], (90, 40), [7, 8, 9]))
    ids = inputs["input_ids"].clone()
    features = torch.cat(model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]))
    embeds = model.get_input_embeddings()(ids.clamp(min=0))
    embeds[ids < 0] = features
    with torch.no_grad():
        expected = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(model(**inputs).logits, expected)
    assert torch.equal(inputs["input_ids"], ids)


def test_the_image_matters(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))
    with torch.no_grad():
        before = model(**inputs).logits[0, -1]
        inputs["pixel_values"][0, 1, :, :14, :14] += 1  # one quarter of one crop
        after = model(**inputs).logits[0, -1]
    assert (after - before).abs().max() > 0.01


def test_padding_crops_are_never_computed(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(([5, 6], (28, 84), [7]))  # 3 crops of 4
    with torch.no_grad():
        expected = model(**inputs).logits
        inputs["pixel_values"][0, 4:] = float("nan")
        assert torch.equal(model(**inputs).logits, expected)


def test_cached_features_give_the_same_logits(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(([5, 6], (56, 56), [7]), ([5], (90, 40), [7, 8, 9]))
    with torch.no_grad():
        expected = model(**inputs).logits
        pixels, sizes = inputs.pop("pixel_values"), inputs.pop("image_sizes")
        features = model.get_image_features(pixels, sizes)
        assert torch.equal(model(**inputs, image_features=features).logits, expected)
        assert torch.equal(model(**inputs, image_features=torch.cat(features)).logits, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padded_rows_equal_single_rows(attention: str) -> None:
    model = random_model(tiny_config(attn_implementation=attention))
    rows = [([5, 6], (56, 56), [7]), ([5], (90, 40), [7, 8, 9, 10, 11]), ([5, 6, 7, 8], (28, 28), [9])]
    with torch.no_grad():
        together = model(**prompt_inputs(*rows)).logits
        for number, row in enumerate(rows):
            alone = model(**prompt_inputs(row)).logits[0]
            torch.testing.assert_close(together[number, -len(alone) :], alone, rtol=0, atol=1e-4)


def test_padding_does_not_bring_the_switch_of_long_rope_nearer() -> None:
    model = random_model(tiny_config(original_max_position_embeddings=32))
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))  # 30 tokens
    padded = {name: value.clone() for name, value in inputs.items()}
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (5, 0), value=3)
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (5, 0), value=0)
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(model(**padded).logits[:, 5:], expected, rtol=0, atol=1e-4)
        switched = model(**inputs, position_ids=torch.arange(5, 35)[None]).logits
        assert (switched - expected).abs().max() > 0.01


def test_inputs_that_do_not_fit_are_refused(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))
    ids, pixels, sizes = inputs["input_ids"], inputs["pixel_values"], inputs["image_sizes"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input_ids": ids}, "input_ids has 27 image positions, but the images given have 0 features"),
        (
            {"input_ids": ids[:, 3:], "pixel_values": pixels, "image_sizes": sizes},
            "input_ids has 26 image positions, but the images given have 27 features",
        ),
        (
            {"input_ids": torch.tensor([[5, 6]]), "pixel_values": pixels, "image_sizes": sizes},
            "input_ids has 0 image positions, but the images given have 27 features",
        ),
        ({"input_ids": ids, "pixel_values": pixels}, "pixel_values needs image_sizes"),
        (
            {"input_ids": ids, "pixel_values": pixels[0], "image_sizes": sizes},
            "pixel_values must be (images, crops, 3, 28, 28), got (5, 3, 28, 28)",
        ),
        (
            {"input_ids": ids, "pixel_values": pixels, "image_sizes": sizes.repeat(2, 1)},
            "1 images of crops, but 2 in image_sizes",
        ),
        (
            {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[56, 84]])},
            "image_sizes: 56x84 (height x width) is not a grid of 1 to 4 crops of 28 pixels",
        ),
        (
            {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[56, 50]])},
            "image_sizes: 56x50 (height x width) is not a grid of 1 to 4 crops of 28 pixels",
        ),
        ({}, "give input_ids, with or without images, or inputs_embeds alone"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=r"image|input") as caught:
            model(**arguments)
        assert str(caught.value) == message


def labelled(*rows: tuple[list[int], tuple[int, int], list[int]], answer: int) -> dict[str, torch.Tensor]:
    inputs = prompt_inputs(*rows)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :-answer] = -100
    return {**inputs, "labels": labels}


def test_kept_logits_give_the_same_loss(model: Phi3VForCausalLM) -> None:
    inputs = labelled(([5], (56, 56), [7, 8, 9, 10]), ([5, 6], (28, 28), [11, 12, 13, 14]), answer=3)
    with torch.no_grad():
        full = model(**inputs)
        for kept in (4, 6, 1000):
            part = model(**inputs, logits_to_keep=kept)
            assert part.logits.shape[1] == min(kept, inputs["input_ids"].shape[1])
            torch.testing.assert_close(part.loss, full.loss)
        summed = model(**inputs, logits_to_keep=4, num_items_in_batch=torch.tensor(12)).loss
        torch.testing.assert_close(summed, full.loss * 6 / 12)
        expected = torch.nn.functional.cross_entropy(
            full.logits[:, -4:-1].flatten(0, 1), inputs["labels"][:, -3:].flatten()
        )
        torch.testing.assert_close(full.loss, expected)
        message = "labels reach further back than logits_to_keep=3 positions can predict"
        with pytest.raises(ValueError, match=message):
            model(**inputs, logits_to_keep=3)
        with pytest.raises(ValueError, match=r"labels need logits_to_keep as a number of positions"):
            model(**inputs, logits_to_keep=torch.tensor([1]))


def lora_model(targets: str | list[str]) -> PeftModel:
    torch.manual_seed(1)
    wrapped = get_peft_model(
        random_model(tiny_config()), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    )
    return wrapped.train()


def gradients(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


ANSWERED = labelled(([5], (56, 56), [7, 8, 9, 10]), ([5, 6], (28, 28), [11, 12, 13, 14]), answer=3)


def test_gradients_reach_every_adapted_linear() -> None:
    model = lora_model(LM_TARGETS)
    found = gradients(model, ANSWERED)
    assert len(found) == 2 * 2 * len(LM_TARGETS)  # A and B of 4 linears in 2 layers
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_gradients_reach_the_tower_and_the_projector_but_its_dead_layer() -> None:
    model = lora_model(r".*(img_processor.*(q_proj|v_proj|fc1)|img_projection\.[02])")
    found = gradients(model, ANSWERED)
    assert any("encoder.layers.1" in name for name in found)
    assert any("img_projection.0" in name for name in found)
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert not any("encoder.layers.2" in name for name in found)  # the last layer is never computed


@pytest.mark.parametrize("targets", [LM_TARGETS, r".*(qkv_proj|img_processor.*fc1)"])
def test_gradient_checkpointing_changes_no_gradient(targets: str | list[str]) -> None:
    model = lora_model(targets)
    plain = gradients(model, ANSWERED)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    checkpointed = gradients(model, ANSWERED)
    assert checkpointed.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_frozen_tower_keeps_no_graph(model: Phi3VForCausalLM) -> None:
    frozen = random_model(tiny_config()).requires_grad_(False).train()
    frozen.enable_input_require_grads()
    images = image_inputs((56, 56))
    features = frozen.get_image_features(images["pixel_values"], images["image_sizes"])
    assert not features[0].requires_grad
    trainable = model.get_image_features(images["pixel_values"], images["image_sizes"])
    assert trainable[0].requires_grad
