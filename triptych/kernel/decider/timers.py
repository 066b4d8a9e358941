"""Timers of the partitions that this process owns: a heap in memory of what the database holds.

The owner is the only writer, so the heap is exact. A run has at most one timer, at the earliest
moment at which time alone may change it; arming it again moves it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID


class Timers:
    """One timer for each run, ordered by when it is due."""

    def __init__(self, armed: Iterable[tuple[UUID, datetime]] = ()) -> None:
        self._due: dict[UUID, datetime] = {}
        self._heap: list[tuple[datetime, UUID]] = []
        for run_id, due_at in armed:
            self.arm(run_id, due_at)

    def __len__(self) -> int:
        return len(self._due)

    def due_at(self, run_id: UUID) -> datetime | None:
        """Return when the run's timer is due, or None when it has none."""
        return self._due.get(run_id)

    def arm(self, run_id: UUID, due_at: datetime) -> None:
        """Set or move a run's timer."""
        self._due[run_id] = due_at
        heapq.heappush(self._heap, (due_at, run_id))

    def disarm(self, run_id: UUID) -> None:
        """Forget a run's timer; its entries in the heap are skipped when they surface."""
        self._due.pop(run_id, None)

    def take_due(self, now: datetime, limit: int) -> list[UUID]:
        """Runs whose timer is due, at most `limit`, earliest first. Their timers stay armed until moved."""
        taken: list[UUID] = []
        while self._heap and self._heap[0][0] <= now and len(taken) < limit:
            due_at, run_id = heapq.heappop(self._heap)
            if self._due.get(run_id) == due_at:
                taken.append(run_id)
        return taken

    def wait_ms(self, now: datetime, longest_ms: int) -> int:
        """Return how long nothing is due, in milliseconds, at most `longest_ms`."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if not self._heap:
            return longest_ms
        wait = (self._heap[0][0] - now) / timedelta(milliseconds=1)
        return max(0, min(longest_ms, round(wait + 0.5)))
