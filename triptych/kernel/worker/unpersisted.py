"""Requests that were taken without being stored: they may be repeated, and are stored together with their answers.

Until then Kafka alone knows of them, so their offsets must not be committed; and what has no answer soon is stored
after all, as any other job is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from triptych.kernel.kafka.bus import TopicPartition
from triptych.kernel.worker.jobs import InboundRequest, JobKey

OVERDUE_S = 0.1
"""A request without an answer is stored after this. Then offsets go on, and another process can take it over."""


@dataclass(slots=True)
class _Entry:
    inbound: InboundRequest
    source: TopicPartition | None
    """Where it is read again if this process dies; None once another process may hold the partition."""
    offset: int
    at_s: float
    is_stored_late: bool = False
    """Whether it has to wait for its answer: the database refuses the request itself."""


class UnpersistedRequests:
    """The requests of one process that are under way, or wait for it, and are in no table."""

    def __init__(self) -> None:
        self._taken: dict[JobKey, _Entry] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, key: JobKey, inbound: InboundRequest, source: TopicPartition, offset: int, at_s: float) -> None:
        """Add a request that was taken at this moment (seconds of a monotonic clock)."""
        self._taken[key] = _Entry(inbound, source, offset, at_s)

    def get(self, key: JobKey) -> InboundRequest | None:
        """Return the request, if it is in no table yet."""
        taken = self._taken.get(key)
        return None if taken is None else taken.inbound

    def overdue(self, now_s: float) -> list[InboundRequest]:
        """Return the requests that must be stored because their answers are late; the oldest first."""
        found = []
        for taken in self._taken.values():
            if taken.at_s > now_s - OVERDUE_S:
                break
            if not taken.is_stored_late:
                found.append(taken.inbound)
        return found

    def store_late(self, key: JobKey) -> None:
        """Store this with its answer and not before, whenever that comes; if this process dies, it is read again."""
        if (taken := self._taken.get(key)) is not None:
            taken.is_stored_late = True

    def persisted(self, keys: Iterable[JobKey]) -> None:
        """Forget requests that are in the table now."""
        for key in keys:
            self._taken.pop(key, None)

    def release(self) -> None:
        """Forget where requests came from when partitions get new owners. An owner begins at the committed offsets."""
        for taken in self._taken.values():
            taken.source = None

    def safe(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return how far each of these positions may be committed: not beyond a request that is in no table."""
        safe = dict(positions)
        for taken in self._taken.values():
            if taken.source in safe:
                safe[taken.source] = min(safe[taken.source], taken.offset)
        return safe
