"""From two measures to one score: how likely it is that a chunk answers what was asked.

The score is a logistic function of both, fitted to questions of which it is known whether the articles answer
them. Questions with and without an answer weigh alike in the fit, however many there are of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

THRESHOLD = 0.35
"""Above it, an article is about what was asked."""
_AT_THRESHOLD = math.log(THRESHOLD / (1 - THRESHOLD))
_STEPS = 50
_CALM = 0.01
"""A little ridge, so that measures which separate the questions perfectly do not grow without end."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """`score = 1 / (1 + exp(-(words * w + meaning * m + base)))`."""

    words: float
    meaning: float
    base: float

    def value(self, words: float, meaning: float) -> float:
        """What the logistic function is taken of."""
        return self.words * words + self.meaning * meaning + self.base


@dataclass(frozen=True, slots=True)
class Judged:
    """The two measures of the best chunk for a question, and whether the articles answer it."""

    words: float
    meaning: float
    answered: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """How often the threshold is right."""

    precision: float
    """Of the questions above it, the part that has an answer."""
    recall: float
    """Of the questions that have an answer, the part above it."""


def fit(judged: Sequence[Judged]) -> Calibration:
    """The calibration under which the threshold lies where both kinds of questions are equally likely.

    Newton's method for a logistic regression; see Hastie, Tibshirani, Friedman, The Elements of Statistical
    Learning, 4.4.1.

    Raises:
        ValueError: all questions are of one kind.
    """
    answered = sum(one.answered for one in judged)
    if answered in {0, len(judged)}:
        raise ValueError("both kinds of questions are needed: some that are answered, and some that are not")
    weights = {True: 0.5 / answered, False: 0.5 / (len(judged) - answered)}
    beta = [0.0, 0.0, 0.0]
    for _ in range(_STEPS):
        gradient = [_CALM / len(judged) * part for part in beta]
        hessian = [[_CALM / len(judged) * (row == column) for column in range(3)] for row in range(3)]
        for one in judged:
            x = (one.words, one.meaning, 1.0)
            probability = 1 / (1 + math.exp(-sum(b * part for b, part in zip(beta, x, strict=True))))
            weight = weights[one.answered]
            for row in range(3):
                gradient[row] += weight * (probability - one.answered) * x[row]
                for column in range(3):
                    hessian[row][column] += weight * probability * (1 - probability) * x[row] * x[column]
        beta = [b - step for b, step in zip(beta, _solved(hessian, gradient), strict=True)]
    return Calibration(round(beta[0], 3), round(beta[1], 3), round(beta[2] + _AT_THRESHOLD, 3))


def quality(judged: Sequence[Judged], calibration: Calibration) -> Quality:
    """What the threshold makes of these questions."""
    above = [one.answered for one in judged if calibration.value(one.words, one.meaning) >= _AT_THRESHOLD]
    answered = sum(one.answered for one in judged)
    return Quality(sum(above) / len(above) if above else 0.0, sum(above) / answered if answered else 0.0)


def _solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Cramer's rule, for three unknowns."""
    whole = _determinant(matrix)
    return [
        _determinant([[right[row] if at == column else matrix[row][at] for at in range(3)] for row in range(3)]) / whole
        for column in range(3)
    ]


def _determinant(m: Sequence[Sequence[float]]) -> float:
    return (
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )
