"""Make one score of two measures: how likely it is that a chunk answers the question.

The score is a logistic function of both. It is fitted to questions, and somebody has said of each whether the documents
answer it. Questions with and without an answer have the same weight in the fit, however many there are of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

THRESHOLD = 0.35
"""Above it, a document answers the question."""
_AT_THRESHOLD = math.log(THRESHOLD / (1 - THRESHOLD))
_STEPS = 50
_RIDGE = 0.01
"""A small ridge: without it, measures that separate the questions perfectly let the fit grow without end."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """`score = 1 / (1 + exp(-(words * w + meaning * m + base)))`."""

    words: float
    meaning: float
    base: float

    def value(self, words: float, meaning: float) -> float:
        """Return the argument of the logistic function."""
        return self.words * words + self.meaning * meaning + self.base


@dataclass(frozen=True, slots=True)
class Judged:
    """The two measures of the best chunk for a question, and whether the documents answer it."""

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
    """Fit a calibration that puts the threshold where both kinds of questions are equally likely.

    Newton's method for a logistic regression; see Hastie, Tibshirani, Friedman, The Elements of Statistical
    Learning, 4.4.1.

    Raises:
        ValueError: all questions are of one kind.
    """
    import numpy as np  # noqa: PLC0415 - its import takes half a second, and a search does not need it

    answered = np.array([one.answered for one in judged], dtype=float)
    count = answered.sum()
    if count in {0, len(judged)}:
        raise ValueError("both kinds of questions are needed: some that are answered, and some that are not")
    weights = np.where(answered == 1, 0.5 / count, 0.5 / (len(judged) - count))
    measures = np.array([(one.words, one.meaning, 1.0) for one in judged])
    ridge = _RIDGE / len(judged) * np.eye(3)
    beta = np.zeros(3)
    for _ in range(_STEPS):
        probability = 1 / (1 + np.exp(-measures @ beta))
        gradient = ridge @ beta + measures.T @ (weights * (probability - answered))
        hessian = ridge + (measures.T * weights * probability * (1 - probability)) @ measures
        beta -= np.linalg.solve(hessian, gradient)
    words, meaning, base = (float(part) for part in beta)
    return Calibration(round(words, 3), round(meaning, 3), round(base + _AT_THRESHOLD, 3))


def quality(judged: Sequence[Judged], calibration: Calibration) -> Quality:
    """Count how often the threshold is right about these questions."""
    above = [one.answered for one in judged if calibration.value(one.words, one.meaning) >= _AT_THRESHOLD]
    answered = sum(one.answered for one in judged)
    return Quality(sum(above) / len(above) if above else 0.0, sum(above) / answered if answered else 0.0)
