"""Categories that are paths, `WOMAN > SHOES > PUMPS`, and how many of their levels are reliable.

A level is right if the true label is below it. The model gives it the probability of the tokens up to its end: the sum
over all labels that begin with it. Each depth has its own calibration, with an intercept for each branch.
"""

import re
from collections.abc import Sequence
from itertools import accumulate

from enrich.answers.calibration import CategoryCalibration, category_confidence, fit_platt
from enrich.answers.completion import Completion
from enrich.answers.token_evidence import Spans, probability_of

SEPARATOR = " > "  # as Google's and Shopify's standards write it
_ENDS = re.compile(re.escape(SEPARATOR))


def levels_of(label: str) -> tuple[str, ...]:
    """The levels of a path, the broadest first, with or without spaces around its `>`."""
    return tuple(level for part in label.split(">") if (level := part.strip()))


def joined(levels: Sequence[str]) -> str:
    """The label of a path."""
    return SEPARATOR.join(levels)


def branches_of(label: str) -> list[str]:
    """The labels of the levels above a path's last one, the broadest first."""
    levels = levels_of(label)
    return [joined(levels[:depth]) for depth in range(1, len(levels))]


def level_probabilities(completion: Completion, spans: Spans) -> tuple[float, ...]:
    """Probability, 0..1, of the answer up to the end of each level of its category but the last."""
    start, end = spans.value("category")
    ends = [match.start() for match in _ENDS.finditer(spans.text, start, end)]
    return tuple(probability_of(completion, slice(0, spans.tokens(start, place).stop)) for place in ends)


def fit_levels(
    probabilities: Sequence[Sequence[float]], answered: Sequence[str], true: Sequence[str]
) -> tuple[CategoryCalibration, ...]:
    """A calibration for each depth that answers have above their last level, the broadest first.

    Args:
        probabilities: of each answer's levels (`level_probabilities`).
        answered: the labels of the answers.
        true: the right ones.
    """
    fitted = []
    for depth in range(1, max(map(len, probabilities), default=0) + 1):
        rows = [
            (found[depth - 1], levels_of(said)[:depth], levels_of(right)[:depth])
            for found, said, right in zip(probabilities, answered, true, strict=True)
            if len(found) >= depth
        ]
        fitted.append(
            fit_platt(
                [found for found, _, _ in rows], [a == b for _, a, b in rows], [joined(said) for _, said, _ in rows]
            )
        )
    return tuple(fitted)


def level_confidences(
    calibrations: Sequence[CategoryCalibration], label: str, probabilities: Sequence[float], confidence: float
) -> tuple[float, ...]:
    """Calibrated probability that each level of `label` is right, the broadest first; none is below the next one's.

    Args:
        calibrations: from `fit_levels`; a depth that they lack uses the deepest one. Without any, probabilities are
            used uncalibrated.
        probabilities: of the levels but the last.
        confidence: of the last one, which is the whole label.
    """
    above = list(probabilities)
    if calibrations:
        each = (calibrations[min(depth, len(calibrations) - 1)] for depth in range(len(above)))
        found = zip(each, probabilities, branches_of(label), strict=True)
        above = [category_confidence(calibration, probability, branch) for calibration, probability, branch in found]
    return tuple(accumulate([confidence, *reversed(above)], max))[::-1]


def sure_levels(label: str, confidences: Sequence[float], least: float) -> tuple[str, ...]:
    """The levels of `label` down to the deepest whose confidence is at least `least`; possibly none."""
    return levels_of(label)[: sum(confidence >= least for confidence in confidences)]
