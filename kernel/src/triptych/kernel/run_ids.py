"""Run ids and time: a run id is a UUIDv7 and begins with its time, so a span of time is a range of run ids."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

WEEK = timedelta(weeks=1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_TIME_BITS = 48


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A span of time as a range of run ids: `first` belongs to it, `end` does not."""

    first: UUID
    end: UUID

    @classmethod
    def week_of(cls, at: datetime) -> Span:
        """The week, Monday to Sunday in UTC, in which `at` lies."""
        monday = _FIRST_MONDAY + (at - _FIRST_MONDAY) // WEEK * WEEK
        return cls(first_id(monday), first_id(monday + WEEK))

    @property
    def begins_at(self) -> datetime:
        return id_time(self.first)

    @property
    def ends_at(self) -> datetime:
        return id_time(self.end)


def first_id(at: datetime) -> UUID:
    """The smallest run id of a moment (milliseconds since 1970, in the first 48 bits)."""
    ms = (at - _EPOCH) // timedelta(milliseconds=1)
    return UUID(int=min(max(ms, 0), 2**_TIME_BITS - 1) << (128 - _TIME_BITS))


def id_time(run_id: UUID) -> datetime:
    """The moment that a run id begins with."""
    return _EPOCH + timedelta(milliseconds=run_id.int >> (128 - _TIME_BITS))
