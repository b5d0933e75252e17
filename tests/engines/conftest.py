"""The tiny base's tokenizer, as the tests of answers have it."""

from tests.answers.conftest import tokenizer, tokens

__all__ = ["tokenizer", "tokens"]
