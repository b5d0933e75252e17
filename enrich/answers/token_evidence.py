"""Features of one greedy answer's token log-probabilities: how sure the model was of title, category and price."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from enrich.answers.completion import Completion
from enrich.answers.prompt import END, UNKNOWN_PRICE
from enrich.answers.title_rules import noun_of, word_probabilities
from enrich.errors import UsageError

Line = tuple[int, ...]


@dataclass(frozen=True)
class PriceFeatures:
    """The distribution of prices that the digits' probabilities give; all 0 without a price."""

    expectation: float = 0.0  # geometric mean, units of the currency
    spread: float = 0.0  # standard deviation of the log price


class AnswerTokens:
    """How the tokenizer writes an answer: the tokens of the newline, of the digits, and of each label's line.

    Raises:
        UsageError: a category spells a control token of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, categories: Sequence[str]) -> None:
        self.pieces: Callable[[list[int]], list[str]] = tokenizer.convert_ids_to_tokens
        self.nouns = frozenset(map(noun_of, categories))  # of the labels, singular

        def encode(text: str) -> Line:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        def line(text: str) -> Line:
            # Between newlines, as in an answer: the tokenizer puts no word-start marker before the first word there.
            return self.split(encode(f"\n{text}\n"))[1]

        self.newline = encode("\n")[-1]
        self.stop: int = tokenizer.convert_tokens_to_ids(END)
        self.digits = {encode(f"\n{digit}")[-1]: digit for digit in "0123456789"}
        self.title_prefix = encode("Product:")
        self.price_prefix = line("Full Price: 1")[:-1]
        self.unknown_price = line(f"Full Price: {UNKNOWN_PRICE}")
        self.labels = {(*line(f"Category: {category}"), self.newline): category for category in categories}
        # Every prefix of a label's line -> the labels with that prefix.
        self.labels_under: dict[Line, list[str]] = defaultdict(list)
        after: dict[Line, set[int]] = defaultdict(set)
        for tokens, category in self.labels.items():
            for end in range(1, len(tokens) + 1):
                self.labels_under[tokens[:end]].append(category)
                after[tokens[: end - 1]].add(tokens[end - 1])
        # ... -> the tokens that may come next: ten times as fast as a search in a taxonomy of thousands.
        self.after_label = {prefix: sorted(found) for prefix, found in after.items()}
        self.categories = frozenset(categories)
        added = tokenizer.added_tokens_decoder.keys()
        for tokens, category in self.labels.items():
            if not added.isdisjoint(tokens):  # the grammar would force it, and it would end or redirect the answer
                raise UsageError(
                    f"adapter: category {category[:40]!r} spells a control token of the model; take it out of the "
                    "catalog and fine-tune again"
                )

    def split(self, tokens: Sequence[int]) -> list[Line]:
        """Token ids by line, without the newlines."""
        lines: list[list[int]] = [[]]
        for token in tokens:
            if token == self.newline:
                lines.append([])
            else:
                lines[-1].append(token)
        return [tuple(line) for line in lines]


def label_probability(completion: Completion, tokens: AnswerTokens) -> float:
    """Probability, 0..1, of the category line and its newline, given the title."""
    span = _category_span(completion, tokens)
    return float(np.exp(completion.logprobs[span].sum(dtype=np.float64)))


def answer_probability(completion: Completion, tokens: AnswerTokens) -> float:
    """Probability, 0..1, of everything up to the end of the category line.

    A model that has written "Shirt" in the title is sure of the category; its doubt shows in the title's tokens. On the
    sample catalog this separates right labels from wrong ones with an area under the ROC curve of 0.88, the label's
    line alone with 0.62 (benchmarks/decisions/README.md).
    """
    end = _category_span(completion, tokens).stop
    return float(np.exp(completion.logprobs[:end].sum(dtype=np.float64)))


def alternatives(completion: Completion, tokens: AnswerTokens) -> dict[str, float]:
    """Other labels that the model nearly wrote -> probability, most probable first.

    A label counts if it departs from the written line at a token among the top ones. Labels that depart at the same
    token share its probability equally, because the tokens after it were never computed.
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


def title_words(completion: Completion, tokens: AnswerTokens) -> list[tuple[str, float]]:
    """Each word of the title with the product of its tokens' probabilities, 0..1."""
    end = _line_start(completion, tokens, 1) - (tokens.newline in completion.token_ids)
    span = slice(min(len(tokens.title_prefix), end), end)
    probabilities = np.exp(completion.logprobs[span].astype(np.float64)).tolist()
    return word_probabilities(tokens.pieces(list(completion.token_ids[span])), probabilities)


def price_features(completion: Completion, tokens: AnswerTokens) -> PriceFeatures:
    """The distribution of prices that the digits' probabilities give.

    Each alternative digit represents the prices that begin with it. The digits after it were never computed, so it gets
    their geometric middle: 24.5 for a 2 before one more digit. Another first digit may begin a shorter or a longer
    number; the nearest one counts, so that the alternative to 950 is 1,414 rather than 141.
    """
    start = _line_start(completion, tokens, 2)
    positions = [i for i in range(start, len(completion.token_ids)) if completion.token_ids[i] in tokens.digits]
    text = "".join(tokens.digits[completion.token_ids[i]] for i in positions)
    if not text or int(text) == 0:
        return PriceFeatures()
    written, reached = int(text), 1.0
    atoms: list[tuple[float, float]] = []  # price, probability
    for place, position in enumerate(positions):
        for token, logprob in zip(completion.top_ids[position], completion.top_logprobs[position], strict=True):
            if token == completion.token_ids[position]:
                continue
            if int(token) in tokens.digits:
                price = _nearest(int(text[:place] + tokens.digits[int(token)]), place, len(text), written)
            else:
                price = float(text[:place] or 0) if token == tokens.stop else 0.0
            if price > 0:
                atoms.append((price, reached * math.exp(logprob)))
        reached *= math.exp(completion.logprobs[position])
    prices, weights = map(np.array, zip(*atoms, (float(written), reached), strict=True))
    weights = weights / weights.sum()
    logs = np.log(prices)
    mean = float(weights @ logs)
    return PriceFeatures(math.exp(mean), math.sqrt(max(float(weights @ (logs - mean) ** 2), 0.0)))


def _nearest(beginning: int, place: int, length: int, written: int) -> float:
    """The geometric middle of the prices that begin so. They have as many digits as `written`, or, if the first digit
    differs and that is nearer, one more or one less."""
    if not beginning:
        return 0.0
    left = length - place - 1
    lengths = (left - 1, left, left + 1) if place == 0 else (left,)
    middle = math.sqrt(beginning * (beginning + 1))
    prices = [middle * 10**more if more else float(beginning) for more in lengths if more >= 0]
    return min(prices, key=lambda price: abs(math.log(price / written)))


def _line_start(completion: Completion, tokens: AnswerTokens, line: int) -> int:
    newlines = [i for i, token in enumerate(completion.token_ids) if token == tokens.newline]
    return newlines[line - 1] + 1 if len(newlines) >= line else len(completion.token_ids)


def _category_span(completion: Completion, tokens: AnswerTokens) -> slice:
    return slice(_line_start(completion, tokens, 1), _line_start(completion, tokens, 2))
