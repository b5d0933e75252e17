from typing import Any

import numpy as np
import pytest
import torch

from enrich.models.generation import Generated, generate_answers
from enrich.models.phi3_vision import Phi3VForCausalLM
from tests.testing.tiny_phi3v import prompt_inputs, random_model, tiny_config

ROWS = [([5, 6], (56, 56), [7]), ([5], (90, 40), [7, 8, 9, 10, 11]), ([5, 6, 7], (28, 28), [9])]
NEVER = 299


@pytest.fixture(scope="module")
def model() -> Phi3VForCausalLM:
    return random_model(tiny_config())


def answer(model: Phi3VForCausalLM, rows: list, steps: int, stop_ids: list[int], **options: Any) -> list[Generated]:
    return generate_answers(model, prompt_inputs(*rows), max_new_tokens=steps, stop_ids=stop_ids, **options)


def test_answers_are_those_of_generate_with_their_log_probabilities(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(*ROWS)
    answers = answer(model, ROWS, 6, [NEVER], top_k=5)
    reference = model.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=[NEVER],
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.stack(reference.logits, dim=1).float().log_softmax(-1)
    for number, generated in enumerate(answers):
        assert list(generated.token_ids) == reference.sequences[number, -6:].tolist()
        assert not generated.finished
        values, ids = logprobs[number].topk(5)
        np.testing.assert_array_equal(generated.top_ids, ids.numpy())
        np.testing.assert_allclose(generated.top_logprobs, values.numpy(), atol=1e-4)
        np.testing.assert_array_equal(generated.logprobs, generated.top_logprobs[:, 0])
        assert (generated.top_ids.dtype, generated.top_logprobs.dtype) == (np.int32, np.float32)
        assert generated.logprobs.dtype == np.float32


def test_rows_stop_one_by_one_and_do_not_disturb_each_other(model: Phi3VForCausalLM) -> None:
    alone = [answer(model, [row], 8, [NEVER])[0] for row in ROWS]
    stop = next(token for token in alone[0].token_ids[1:] if token not in alone[1].token_ids)
    together = answer(model, ROWS, 8, [stop, NEVER])
    for generated, free in zip(together, alone, strict=True):
        length = free.token_ids.index(stop) if stop in free.token_ids else 8
        assert generated.token_ids == free.token_ids[:length]
        assert generated.finished == (stop in free.token_ids)
        assert len(generated.logprobs) == len(generated.top_ids) == length
        np.testing.assert_allclose(generated.logprobs, free.logprobs[:length], atol=1e-4)
    assert together[0].finished
    assert not together[1].finished


def test_an_answer_may_be_empty(model: Phi3VForCausalLM) -> None:
    first = answer(model, ROWS[:1], 1, [NEVER])[0].token_ids[0]
    (generated,) = answer(model, ROWS[:1], 5, [first], top_k=3)
    assert generated.token_ids == ()
    assert generated.finished
    assert (generated.logprobs.shape, generated.top_ids.shape, generated.top_logprobs.shape) == ((0,), (0, 3), (0, 3))


def test_allowed_tokens_constrain_each_row(model: Phi3VForCausalLM) -> None:
    short, long = (generated.token_ids[0] for generated in answer(model, ROWS[:2], 1, [NEVER]))
    assert short != long
    calls: list[list[int]] = []

    def allowed(so_far: list[int]) -> list[int]:
        calls.append(so_far)
        return [2] if len(so_far) == 3 or so_far[:1] == [short] else [short, long]

    answers = answer(model, ROWS, 8, [2], top_k=4, allowed=allowed)
    assert [len(generated.token_ids) for generated in answers[:2]] == [1, 3]
    for generated in answers:
        assert set(generated.token_ids) <= {short, long}
        assert generated.finished
        # A distribution over the two permitted tokens, and nothing beyond them.
        np.testing.assert_allclose(np.exp(generated.top_logprobs[:, :2]).sum(1), 1, atol=1e-5)
        assert np.isneginf(generated.top_logprobs[:, 2:]).all()
    assert (
        sorted(calls)
        == sorted(  # a finished row asks for nothing more
            list(generated.token_ids[:end]) for generated in answers for end in range(len(generated.token_ids) + 1)
        )
    )
    with pytest.raises(ValueError, match="returned an empty list for batch ID 0"):
        answer(model, ROWS, 8, [2], allowed=lambda so_far: [])


def test_where_two_tokens_are_equally_probable_the_one_recorded_is_the_one_continued_with() -> None:
    tied = random_model(tiny_config())
    with torch.no_grad():
        tied.lm_head.weight[150:] = tied.lm_head.weight[:150].clone()  # every logit comes twice
    for row in ROWS:
        (generated,) = answer(tied, [row], 6, [NEVER])
        np.testing.assert_array_equal(generated.top_logprobs[:, 0], generated.top_logprobs[:, 1])
        assert generated.top_ids[:, 0].tolist() == list(generated.token_ids)
        inputs, written = prompt_inputs(row), torch.tensor([generated.token_ids])
        ids = torch.cat([inputs["input_ids"], written], dim=1)
        with torch.no_grad():
            logits = tied(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -7:-1]
        forced = logits.log_softmax(-1).gather(2, written[..., None])[0, :, 0]
        np.testing.assert_allclose(generated.logprobs, forced.numpy(), atol=1e-4)


def test_cached_features_answer_the_same(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(*ROWS)
    expected = generate_answers(model, inputs, max_new_tokens=4, stop_ids=[NEVER])
    with torch.no_grad():
        features = model.get_image_features(inputs.pop("pixel_values"), inputs.pop("image_sizes"))
    actual = generate_answers(model, {**inputs, "image_features": features}, max_new_tokens=4, stop_ids=[NEVER])
    assert [generated.token_ids for generated in actual] == [generated.token_ids for generated in expected]


def test_what_would_answer_wrongly_is_refused(model: Phi3VForCausalLM) -> None:
    short = random_model(tiny_config(original_max_position_embeddings=33))
    assert len(answer(short, ROWS[:1], 4, [NEVER])[0].token_ids) == 4  # 30 + 3 positions
    with pytest.raises(ValueError, match=r"^prompts of up to 30 tokens and 5 new ones cross 33 tokens, where LongRoPE"):
        answer(short, ROWS[:1], 5, [NEVER])
    inputs = prompt_inputs(*ROWS)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with pytest.raises(ValueError, match=r"^prompts must be padded on the left$"):
        generate_answers(model, inputs, max_new_tokens=4, stop_ids=[NEVER])
    with pytest.raises(ValueError, match=r"^call model.eval\(\) before generating$"):
        answer(random_model(tiny_config()).train(), ROWS, 4, [NEVER])


def greedy_without_cache(model: Phi3VForCausalLM, inputs: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
    inputs = dict(inputs)
    with torch.no_grad():
        for _ in range(steps):
            best = model(**inputs, use_cache=False).logits[:, -1:].argmax(-1)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], best], dim=1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(best)], dim=1)
    return inputs["input_ids"][:, -steps:]


