"""From windows to what is compared: speeds, medians over rounds, and ratios to the best of the others. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triptych_bench.beside.driver import Way
from triptych_bench.cases import STEPS_PER_RUN
from triptych_bench.figures import Window, percentile

US = "triptych"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a product, and where its steps run."""

    product: str
    title: str
    way: Way

    @property
    def is_ours(self) -> bool:
        return self.product == US


@dataclass(frozen=True, slots=True)
class Speed:
    """One round of one row with so many runs in flight."""

    steps_per_s: float
    ms_a_step: float
    """The p50 of a run by its steps, for a client that waits."""

    @classmethod
    def of(cls, window: Window) -> Speed:
        return cls(window.steps / window.span_s, percentile(window.latencies_ms, 50) / STEPS_PER_RUN)


Rounds = Mapping[Row, Mapping[int, Sequence[Speed]]]
"""For each row and number of runs in flight, its rounds in the order in which they were taken."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours by another's, round by round, since what slows the machine for longer than a turn slows both."""

    ours: Row
    other: Row
    in_flight: int
    steps: Sequence[float]
    """Steps a second; more is better."""
    ms: Sequence[float]
    """Milliseconds a step; less is better."""


def median(rounds: Sequence[Speed]) -> Speed:
    """Return the median of each figure by itself."""
    return Speed(
        statistics.median(each.steps_per_s for each in rounds), statistics.median(each.ms_a_step for each in rounds)
    )


def half_range(rounds: Sequence[Speed]) -> float:
    """Return half the range of the rounds by their median, in steps/s."""
    speeds = [each.steps_per_s for each in rounds]
    return (max(speeds) - min(speeds)) / 2 / statistics.median(speeds)


def best(rounds: Rounds, in_flight: int, ways: Sequence[Way]) -> Row | None:
    """Return the row of another product with the most steps/s, among those whose steps run in one of these ways."""
    others = [row for row in rounds if not row.is_ours and row.way in ways]
    return max(others, key=lambda row: median(rounds[row][in_flight]).steps_per_s, default=None)


def ratios(rounds: Rounds, ways: Sequence[Way]) -> list[Ratio]:
    """Compare each row of ours with the best of the others, for each number of runs in flight."""
    found = []
    for ours in rounds:
        for in_flight, mine in rounds[ours].items() if ours.is_ours else ():
            other = best(rounds, in_flight, ways)
            if other is not None:
                pairs = list(zip(mine, rounds[other][in_flight], strict=True))
                steps = [a.steps_per_s / b.steps_per_s for a, b in pairs]
                ms = [a.ms_a_step / b.ms_a_step for a, b in pairs]
                found.append(Ratio(ours, other, in_flight, steps, ms))
    return found
