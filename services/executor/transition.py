"""A transition: what one message does to one run.

Pure, like everything around it: what a transition records is folded in immediately, so that the next decision
sees it.
"""

from __future__ import annotations

from datetime import datetime

from triptych.executor import events as ev
from triptych.executor.fold import record
from triptych.executor.state import Run
from triptych.kernel.values import value
from triptych.schemas import Plan


@value
class KnownPlan:
    """A plan that the planner made for an earlier run: it is the first plan of this run too."""

    plan: Plan
    worker: str
    """The process that made it."""
    made_at: datetime
    """When its answer was read."""


@value
class Decided:
    """The run after a message, and the events that took it there; no events means nothing changed."""

    run: Run
    events: tuple[ev.Event, ...]


class RunTransition:
    """Collects the events of one message: each is folded in before the next decision."""

    def __init__(self, run: Run, now: datetime, known_plan: KnownPlan | None = None) -> None:
        """Take the run as it is before the message. `known_plan` can be its first plan, without asking the planner."""
        self.run, self.now, self.known_plan = run.copy(), now, known_plan
        self.events: list[ev.Event] = []

    def record(self, event: ev.Event) -> None:
        """Add an event, and fold it into the run."""
        self.events.append(event)
        record(self.run, event, self.now)

    def decided(self) -> Decided:
        """Return the run as it is now, with all events."""
        return Decided(self.run, tuple(self.events))
