"""What the entry point registers, and that the second pass permits the very tokens that transformers' does."""

import json
import random
from contextlib import suppress
from importlib.metadata import entry_points

import numpy as np
import pytest
from transformers import AutoConfig

from enrich.answers.fields import Field
from enrich.answers.grammar import SHORTEST_TEXT, answer_grammar, answer_structure
from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.prompt import make_prompt
from enrich.answers.text_tokens import token_bytes
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision import Phi3VConfig
from enrich.models.phi3_vision.processing import END
from enrich.models.phi3_vision.vllm_plugin import register
from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.byte_level_bpe import byte_level_bpe
from tests.testing.tiny_tokenizer import CATEGORIES

pytestmark = pytest.mark.vllm


def test_the_entry_point_may_run_any_number_of_times() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora, supports_multimodal

    [found] = [point for point in entry_points(group="vllm.general_plugins") if point.value.startswith("enrich.")]
    assert found.load() is register
    register()
    register()

    known = ModelRegistry.models["Phi3VForCausalLM"]
    assert (known.module_name, known.class_name) == ("enrich.models.phi3_vision.vllm_model", "Phi3VForCausalLM")
    assert isinstance(AutoConfig.from_pretrained(TINY_MODEL_PATH), Phi3VConfig)
    model = known.load_model_cls()
    assert supports_lora(model)
    assert supports_multimodal(model)
    assert model.packed_modules_mapping == {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}


@pytest.mark.parametrize("terse", [False, True])
@pytest.mark.parametrize("kind", ["words and bytes", "letters for bytes", "digits in threes"])
def test_both_engines_permit_the_same_tokens_under_the_grammar(kind: str, terse: bool) -> None:
    """Random answers, each token drawn from those permitted; at every step the two sets are one."""
    import xgrammar

    tokenizer = byte_level_bpe(kind == "digits in threes")
    if kind == "words and bytes":
        tokenizer = load_processor(TINY_MODEL_PATH).tokenizer
    others = [
        Field(name="colour", kind="choice", label="Colour", column="colour", values=("red", "dark red")),
        Field(name="fit", kind="text", label="Fit", column="fit"),
        Field(name="pieces", kind="number", label="Pieces", column="pieces"),
    ]
    prompt = make_prompt(CATEGORIES, "EUR", others=others, terse=terse)
    tokens = AnswerTokens(tokenizer, prompt, END)
    size = len(tokenizer)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    compiled = xgrammar.GrammarCompiler(info).compile_structural_tag(json.dumps(answer_structure(tokens)))
    allowed = answer_grammar(tokens)
    mask = xgrammar.allocate_token_bitmask(1, size)
    parts = {token for token, text in token_bytes(tokenizer).items() if max(text, default=0) > 0x7F}
    rng, longest, wide = random.Random(0), 0, 0
    for walk in range(24):
        matcher = xgrammar.GrammarMatcher(compiled, override_stop_tokens=[tokens.stop])
        written: list[int] = []
        while True:
            matcher.fill_next_token_bitmask(mask, 0)
            bits = np.unpackbits(mask.numpy().view(np.uint8)[0], bitorder="little")
            theirs = set(bits[:size].nonzero()[0].tolist())
            assert theirs == set(allowed(written)), tokenizer.decode(written)
            ends = tokens.newline in theirs and walk % 4 and rng.random() < 0.1  # every fourth title goes to its bound
            some = sorted(theirs & parts if rng.random() < 0.5 else theirs) or sorted(theirs)
            token = tokens.newline if ends else rng.choice(some)
            if token == tokens.stop:
                break
            assert matcher.accept_token(token)
            written.append(token)
        longest = max(longest, len(written))
        text = tokenizer.decode(written)
        wide += not text.isascii()
        with suppress(AnswerMalformed):  # of a text too long
            parse_answer(text, prompt)
        assert "\ufffd" not in text
    assert longest > 2 * SHORTEST_TEXT
    assert wide > 16