def test_generate_with_cache_equals_greedy_without(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(([5, 6], (56, 56), [7]), ([5], (90, 40), [7, 8, 9, 10, 11]))
    expected = greedy_without_cache(model, inputs, 8)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": [299]}
    assert torch.equal(model.generate(**inputs, **settings)[:, -8:], expected)
    features = model.get_image_features(inputs.pop("pixel_values"), inputs.pop("image_sizes"))
    assert torch.equal(model.generate(**inputs, image_features=features, **settings)[:, -8:], expected)


def test_generate_stops_on_the_ids_given(model: Phi3VForCausalLM) -> None:
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))
    tokens = greedy_without_cache(model, inputs, 8)[0].tolist()
    stop = tokens[3]
    length = tokens.index(stop) + 1
    generated = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=[stop])
    assert generated[0, inputs["input_ids"].shape[1] :].tolist() == tokens[:length]


def test_generate_survives_the_switch_of_long_rope() -> None:
    # The prompt has 30 tokens; at 34 all rotary frequencies change, and what was cached before is void.
    model = random_model(tiny_config(original_max_position_embeddings=33))
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))
    assert inputs["input_ids"].shape[1] == 30
    expected = greedy_without_cache(model, inputs, 8)
    generated = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=[299])
    assert torch.equal(generated[:, -8:], expected)
    longer = random_model(tiny_config(original_max_position_embeddings=4096))
    assert not torch.equal(greedy_without_cache(longer, inputs, 8), expected)
