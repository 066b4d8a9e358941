"""What is measured: runs of five no-op steps, by how they are reviewed and how many are in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEPS_PER_RUN = 5


@dataclass(frozen=True, slots=True)
class Review:
    """A way to review, and what one step of it costs at the least, one thing after the other."""

    name: str
    playbook: str
    hops_per_step: int
    """Messages that must be published and consumed: to the tool and back, and to the critic and back."""
    commits_per_step: int
    """What must be durable: each answer in the executor, and each request and answer in a worker."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    review: Review
    in_flight: int

    @property
    def name(self) -> str:
        return f"{self.review.name}, {self.in_flight} in flight"


REVIEWS = (
    Review("every_step", "noop-every-step", hops_per_step=4, commits_per_step=6),
    Review("exceptions", "noop-exceptions", hops_per_step=2, commits_per_step=3),
)
IN_FLIGHT = (1, 50, 200, 1_000)


def cases(in_flight: Sequence[int]) -> tuple[Case, ...]:
    """Each way to review, with each number of runs in flight, in the order of the tables."""
    return tuple(Case(review, count) for review in REVIEWS for count in in_flight)
