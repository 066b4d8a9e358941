"""When a customer can be called: within the office hours of where they are, on a day that is worked."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

OPENS, CLOSES = time(9), time(17)
STEP = timedelta(minutes=30)
NOTICE = timedelta(hours=2)
"""The shortest time between a request and its call."""
_SATURDAY = 5


def next_slot(now: datetime, timezone: str) -> datetime:
    """Find the first slot after `now`, with the offset of the customer's timezone.

    Raises:
        ValueError: there is no such timezone.
    """
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"there is no timezone {timezone!r}; give an IANA name such as Europe/Vienna") from error
    at = now.astimezone(UTC) + NOTICE
    at += (datetime.min.replace(tzinfo=UTC) - at) % STEP
    while not _is_worked(at.astimezone(zone)):
        at += STEP
    return at.astimezone(zone)


def _is_worked(local: datetime) -> bool:
    return local.weekday() < _SATURDAY and OPENS <= local.time() < CLOSES
