"""Features of one greedy answer's token log-probabilities: how sure the model was of title, category and price."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from enrich.answers.completion import Completion
from enrich.answers.lexicon import Lexicon, lexicon_of
from enrich.answers.prompt import END, Prompt
from enrich.answers.title_rules import noun_of
from enrich.errors import UsageError

Line = tuple[int, ...]


@dataclass(frozen=True)
class PriceFeatures:
    """The distribution of prices that the digits' probabilities give; all 0 without a price."""

    expectation: float = 0.0  # geometric mean, units of the currency
    spread: float = 0.0  # standard deviation of the log price


class ChoiceTokens:
    """The lines that a choice may be answered with, as token ids, each with the newline at its end."""

    def __init__(self, lines: Mapping[Line, str]) -> None:
        self.lines = lines
        # Every prefix of a line -> the values whose lines begin so.
        self.under: dict[Line, list[str]] = defaultdict(list)
        after: dict[Line, set[int]] = defaultdict(set)
        for tokens, value in lines.items():
            for end in range(1, len(tokens) + 1):
                self.under[tokens[:end]].append(value)
                after[tokens[: end - 1]].add(tokens[end - 1])
        # ... -> the tokens that may come next: ten times as fast as a search in a taxonomy of thousands.
        self.after = {prefix: sorted(found) for prefix, found in after.items()}


class AnswerTokens:
    """How the tokenizer writes an answer to a prompt: the tokens of the newline, of the digits, and of each line.

    Raises:
        UsageError: a value spells a control token of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
        self.prompt = prompt
        self.categories = frozenset(prompt.categories)
        self.lexicon = lexicon_of(prompt.language)
        self.nouns = frozenset(noun_of(label, self.lexicon) for label in prompt.categories)  # singular
        self._tokenizer = tokenizer.backend_tokenizer

        def encode(text: str) -> Line:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        self.newline = encode("\n")[-1]
        self.stop: int = tokenizer.convert_tokens_to_ids(END)
        self.digits = {encode(f"\n{digit}")[-1]: digit for digit in "0123456789"}

        def line(text: str, number: int) -> Line:
            # Between newlines, as in an answer: the tokenizer puts no word-start marker before the first word there.
            lines = encode(f"\n{text}\n" if number else f"{text}\n")
            ends = [i for i, token in enumerate(lines) if token == self.newline]
            return lines[ends[-2] + 1 : ends[-1]] if number else lines[: ends[-1]]

        # By field: the tokens before a value, and those of the whole line where the value is unknown.
        self.prefixes: dict[str, Line] = {}
        self.unknown: dict[str, Line] = {}
        self.choices: dict[str, ChoiceTokens] = {}
        for number, field in enumerate(prompt.fields):
            # Before a number stands a space, a token of its own as each digit is; before words it is part of the first.
            if field.kind == "number":
                self.prefixes[field.name] = line(f"{field.label}: 1", number)[:-1]
            else:
                self.prefixes[field.name] = line(f"{field.label}:", number)
            if not field.required:
                self.unknown[field.name] = line(f"{field.label}: {prompt.unknown}", number)
            if field.kind == "choice":
                values = field.values if field.required else (*field.values, prompt.unknown)
                self.choices[field.name] = ChoiceTokens(
                    {(*line(f"{field.label}: {value}", number), self.newline): value for value in values}
                )
        added = tokenizer.added_tokens_decoder.keys()
        for name, choice in self.choices.items():
            for tokens, value in choice.lines.items():
                if not added.isdisjoint(tokens):  # the grammar would force it, and it would end or redirect the answer
                    raise UsageError(
                        f"adapter: {name} {value[:40]!r} spells a control token of the model; take it out of the "
                        "catalog and fine-tune again"
                    )

    def spans(self, token_ids: Sequence[int]) -> "Spans":
        """Where the parts of an answer stand in its tokens, by the characters that each token writes."""
        stream, text = DecodeStream(skip_special_tokens=False), ""
        ends: list[int] = []
        waiting = 0  # bytes of a character that is not complete yet; they count as ending where it does
        for token in token_ids:
            written = stream.step(self._tokenizer, token)
            waiting += 1
            if written is not None:
                text += written
                ends += [len(text)] * waiting
                waiting = 0
        return Spans(text, [*ends, *[len(text)] * waiting], self.prompt)


class Spans:
    """An answer's text, and which of its characters and tokens write which field."""

    def __init__(self, text: str, ends: Sequence[int], prompt: Prompt) -> None:
        self.text = text
        self.ends = ends  # not decreasing: how many characters are written after each token
        self._lines: dict[str, tuple[int, int, int]] = {}  # the first character, that after the label, that of the next
        start, last = len(text) - len(text.lstrip()), len(prompt.fields) - 1
        for number, field in enumerate(prompt.fields):
            newline = text.find("\n", start) if number < last else -1
            end = newline + 1 if newline >= 0 else len(text)
            self._lines[field.name] = start, min(start + len(field.label) + 1, end), end
            start = end

    def line(self, field: str) -> slice:
        """The tokens of a field's line, its newline included."""
        start, _, end = self._lines[field]
        return self.tokens(start, end)

    def value(self, field: str) -> tuple[int, int]:
        """A field's value without white space around it: its first character, and the one after its last."""
        _, start, end = self._lines[field]
        written = self.text[start:end]
        return start + len(written) - len(written.lstrip()), start + len(written.rstrip())

    def tokens(self, start: int, end: int) -> slice:
        """The tokens that write the characters from `start` to before `end`."""
        first = bisect_right(self.ends, start)
        if start >= end or first == len(self.ends):
            return slice(first, first)
        last = self.ends[min(bisect_left(self.ends, end), len(self.ends) - 1)]
        return slice(first, bisect_right(self.ends, last))


