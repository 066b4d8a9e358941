"""A problem: what does not agree, and in which run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Check(StrEnum):
    """What is checked. The names are stable: machines read them."""

    JOURNAL = "journal"
    """Events are numbered without a gap, begin with an admission, can be read and folded."""
    END = "end"
    """A run that has ended has exactly one end, and nothing after it."""
    RUN = "run"
    """The row in `runs` is the fold of the journal."""
    STEPS = "steps"
    """The rows in `steps` are the fold of the journal."""
    TIMER = "timer"
    """A run that time can change has a timer that is not late; no other run has one."""
    QUEUE = "queue"
    """A run has a place in the queue as long as it is queued."""
    SPEND = "spend"
    """What the run is said to have used is the sum of what its events say."""
    BUDGET = "budget"
    """At no moment was more used and reserved than the budget allowed then."""
    CHILDREN = "children"
    """A child run was asked for by its parent, and does not go on long after the parent has ended."""
    OUTBOX = "outbox"
    """No message waits for its publication long after its run has moved last."""
    JOBS = "jobs"
    """Every job belongs to a run, and none is open or unpublished long after its run has ended."""
    EFFECTS = "effects"
    """Every receipt belongs to a call in the journal."""
    KEYS = "keys"
    """Every business key was asked for by the run that has it, and every call under one has been granted it."""
    ORPHAN = "orphan"
    """A row of a run that does not exist."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that does not agree."""

    check: Check
    message: str
    run_id: UUID
    task_id: str | None

    @classmethod
    def of(cls, check: Check, message: str, run_id: UUID, task_id: str | None) -> Problem:
        """Return a problem with a plain UUID: our JSON writer does not know asyncpg's own class of it."""
        return cls(check, message, UUID(int=run_id.int), task_id)
