"""Which records are taken alone: those a process was reading when it died, and those of a refused batch.

A record that is the only one that processes were reading in so many lives ends them. It is dead-lettered unread then. A
life is one process from its start to its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from triptych.kernel.kafka.bus import Record


class RecordsInFlight(NamedTuple):
    """Records of one partition that a process is reading, and in how many lives that was so."""

    topic: str
    partition: int
    first: int
    last: int
    life: str
    lives: int = 1


TIMERS = "timers of runs"
"""Replaces a topic when a process looks at runs whose time has come: from when to when, in microseconds since 1970."""
RUN = "a run alone"
"""Replaces a topic when a process looks at one run alone: its id, in two halves."""


def timers_in_flight(partition: int, due: Iterable[datetime], life: str) -> RecordsInFlight:
    """Return the range of runs whose timers were due at these moments."""
    moments = [_microseconds(each) for each in due]
    return RecordsInFlight(TIMERS, partition, min(moments), max(moments), life)


def run_in_flight(partition: int, run_id: UUID, life: str) -> RecordsInFlight:
    """Return the range of one run alone."""
    high, low = run_id.int >> 64, run_id.int & 2**64 - 1
    return RecordsInFlight(RUN, partition, high - 2**63, low - 2**63, life)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@dataclass(slots=True)
class Suspicion:
    """What this process knows of records that may end it. It outlives the sessions."""

    life: str = field(default_factory=lambda: uuid4().hex)
    _until: dict[tuple[str, int], int] = field(default_factory=dict)
    runs: set[UUID] = field(default_factory=set)
    """Runs whose time came in a batch that was refused, or while a process ended: each is decided alone."""

    def suspect_until(self, topic: str, partition: int, until: int) -> None:
        """Suspect the records of this partition before this offset."""
        key = topic, partition
        self._until[key] = max(until, self._until.get(key, 0))

    def suspect_records(self, readings: Iterable[RecordsInFlight], offsets: dict[tuple[str, int], int]) -> None:
        """Suspect what other lives were reading when they ended, unless a process has got past it since.

        What was given away alive, and has ended no life, is not suspect.
        """
        for reading in readings:
            begins_at = offsets.get((reading.topic, reading.partition))
            is_alarming = reading.life != self.life and reading.lives > 0
            if is_alarming and begins_at is not None and reading.last >= begins_at:
                self.suspect_until(reading.topic, reading.partition, reading.last + 1)

    def suspect_timers(self, readings: Iterable[RecordsInFlight], armed: Iterable[tuple[UUID, datetime, int]]) -> None:
        """Suspect runs whose timers were due when other lives looked at them and ended, unless a timer moved since."""
        spans = {each.partition: each for each in readings if each.topic == TIMERS and each.life != self.life}
        for run_id, due_at, partition in armed:
            span = spans.get(partition)
            if span is not None and span.first <= _microseconds(due_at) <= span.last:
                self.runs.add(run_id)

    def is_suspect(self, record: Record[Any, Any]) -> bool:
        """Return whether a record must be taken alone."""
        return bool(self._until) and record.offset < self._until.get((record.topic, record.partition), 0)

    def passed(self, record: Record[Any, Any]) -> None:
        """Clear a suspect that did no harm."""
        key = record.topic, record.partition
        if record.offset + 1 >= self._until.get(key, 0):
            self._until.pop(key, None)
