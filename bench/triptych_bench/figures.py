"""From what was measured to what is reported: percentiles, medians over rounds, ratios. Pure arithmetic.

Nothing is thrown away: the rounds are beside the medians.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from triptych_bench.cases import STEPS_PER_RUN, Case, Review

CLIENT = "client"
"""The process that publishes and counts; it stands beside the pipeline and is not part of it."""
UPSTREAM = "shop-api"
"""The process that the HTTP tool calls. It is outside of the pipeline."""
BESIDE = frozenset({CLIENT, UPSTREAM})

BRANCH_RATIO_MAX = 1.3
"""What a branch of a wide fan-out may cost, by one of a narrow one."""
ADAPTER_MAX_MS = 3.0
"""What the adapter may add to a call over HTTP, at p50."""

PAIRED = ("steps_per_s", "ms_a_step", "cpu_ms_a_step", "wal_bytes_a_step")
"""What two revisions are compared by. The first is better when it is larger, the others when they are smaller."""


@dataclass(frozen=True, slots=True)
class Window:
    """Outcomes that a client counted, from one arrival to another."""

    span_s: float
    steps: int
    latencies_ms: Sequence[float]
    """Of each run: from the moment before it was published to the moment its outcome was there."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one case."""

    runs: int
    steps_per_s: float
    runs_per_s: float
    messages_per_s: float
    run_p50_ms: float
    run_p99_ms: float
    ms_a_step: float
    """Divide the p50 of a run by its steps: the time of a step for a waiting client."""
    cpu_ms_a_step: Mapping[str, float]
    """Processor time of each process."""
    memory_mb: Mapping[str, float]
    wal_bytes_a_step: int
    disk_bytes_a_step: int
    """By how much the databases grew."""


@dataclass(frozen=True, slots=True)
class BranchCost:
    """What a branch of a fan-out took in one round: its share of the whole, runs included."""

    wall_ms: float
    cpu_ms: float
    """Of all processes that are part of the pipeline."""

    def over(self, other: BranchCost) -> BranchCost:
        """Return this figure divided by the other."""
        return BranchCost(self.wall_ms / other.wall_ms, self.cpu_ms / other.cpu_ms)


@dataclass(frozen=True, slots=True)
class HttpCost:
    """Calls over HTTP in one round, by a bare client and through the tool runtime in turn, at p50."""

    bare_ms: float
    adapter_ms: float

    @property
    def added_ms(self) -> float:
        return self.adapter_ms - self.bare_ms


@dataclass(frozen=True, slots=True)
class Floor:
    """What the machine can do at all, with the same broker, database and interpreter and nothing of ours."""

    hop_ms: float
    commit_ms: float
    batch_rows_per_s: float
    calls_ms: float
    """100,000 calls of a small method: builds of one version of Python differ in this by a third and more."""

    def step_ms(self, review: Review) -> float:
        """Return the time of a step if only its hops and commits took time."""
        return review.hops_per_step * self.hop_ms + review.commits_per_step * self.commit_ms


@dataclass(frozen=True, slots=True)
class Ratios:
    """What travels from machine to machine."""

    ms_over_floor: float
    """How many times the floor of a step a step takes. 1 cannot be beaten with one run in flight."""
    steps_over_floor: float
    """How many times as many steps a second as hops and commits one after the other would allow."""
    batch_rows_a_step: float
    """How many rows the database could have written in batches of 500 in the time of one step; smaller is better."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a measured value, never one in between."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def sample(
    window: Window,
    messages_per_run: float,
    cpu_ms_a_step: Mapping[str, float],
    memory_mb: Mapping[str, float],
    written: tuple[int, int],
) -> Sample:
    runs = len(window.latencies_ms)
    p50 = percentile(window.latencies_ms, 50)
    return Sample(
        runs=runs,
        steps_per_s=window.steps / window.span_s,
        runs_per_s=runs / window.span_s,
        messages_per_s=messages_per_run * runs / window.span_s,
        run_p50_ms=p50,
        run_p99_ms=percentile(window.latencies_ms, 99),
        ms_a_step=p50 / STEPS_PER_RUN,
        cpu_ms_a_step=cpu_ms_a_step,
        memory_mb=memory_mb,
        wal_bytes_a_step=written[0],
        disk_bytes_a_step=written[1],
    )


def median_sample(rounds: Sequence[Sample]) -> Sample:
    """Return the median of each figure by itself."""
    return Sample(
        runs=round(statistics.median(each.runs for each in rounds)),
        steps_per_s=statistics.median(each.steps_per_s for each in rounds),
        runs_per_s=statistics.median(each.runs_per_s for each in rounds),
        messages_per_s=statistics.median(each.messages_per_s for each in rounds),
        run_p50_ms=statistics.median(each.run_p50_ms for each in rounds),
        run_p99_ms=statistics.median(each.run_p99_ms for each in rounds),
        ms_a_step=statistics.median(each.ms_a_step for each in rounds),
        cpu_ms_a_step=_medians([each.cpu_ms_a_step for each in rounds]),
        memory_mb=_medians([each.memory_mb for each in rounds]),
        wal_bytes_a_step=round(statistics.median(each.wal_bytes_a_step for each in rounds)),
        disk_bytes_a_step=round(statistics.median(each.disk_bytes_a_step for each in rounds)),
    )


def median_floor(rounds: Sequence[Floor]) -> Floor:
    return Floor(**{f.name: statistics.median(getattr(each, f.name) for each in rounds) for f in fields(Floor)})


def branch_ratio(narrow: Sequence[BranchCost], wide: Sequence[BranchCost]) -> BranchCost:
    """Divide a branch of a wide fan-out by one of a narrow one: the median of the ratios of each round."""
    return median_branch([after.over(before) for before, after in zip(narrow, wide, strict=True)])


def median_branch(rounds: Sequence[BranchCost]) -> BranchCost:
    return BranchCost(
        statistics.median(each.wall_ms for each in rounds), statistics.median(each.cpu_ms for each in rounds)
    )


def median_added_ms(rounds: Sequence[HttpCost]) -> float:
    return statistics.median(each.added_ms for each in rounds)


def spread(rounds: Sequence[Sample]) -> float:
    """Return how far the rounds differ, in steps/s: the widest difference divided by the median."""
    speeds = [each.steps_per_s for each in rounds]
    return (max(speeds) - min(speeds)) / statistics.median(speeds)


def ratios(case: Case, of: Sample, floor: Floor) -> Ratios:
    step_ms = floor.step_ms(case.review)
    return Ratios(
        ms_over_floor=of.ms_a_step / step_ms,
        steps_over_floor=of.steps_per_s * step_ms / 1000,
        batch_rows_a_step=floor.batch_rows_per_s / of.steps_per_s,
    )


def figure(of: Sample, name: str) -> float:
    """Return one of the figures in PAIRED; processor time is that of the pipeline."""
    if name == "cpu_ms_a_step":
        return pipeline_ms(of.cpu_ms_a_step)
    return float(getattr(of, name))


def pipeline_ms(spent_ms: Mapping[str, float]) -> float:
    """Return the processor time of all processes of the pipeline."""
    return sum(spent for process, spent in spent_ms.items() if process not in BESIDE)


def pair_ratios(base: Sequence[Sample], head: Sequence[Sample], name: str) -> list[float]:
    """Head by base, round by round: what troubles the machine for longer than a round troubles both."""
    return [figure(after, name) / figure(before, name) for before, after in zip(base, head, strict=True)]


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
