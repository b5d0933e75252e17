"""Features of a greedy answer's token log-probabilities: the model's confidence in title, category and price."""

import math
import re
from bisect import bisect_left, bisect_right
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from transformers import PreTrainedTokenizerBase

from enrich.answers.automata import Line
from enrich.answers.completion import TOP_K, Completion
from enrich.answers.lexicon import Lexicon, lexicon_of
from enrich.answers.prompt import Prompt
from enrich.answers.text_tokens import control_tokens, token_bytes
from enrich.answers.title_rules import noun_of
from enrich.errors import UsageError

MOST_ALTERNATIVES = 8  # labels; a row keeps three
_DIGITS = re.compile(rb" ?([0-9]+)")  # a token of them, with the space before a number or without
_CONTINUING = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))  # bytes of UTF-8 inside a character


@dataclass(frozen=True)
class PriceFeatures:
    """The distribution of prices that the digits' probabilities give; all 0 without a price."""

    expectation: float = 0.0  # geometric mean, units of the currency
    spread: float = 0.0  # standard deviation of the log price
    step: float = 1.0  # units of the currency: what an answer's price of 1 stands for


class ChoiceTokens:
    """The possible lines of a choice as token ids, each with the newline at its end.

    They form a tree, whose memory grows with the lines' tokens. With the lines sorted by their tokens, those below a
    node are neighbours, so two numbers per node are enough.
    """

    def __init__(self, lines: Mapping[Line, str]) -> None:
        self.lines = lines
        self.longest = max(map(len, lines), default=0)
        self.values = [lines[line] for line in sorted(lines)]
        self.known = frozenset(self.values)  # thousands are looked up, not searched
        self.after: list[dict[int, int]] = [{}]  # by node, 0 being the root: a token -> the node after it
        self.below: list[tuple[int, int]] = [(0, len(lines))]  # by node: its first value, and the one after its last
        for number, line in enumerate(sorted(lines)):
            node = 0
            for token in line:
                node = self.after[node].setdefault(token, len(self.after))
                if node == len(self.after):
                    self.after.append({})
                    self.below.append((number, number))
                self.below[node] = self.below[node][0], number + 1
        self.below[0] = 0, len(lines)


def refuse_control_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    """UsageError if part of a prompt or of its answers tokenizes to a control token of this model, in any spelling.

    It would end or redirect the answer, and the grammar would force it.
    """
    settings = {"instruction": [prompt.instruction], "unknown": [prompt.unknown]}
    settings |= {f"label of {field.name}": [field.label] for field in prompt.fields}
    values = {field.name: field.values for field in prompt.fields if field.values}
    control = control_tokens(tokenizer)
    for source, texts in (("settings", settings), ("catalog", values)):
        for name, found in texts.items():
            for text, ids in zip(found, tokenizer(list(found), add_special_tokens=False).input_ids, strict=True):
                if not control.isdisjoint(ids):
                    raise UsageError(
                        f"adapter: {name} {text[:40]!r} spells a control token of the model; take it out of the "
                        f"{source} and fine-tune again"
                    )


