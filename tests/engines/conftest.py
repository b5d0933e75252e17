"""The tiny base's tokenizer."""

from tests.testing.tiny_tokenizer import tokenizer, tokens

__all__ = ["tokenizer", "tokens"]
