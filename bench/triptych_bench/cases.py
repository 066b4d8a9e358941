"""What is measured: runs of five steps, by tool, review and how many are in flight; and steps that fan out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEPS_PER_RUN = 5


@dataclass(frozen=True, slots=True)
class Review:
    """A way to review the calls of a tool, and what one step of it costs at the least, one thing after the other."""

    name: str
    tool: str
    playbook: str
    hops_per_step: int
    """Messages that must be published and consumed: to the tool and back, and to the critic and back."""
    commits_per_step: int
    """What must be durable: each answer in the executor, and each request and answer in a worker."""
    most_in_flight: int = 1_000


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    review: Review
    in_flight: int

    @property
    def name(self) -> str:
        return f"{self.review.tool}, {self.review.name}, {self.in_flight} in flight"


@dataclass(frozen=True, slots=True)
class Fan:
    """Runs of one step that fans out; so many are in flight that as many branches are under way, however wide it is."""

    branches: int
    in_flight: int

    @property
    def name(self) -> str:
        return f"a fan-out of {self.branches:,}, {self.in_flight} in flight"


NOOP_EXCEPTIONS = Review("exceptions", "echo", "noop-exceptions", hops_per_step=2, commits_per_step=3)
REVIEWS = (
    Review("every_step", "echo", "noop-every-step", hops_per_step=4, commits_per_step=6),
    NOOP_EXCEPTIONS,
    Review("exceptions", "shop", "http-exceptions", hops_per_step=2, commits_per_step=3, most_in_flight=200),
)
FAN_OUT = "fan-out"
NARROW, WIDE = Fan(branches=10, in_flight=10), Fan(branches=1_000, in_flight=1)
FANS = NARROW, WIDE
IN_FLIGHT = (1, 50, 200, 1_000)


def cases(in_flight: Sequence[int]) -> tuple[Case, ...]:
    """List each way to review with each number of runs in flight, in the order of the tables."""
    return tuple(Case(review, count) for review in REVIEWS for count in in_flight if count <= review.most_in_flight)