class AnswerTokens:
    """How the tokenizer writes an answer to a prompt: the tokens of the newline, of numbers, and of each line.

    Raises:
        UsageError: see `refuse_control_tokens`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, end: str) -> None:
        refuse_control_tokens(tokenizer, prompt)
        self.control = control_tokens(tokenizer)
        self.prompt = prompt
        self.lexicon = lexicon_of(prompt.language)
        self.nouns = frozenset(noun_of(label, self.lexicon) for label in prompt.categories)  # singular
        self._tokenizer = tokenizer.backend_tokenizer

        def lines(texts: Sequence[str], number: int = 1) -> list[Line]:
            # After a newline, as in an answer: there the tokenizer puts no word-start marker before the first word.
            before = "\n" if number else ""
            marked = [f"{before}{text}" for text in texts]
            found = tokenizer(marked, add_special_tokens=False).input_ids if marked else []
            return [tuple(ids[ids.index(self.newline) + 1 :] if number else ids) for ids in found]

        self.newline: int = tokenizer.encode("\n", add_special_tokens=False)[-1]
        self.stop: int = tokenizer.convert_tokens_to_ids(end)
        # By field: the tokens before a value, and those of the whole line where the value is unknown.
        self.prefixes: dict[str, Line] = {}
        self.unknown: dict[str, Line] = {}
        self.choices: dict[str, ChoiceTokens] = {}
        for number, field in enumerate(prompt.fields):
            opening = prompt.opening(field)
            # The space before a number is a token by itself, or the start of the first digit's token.
            if begins := field.how.begins:
                self.prefixes[field.name] = lines([f"{opening}{begins}"], number)[0][:-1]
            else:
                self.prefixes[field.name] = lines([opening.rstrip()], number)[0]
            if not field.required:
                self.unknown[field.name] = lines([f"{opening}{prompt.unknown}"], number)[0]
            if field.how.closed:
                values = field.values if field.required else (*field.values, prompt.unknown)
                written = lines([f"{opening}{value}" for value in values], number)
                self.choices[field.name] = ChoiceTokens(
                    {(*line, self.newline): value for line, value in zip(written, values, strict=True)}
                )
        self.sizes = {name: len(choice.lines) for name, choice in self.choices.items()}
        self.words, added = token_bytes(tokenizer), tokenizer.added_tokens_decoder
        self._written = self.words | {token: one.content.encode() for token, one in added.items()}
        # Characters that start in each token: bytes of UTF-8 that do not continue one.
        self._characters = {token: sum(byte & 0xC0 != 0x80 for byte in text) for token, text in self._written.items()}
        self._learn_digits(self.words, lines)

    def _learn_digits(self, words: Mapping[int, bytes], lines: Callable[[Sequence[str]], Sequence[Line]]) -> None:
        """Which tokens write digits: one each, or several at once ("129", " 12")."""
        found = ((token, _DIGITS.fullmatch(text)) for token, text in words.items())
        written = {token: match[1].decode() for token, match in found if match}
        numbers = sorted(set(written.values()))
        price = self.prompt.fields[-1]
        before, opening = len(self.prefixes[price.name]), self.prompt.opening(price)

        def in_answer(numbers: Sequence[str]) -> list[Line]:
            return [line[before:] for line in lines([f"{opening}{one}" for one in numbers])]

        self.inner = frozenset(line[0] for line in lines(numbers) if len(line) == 1)  # behind other digits
        self.leading = frozenset(line[0] for line in in_answer(numbers) if len(line) == 1)
        self.digits = {token: digits for token, digits in written.items() if token in self.inner | self.leading}
        half = in_answer(["1.5"])[0]  # None where the point is joined to a digit: such numbers are then written whole
        self.point = half[1] if len(half) == 3 and self.digits.get(half[2]) == "5" else None
        self.shares_digits = any(len(digits) > 1 for digits in self.digits.values())

        @lru_cache(1 << 16)
        def splits(number: str) -> frozenset[int]:
            """Behind how many of the number's digits a token ends."""
            [line] = in_answer([number])
            return frozenset(accumulate(len(self.digits.get(token, "?")) for token in line))

        self._splits = splits

    @property
    def note(self) -> str | None:
        """A message about prices with this tokenizer, in one line."""
        if not self.shares_digits:
            return None
        most = max(map(len, self.digits.values()))
        return (
            f"prices: this model writes up to {most} digits in one token, so the {TOP_K} most probable ones show less "
            "of how sure it is; intervals are calibrated anyway"
        )

    def may_write(self, beginning: str, more: int) -> bool:
        """Whether the tokenizer, in a number with so many more digits, ends a token behind `beginning`."""
        return not self.shares_digits or len(beginning) in self._splits(beginning + "5" * more)

    def spans(self, token_ids: Sequence[int]) -> "Spans":
        """Locate the parts of an answer in its tokens, by the characters that each token writes.

        A token that ends inside a character counts as ending where that character does. The mark before the first word,
        which is not text, counts as ending where the next token does.
        """
        written = [self._written.get(token, b"") for token in token_ids]
        try:
            text = b"".join(written).decode()
            ends = list(accumulate(map(self._characters.__getitem__, token_ids)))
        except (UnicodeDecodeError, KeyError):  # bytes that are not UTF-8, or special tokens
            text, ends = _decode(written)
        if text.startswith(" ") and not self._tokenizer.decode(token_ids[:1]).startswith(" "):
            text, ends = text[1:], [end - 1 for end in ends]
        for place in range(len(written) - 1, 0, -1):
            if written[place][:1] in _CONTINUING or ends[place - 1] == 0:
                ends[place - 1] = ends[place]
        return Spans(text, ends, self.prompt)


def _decode(written: Sequence[bytes]) -> tuple[str, list[int]]:
    """Bytes as text, with a mark for those that are not UTF-8, and how many characters are written after each piece."""
    decoder = getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(piece) for piece in written] + [decoder.decode(b"", True)]
    return "".join(pieces), list(accumulate(map(len, pieces[:-1])))


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
            self._lines[field.name] = start, min(start + len(prompt.opening(field).rstrip()), end), end
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


def line_probability(completion: Completion, spans: Spans, field: str) -> float:
    """Probability, 0..1, of a field's line and its newline, given the lines before."""
    return probability_of(completion, spans.line(field))


