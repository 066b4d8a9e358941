"""Run ids and time: a run id is a UUIDv7 and begins with its time, so a span of time is a range of run ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

WEEK = timedelta(weeks=1)
CLOCKS_DIFFER_BY = timedelta(minutes=5)
"""So far a record may be of the future."""
WAITS_AT_MOST = timedelta(days=8)
"""So long a task may lie in Kafka before it is admitted, and keep its time: a day longer than Kafka keeps records."""

LAST_ID = UUID(int=2**128 - 1)
_LATEST = datetime.max.replace(tzinfo=UTC) - CLOCKS_DIFFER_BY
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
        """Return the week, Monday to Sunday in UTC, in which `at` lies."""
        monday = _FIRST_MONDAY + (at - _FIRST_MONDAY) // WEEK * WEEK
        return cls(first_id(monday), first_id(monday + WEEK))

    @property
    def begins_at(self) -> datetime:
        return id_time(self.first)

    @property
    def ends_at(self) -> datetime:
        return id_time(self.end)


def first_id(at: datetime) -> UUID:
    """Return the smallest run id of a moment (milliseconds since 1970, in the first 48 bits)."""
    ms = (at - _EPOCH) // timedelta(milliseconds=1)
    return UUID(int=min(max(ms, 0), 2**_TIME_BITS - 1) << (128 - _TIME_BITS))


def derive_run_id(tenant: str, task_id: str, timestamp_ms: int) -> UUID:
    """Derive a UUIDv7 (RFC 9562) from a task: its time, and a hash in place of the random bits.

    The same record gives the same run id however often it is read.
    """
    digest = hashlib.sha256(f"{tenant}\x00{task_id}".encode()).digest()
    value = (max(0, timestamp_ms) & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(digest[:10])
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


def begins_at_ms(stated_ms: int, admitted_at: datetime) -> int:
    """Return the time with which a run id begins: that of the task's record, or of its admission if that is wrong.

    Clients may state any time. A credible one is kept, so that a task has the same run whenever it is read again.
    """
    stated = timedelta(milliseconds=stated_ms)
    admitted = admitted_at - _EPOCH
    if admitted - WAITS_AT_MOST <= stated <= admitted + CLOCKS_DIFFER_BY:
        return stated_ms
    return admitted // timedelta(milliseconds=1)


def ids_admitted(since: datetime | None, until: datetime | None) -> Span:
    """Return the run ids of the runs that may have been admitted in a span of time."""
    first = UUID(int=0) if since is None else first_id(max(since, _EPOCH + WAITS_AT_MOST) - WAITS_AT_MOST)
    end = LAST_ID if until is None else first_id(min(until, _LATEST) + CLOCKS_DIFFER_BY)
    return Span(first, end)


def id_time_ms(run_id: UUID) -> int:
    """Return the moment that a run id begins with, in milliseconds since 1970."""
    return run_id.int >> (128 - _TIME_BITS)


def id_time(run_id: UUID) -> datetime:
    """Return the moment that a run id begins with."""
    return _EPOCH + timedelta(milliseconds=id_time_ms(run_id))
