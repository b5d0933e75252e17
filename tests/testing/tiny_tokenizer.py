"""The tiny base's tokenizer, and categories to answer with."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from enrich.answers.prompt import make_prompt
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision.processing import END
from enrich.settings.models import TINY_MODEL_PATH

# One begins as the other, one holds letters that no word of the vocabulary has.
CATEGORIES = ("BAGS", "HATS", "HATS AND CAPS", "ÜBERZÜGE 帽子 🙂")
PROMPT = make_prompt(CATEGORIES, "EUR")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    torch.set_num_threads(1)
    return load_processor(TINY_MODEL_PATH).tokenizer


@pytest.fixture(scope="session")
def tokens(tokenizer: PreTrainedTokenizerBase) -> AnswerTokens:
    return AnswerTokens(tokenizer, PROMPT, END)