def answer_probability(completion: Completion, spans: Spans, field: str) -> float:
    """Probability, 0..1, of the title and of a field's line, with their newlines.

    A model that has written "Shirt" in the title is certain of the category; its doubt shows in the title's tokens. On
    the sample catalog this separates right labels from wrong ones with an area under the ROC curve of 0.88, compared
    with 0.62 for the label's line alone (benchmarks/decisions/README.md).
    """
    return line_probability(completion, spans, "title") * line_probability(completion, spans, field)


def alternatives(completion: Completion, spans: Spans, tokens: AnswerTokens, field: str) -> dict[str, float]:
    """Other values of a choice that the model nearly wrote -> probability, the MOST_ALTERNATIVES most probable ones
    first; its word for unknown is one of them.

    A value counts if it departs from the written line at a token among the top ones. Labels that depart at the same
    token share its probability equally, because the tokens after it were never computed.
    """
    span, choice = spans.line(field), tokens.choices[field]
    found: dict[str, float] = {}
    reached, node = 1.0, 0
    for written, own, ids, logprobs in _steps(completion, span):
        after = choice.after[node]
        for token, logprob in zip(ids, logprobs, strict=True):
            if token != written and token in after:
                first, end = choice.below[after[token]]
                share = reached * math.exp(logprob) / (end - first)
                found |= dict.fromkeys(choice.values[first : min(end, first + MOST_ALTERNATIVES)], share)
        if written not in after:
            break
        reached *= math.exp(own)
        node = after[written]
    return dict(sorted(found.items(), key=lambda item: -item[1])[:MOST_ALTERNATIVES])


def title_words(completion: Completion, spans: Spans, lexicon: Lexicon) -> list[tuple[str, float]]:
    """The title's words as `lexicon` divides it, each with the probability of the tokens that write it, 0..1."""
    return [
        (match[0], probability_of(completion, spans.tokens(match.start(), match.end())))
        for match in lexicon.words.finditer(spans.text, *spans.value("title"))
    ]


def price_features(completion: Completion, spans: Spans, tokens: AnswerTokens) -> PriceFeatures:
    """The distribution of prices that the digits' probabilities give.

    Each alternative token of one or several digits represents the prices that begin with it. The digits after it were
    never computed, so it gets their geometric middle: 24.5 for a 2 before one more digit. Another first token may begin
    a shorter or a longer number; the nearest one counts, so that the alternative to 950 is 1,414 rather than 141.
    """
    start, end = spans.value("price")
    text = spans.text[start:end]
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        return PriceFeatures()
    reached = 1.0
    atoms: list[tuple[float, float]] = []  # price, probability
    digits = spans.tokens(start, end)
    for position, (chosen, own, ids, logprobs) in enumerate(_steps(completion, digits), digits.start):
        before = text[: max(spans.ends[position - 1] - start, 0)] if position else ""
        for token, logprob in zip(ids, logprobs, strict=True):
            if token == chosen:
                continue
            if token in tokens.digits:
                price = _nearest(before, tokens.digits[token], text, tokens)
            else:
                price = float(before or 0) if token == tokens.stop else 0.0
            if price > 0:
                atoms.append((price, reached * math.exp(logprob)))
        reached *= math.exp(own)
    prices, weights = map(np.array, zip(*atoms, (float(text), reached), strict=True))
    weights = weights / weights.sum()
    logs = np.log(prices)
    mean = float(weights @ logs)
    step = tokens.prompt.price_step
    return PriceFeatures(math.exp(mean) * step, math.sqrt(max(float(weights @ (logs - mean) ** 2), 0.0)), step)


def _nearest(before: str, digits: str, written: str, tokens: AnswerTokens) -> float:
    """The geometric middle of the prices that begin with `before` and a token of `digits`, 0 if there are none.

    They have as many digits as `written`, or, if the first token differs and that is nearer, one more or one less.
    """
    beginning = before + digits
    value, left = int(beginning), len(written) - len(beginning)
    lengths = {max(left, 0)} if before else {max(left - 1, 0), max(left, 0), max(left + 1, 0)}
    middle = math.sqrt(value * (value + 1))
    prices = [middle * 10**more if more else float(value) for more in lengths if tokens.may_write(beginning, more)]
    return min(prices or [float(value)], key=lambda price: abs(math.log(price / int(written))) if price else math.inf)


def _steps(completion: Completion, span: slice) -> Iterator[tuple[int, float, list[int], list[float]]]:
    """Of each token its id and log-probability, and those of the most probable ones; lists are faster than arrays."""
    columns = (completion.logprobs[span], completion.top_ids[span], completion.top_logprobs[span])
    return zip(completion.token_ids[span], *(column.tolist() for column in columns), strict=True)


def probability_of(completion: Completion, positions: slice) -> float:
    """Probability, 0..1, of the tokens at `positions`, given those before."""
    return float(np.exp(completion.logprobs[positions].sum(dtype=np.float64)))