def label_probability(completion: Completion, spans: Spans) -> float:
    """Probability, 0..1, of the category line and its newline, given the title."""
    return probability_of(completion, spans.line("category"))


def answer_probability(completion: Completion, spans: Spans) -> float:
    """Probability, 0..1, of everything up to the end of the category line.

    A model that has written "Shirt" in the title is sure of the category; its doubt shows in the title's tokens. On the
    sample catalog this separates right labels from wrong ones with an area under the ROC curve of 0.88, the label's
    line alone with 0.62 (benchmarks/decisions/README.md).
    """
    return probability_of(completion, slice(0, spans.line("category").stop))


def alternatives(completion: Completion, spans: Spans, tokens: AnswerTokens) -> dict[str, float]:
    """Other categories that the model nearly wrote -> probability, most probable first.

    A label counts if it departs from the written line at a token among the top ones. Labels that depart at the same
    token share its probability equally, because the tokens after it were never computed.
    """
    span, under = spans.line("category"), tokens.choices["category"].under
    written = tuple(completion.token_ids[span])
    found: dict[str, float] = {}
    reached = 1.0
    for i, position in enumerate(range(span.start, span.stop)):
        for token, logprob in zip(completion.top_ids[position], completion.top_logprobs[position], strict=True):
            labels = under.get((*written[:i], int(token)), ()) if token != written[i] else ()
            for label in labels:
                found[label] = reached * math.exp(logprob) / len(labels)
        reached *= math.exp(completion.logprobs[position])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def title_words(completion: Completion, spans: Spans, lexicon: Lexicon) -> list[tuple[str, float]]:
    """The title's words as `lexicon` divides it, each with the probability of the tokens that write it, 0..1."""
    return [
        (match[0], probability_of(completion, spans.tokens(match.start(), match.end())))
        for match in lexicon.words.finditer(spans.text, *spans.value("title"))
    ]


def price_features(completion: Completion, spans: Spans, tokens: AnswerTokens) -> PriceFeatures:
    """The distribution of prices that the digits' probabilities give.

    Each alternative digit represents the prices that begin with it. The digits after it were never computed, so it gets
    their geometric middle: 24.5 for a 2 before one more digit. Another first digit may begin a shorter or a longer
    number; the nearest one counts, so that the alternative to 950 is 1,414 rather than 141.
    """
    start, end = spans.value("price")
    text = spans.text[start:end]
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        return PriceFeatures()
    written, reached = int(text), 1.0
    atoms: list[tuple[float, float]] = []  # price, probability
    digits = spans.tokens(start, end)
    for position in range(digits.start, digits.stop):
        place = spans.ends[position - 1] - start
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


def probability_of(completion: Completion, positions: slice) -> float:
    """Probability, 0..1, of the tokens at `positions`, given those before."""
    return float(np.exp(completion.logprobs[positions].sum(dtype=np.float64)))
