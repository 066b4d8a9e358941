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


@value
class Decided:
    """The run after a message, and the events that took it there; no events means nothing changed."""

    run: Run
    events: tuple[ev.Event, ...]


class RunTransition:
    """Collects the events of one message: each is folded in before the next decision."""

    def __init__(self, run: Run, now: datetime) -> None:
        self.run, self.now = run.copy(), now
        self.events: list[ev.Event] = []

    def record(self, event: ev.Event) -> None:
        """Add an event, and fold it into the run."""
        self.events.append(event)
        record(self.run, event, self.now)

    def decided(self) -> Decided:
        """Return the run as it is now, with all events."""
        return Decided(self.run, tuple(self.events))
