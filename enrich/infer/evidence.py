"""What the token log-probabilities of one greedy answer say about its category and its price."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from enrich.infer.engine import Completion
from enrich.prompt import END, UNKNOWN_PRICE

Line = tuple[int, ...]


class AnswerTokens:
    """How the tokenizer writes an answer: the tokens of the newline, of the digits, and of each label's line."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, categories: Sequence[str]) -> None:
        def encode(text: str) -> Line:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        def line(text: str) -> Line:
            # Between newlines, as in an answer: there, no word-start marker is put before the first word.
            return self.split(encode(f"\n{text}\n"))[1]

        self.newline = encode("\n")[-1]
        self.stop: int = tokenizer.convert_tokens_to_ids(END)
        self.digits = {encode(f"\n{digit}")[-1]: digit for digit in "0123456789"}
        self.title_prefix = encode("Product:")
        self.price_prefix = line("Full Price: 1")[:-1]
        self.unknown_price = line(f"Full Price: {UNKNOWN_PRICE}")
        self.labels = {(*line(f"Category: {category}"), self.newline): category for category in categories}
        # Every beginning of a label's line -> the labels that begin so.
        self.labels_under: dict[Line, list[str]] = defaultdict(list)
        for tokens, category in self.labels.items():
            for end in range(1, len(tokens) + 1):
                self.labels_under[tokens[:end]].append(category)

    def split(self, tokens: Sequence[int]) -> list[Line]:
        """Token lines, newlines left out."""
        lines: list[list[int]] = [[]]
        for token in tokens:
            if token == self.newline:
                lines.append([])
            else:
                lines[-1].append(token)
        return [tuple(line) for line in lines]


def label_probability(completion: Completion, tokens: AnswerTokens) -> float:
    """Probability, 0..1, of the category line and the newline that ends it, given the title."""
    span = _category_span(completion, tokens)
    return float(np.exp(completion.logprobs[span].sum(dtype=np.float64)))


def alternatives(completion: Completion, tokens: AnswerTokens) -> dict[str, float]:
    """Other labels that the model nearly wrote -> probability, most probable first.

    A label counts where it leaves the written line by a token among the top ones; the labels that leave it by the same
    token share its probability, since what follows was never computed.
    """
    span = _category_span(completion, tokens)
    written = tuple(completion.token_ids[span])
    found: dict[str, float] = {}
    reached = 1.0
    for i, position in enumerate(range(span.start, span.stop)):
        for token, logprob in zip(completion.top_ids[position], completion.top_logprobs[position], strict=True):
            labels = tokens.labels_under.get((*written[:i], int(token)), ()) if token != written[i] else ()
            for label in labels:
                found[label] = reached * math.exp(logprob) / len(labels)
        reached *= math.exp(completion.logprobs[position])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def price_spread(completion: Completion, tokens: AnswerTokens) -> float:
    """Standard deviation of the log price over single-digit changes, weighted by their probabilities; log units.

    A price of 1,290 with digit probabilities .6 for `1` and .4 for `2` has a spread near sqrt(.4) * log(2290 / 1290).
    """
    price_line = range(_line_start(completion, tokens, 2), len(completion.token_ids))
    positions = [i for i in price_line if completion.token_ids[i] in tokens.digits]
    written = "".join(tokens.digits[completion.token_ids[i]] for i in positions)
    if not written or int(written) == 0:
        return 0.0
    variance = 0.0
    for place, position in enumerate(positions):
        for token, logprob in zip(completion.top_ids[position], completion.top_logprobs[position], strict=True):
            if token == completion.token_ids[position]:
                continue
            if int(token) in tokens.digits:
                other = int(written[:place] + tokens.digits[int(token)] + written[place + 1 :])
            else:
                other = int(written[:place] or 0) if token == tokens.stop else 0
            if other > 0:
                variance += math.exp(logprob) * math.log(other / int(written)) ** 2
    return math.sqrt(variance)


def _line_start(completion: Completion, tokens: AnswerTokens, line: int) -> int:
    newlines = [i for i, token in enumerate(completion.token_ids) if token == tokens.newline]
    return newlines[line - 1] + 1 if len(newlines) >= line else len(completion.token_ids)


def _category_span(completion: Completion, tokens: AnswerTokens) -> slice:
    return slice(_line_start(completion, tokens, 1), _line_start(completion, tokens, 2))
