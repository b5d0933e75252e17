"""Check that two engines serve the same model: the same prompts, answers and log-probabilities.

Only this check detects an adapter that is not applied, different crops, or a different template: such an engine still
answers in three lines and is merely wrong more often.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from enrich.answers.completion import Completion

Precision = Literal["float32", "bfloat16", "fp8"]


class Limits(NamedTuple):
    """Limits on the differences in natural log-probability of the chosen tokens, over all prompts."""

    largest: float
    mean: float


# float32: a trained tiny adapter differed by 6e-6 at most; with a random one that was not applied, every answer
# differed. The others are estimated, not measured: bfloat16 rounds every sum to 8 bits, fp8 every weight to 4 bits.
# At the limits one token's probability changes by a factor of 1.6 and 4.5; the average change is 5 % and 16 %.
LIMITS: dict[Precision, Limits] = {
    "float32": Limits(2e-3, 2e-4),
    "bfloat16": Limits(0.5, 0.05),
    "fp8": Limits(1.5, 0.15),
}


class ParityRecord(BaseModel):
    """The result of a comparison. `ok`: the same model, within this precision."""

    model_config = ConfigDict(frozen=True)

    adapter: str
    engine: str  # its name and version
    served: str
    precision: Precision
    rows: int  # prompts compared
    failed: int  # prompts that one of the engines did not answer
    same_prompts: int
    same_answers: int
    near_ties: int  # answers that diverge where two tokens were about equally probable
    largest_difference: float
    mean_difference: float
    largest_allowed: float
    mean_allowed: float
    ok: bool
    finding: str | None  # the first prompt and token that differ

    @property
    def summary(self) -> str:
        """A one-line summary."""
        ties = f" ({self.near_ties} part at a near tie)" if self.near_ties else ""
        return (
            f"{self.rows} prompts through transformers and {self.engine} ({self.served}, {self.precision}): "
            f"{self.same_prompts} prompts and {self.same_answers} answers are the same{ties}, log-probabilities differ "
            f"by {self.largest_difference:.2g} at most (limit {self.largest_allowed:g}) and {self.mean_difference:.2g} "
            f"on average (limit {self.mean_allowed:g})"
        )


@dataclass(frozen=True)
class Comparison:
    """The two completions of one prompt, compared."""

    same_prompt: bool
    same_answer: bool
    near_tie: bool
    differences: np.ndarray  # in log-probability of the tokens that both chose, before the first that differs
    finding: str | None


def compare(
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
    precision: Precision,
    *,
    stop_ids: Collection[int],
    spell: Callable[[int], str],
    adapter: str,
    engine: str,
    served: str,
) -> ParityRecord:
    """Compare the completions of transformers with those of another engine, in the order of `ours`.

    A prompt that an engine failed on is ignored, unless this holds for most of them.

    Args:
        stop_ids: the tokens that end an answer; completions do not include them.
        spell: returns a token's text, for the finding.
    """
    limits, others = LIMITS[precision], {completion.id: completion for completion in theirs}
    pairs = [(one, others[one.id]) for one in ours]
    answered = [(one, other) for one, other in pairs if not (one.error or other.error)]
    rows = [compare_one(one, other, limits.largest, stop_ids, spell) for one, other in answered]
    differences = np.concatenate([np.zeros(0, np.float32), *(row.differences for row in rows)])
    mean = float(differences.mean()) if len(differences) else 0.0
    finding = next((row.finding for row in rows if row.finding), None)
    if 2 * len(rows) < len(pairs):
        id, error = next((one.id, one.error or other.error) for one, other in pairs if one.error or other.error)
        finding = (
            f"{len(pairs) - len(rows)} of {len(pairs)} prompts have no answer, first of them product {id}: {error}"
        )
    elif finding is None and mean > limits.mean:
        finding = f"log-probabilities differ by {mean:.2g} on average, more than {limits.mean:g}"
    return ParityRecord(
        adapter=adapter,
        engine=engine,
        served=served,
        precision=precision,
        rows=len(rows),
        failed=len(pairs) - len(rows),
        same_prompts=sum(row.same_prompt for row in rows),
        same_answers=sum(row.same_answer for row in rows),
        near_ties=sum(row.near_tie for row in rows),
        largest_difference=float(differences.max(initial=0.0)),
        mean_difference=mean,
        largest_allowed=limits.largest,
        mean_allowed=limits.mean,
        ok=finding is None,
        finding=finding,
    )


def compare_one(
    ours: Completion, theirs: Completion, limit: float, stop_ids: Collection[int], spell: Callable[[int], str]
) -> Comparison:
    """Compare one prompt's completions. `finding` names the place that proves the models differ, if they do.

    Two tokens that both engines rate about equally probable may swap, each shifting by up to `limit`; the tokens after
    that follow a different text and are not compared.
    """
    same_prompt = bool(np.array_equal(ours.prompt_ids, theirs.prompt_ids))
    pairs = zip(ours.token_ids, theirs.token_ids, strict=False)
    shared = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours.token_ids), len(theirs.token_ids)))
    same_answer = (ours.token_ids, ours.finished) == (theirs.token_ids, theirs.finished)
    differences = np.abs(ours.logprobs[:shared] - theirs.logprobs[:shared])
    apart = np.flatnonzero(~(differences <= limit))  # also true for NaN
    near_tie = not same_answer and not len(apart) and _is_near_tie(ours, theirs, shared, 2 * limit, stop_ids)
    finding = None
    if not same_prompt:
        finding = f"product {ours.id}: {_prompt_finding(ours, theirs, spell)}"
    elif len(apart):
        at = int(apart[0])
        finding = (
            f"product {ours.id}, token {at + 1} {spell(ours.token_ids[at])!r}: its log-probability is "
            f"{ours.logprobs[at]:.4f} for transformers, {theirs.logprobs[at]:.4f} for the other engine"
        )
    elif not same_answer and not near_tie:
        finding = (
            f"product {ours.id}, token {shared + 1}: transformers chose {_chosen(ours, shared, spell)}, "
            f"the other engine {_chosen(theirs, shared, spell)}"
        )
    return Comparison(same_prompt, same_answer, near_tie, differences, finding)


def _is_near_tie(ours: Completion, theirs: Completion, at: int, gap: float, stop_ids: Collection[int]) -> bool:
    """Whether the tokens chosen at `at` are about equally probable, for each engine that reports it (not for stops)."""
    gaps = []
    for one, other in ((ours, theirs), (theirs, ours)):
        if at >= len(one.token_ids):
            continue
        rivals = [other.token_ids[at]] if at < len(other.token_ids) else stop_ids
        found = np.isin(one.top_ids[at], list(rivals))
        best = one.top_logprobs[at][found].max(initial=-np.inf)
        gaps.append(float(one.logprobs[at] - best))
    return bool(gaps) and max(gaps) <= gap


def _prompt_finding(ours: Completion, theirs: Completion, spell: Callable[[int], str]) -> str:
    pairs = zip(ours.prompt_ids.tolist(), theirs.prompt_ids.tolist(), strict=False)
    for at, (one, other) in enumerate(pairs):
        if one != other:
            return f"token {at + 1} of its prompt is {spell(one)!r} for transformers, {spell(other)!r} for the other"
    return f"its prompt has {len(ours.prompt_ids)} tokens for transformers, {len(theirs.prompt_ids)} for the other"


def _chosen(completion: Completion, at: int, spell: Callable[[int], str]) -> str:
    if at < len(completion.token_ids):
        return f"{spell(completion.token_ids[at])!r} (log-probability {completion.logprobs[at]:.4f})"
    return "to end the answer" if completion.finished else "nothing more"
