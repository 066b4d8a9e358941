"""Which records are taken alone: what a process had in hand when it died, and what the database refused together.

A record that is the only one in hand in so many lives is what ends them. It is buried unread then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from triptych.kernel.bus import Record


class Reading(NamedTuple):
    """Records of one partition that a process has in hand, and in how many of its lives."""

    topic: str
    partition: int
    first: int
    last: int
    life: str
    lives: int = 1


@dataclass(slots=True)
class Suspicion:
    """What this process knows of records that may end it. It outlives the sessions."""

    life: str = field(default_factory=lambda: uuid4().hex)
    _until: dict[tuple[str, int], int] = field(default_factory=dict)
    runs: set[UUID] = field(default_factory=set)
    """Runs whose time came in a batch that was refused: each is decided alone."""

    def distrust(self, topic: str, partition: int, until: int) -> None:
        """Records of this partition before this offset are suspects."""
        key = topic, partition
        self._until[key] = max(until, self._until.get(key, 0))

    def believe(self, readings: Iterable[Reading], offsets: dict[tuple[str, int], int]) -> None:
        """What other lives had in hand when they ended, if nobody has got past it since."""
        for reading in readings:
            begins_at = offsets.get((reading.topic, reading.partition))
            if reading.life != self.life and begins_at is not None and reading.last >= begins_at:
                self.distrust(reading.topic, reading.partition, reading.last + 1)

    def is_suspect(self, record: Record[Any, Any]) -> bool:
        """Whether a record is to be taken alone."""
        return bool(self._until) and record.offset < self._until.get((record.topic, record.partition), 0)

    def passed(self, record: Record[Any, Any]) -> None:
        """A suspect is behind us."""
        key = record.topic, record.partition
        if record.offset + 1 >= self._until.get(key, 0):
            self._until.pop(key, None)
