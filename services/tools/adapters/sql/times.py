"""Dates, times and intervals between ISO 8601 and the numbers of Postgres. Pure.

Postgres knows more of them than Python does: infinity, years before our era and after 9999, 24 o'clock, and months of
an interval, which differ in length. Each is written in full, and its text can be read back. A date counts days and a
timestamp microseconds from the beginning of 2000 on (`set_type_codec` in the driver's manual has the whole list).
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

from pydantic import AwareDatetime, NaiveDatetime, TypeAdapter

SECOND_US, DAY_US = 1_000_000, 86_400_000_000
_EPOCH = date(2000, 1, 1)
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097
"""After so many years the calendar repeats itself, so that Python's part of it is enough."""
_INT32, _INT64 = 2**31 - 1, 2**63 - 1
_ENDLESS = "infinity"
_DAY, _STAMP, _SPAN = (_INT32,), (_INT64,), (_INT32, _INT32, _INT64)
"""How infinity is written in a date, a timestamp and an interval. The negative one is the next number below."""

_YEAR = re.compile(r"(\d{4,6})(-.*?)( BC)?", re.DOTALL)
_ISO_SPAN = re.compile(
    r"([+-]?)P(?:([+-]?\d+)Y)?(?:([+-]?\d+)M)?(?:([+-]?\d+)W)?(?:([+-]?\d+)D)?"
    r"(?:T(?:([+-]?\d+)H)?(?:([+-]?\d+)M)?(?:([+-]?)(\d+)(?:\.(\d{1,6}))?S)?)?"
)

_DATE: TypeAdapter[date] = TypeAdapter(date)
_NAIVE: TypeAdapter[datetime] = TypeAdapter(NaiveDatetime)
_AWARE: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)
_TIME: TypeAdapter[time] = TypeAdapter(time)
_SPAN_TEXT: TypeAdapter[timedelta] = TypeAdapter(timedelta)

Numbers = tuple[int, ...]


def date_text(value: Numbers) -> str:
    """Return a date, such as `2026-01-31`, `0044-03-15 BC` or `infinity`."""
    return _endless(value, _DAY) or "".join(_day_text(value[0]))


def timestamp_text(value: Numbers, zone: str = "") -> str:
    """Return a timestamp without a time zone, such as `2026-01-31T12:00:00`."""
    if endless := _endless(value, _STAMP):
        return endless
    days, us = divmod(value[0], DAY_US)
    day, era = _day_text(days)
    return f"{day}T{_clock(us)}{zone}{era}"


def timestamptz_text(value: Numbers) -> str:
    """Return a timestamp, such as `2026-01-31T12:00:00Z`."""
    return timestamp_text(value, "Z")


def time_text(value: Numbers) -> str:
    """Return a time of day, such as `12:00:00`."""
    return _clock(value[0])


def timetz_text(value: Numbers) -> str:
    """Return a time of day with its offset, such as `12:00:00+02:00`. Postgres counts offsets towards the west."""
    us, west_s = value
    if not west_s:
        return f"{_clock(us)}Z"
    hours, rest = divmod(abs(west_s), 3_600)
    minutes, seconds = divmod(rest, 60)
    return f"{_clock(us)}{'-' if west_s > 0 else '+'}{hours:02}:{minutes:02}" + (f":{seconds:02}" if seconds else "")


def interval_text(value: Numbers) -> str:
    """Return an interval as Postgres writes it in ISO 8601: `P1Y2M3DT4H5M6.5S`, each part with a sign of its own."""
    if endless := _endless(value, _SPAN):
        return endless
    months, days, us = value
    years, months = _towards_zero(months, 12)
    hours, us = _towards_zero(us, 3_600 * SECOND_US)
    minutes, us = _towards_zero(us, 60 * SECOND_US)
    seconds, fraction = divmod(abs(us), SECOND_US)
    exact = f"{'-' if us < 0 else ''}{seconds}" + f".{fraction:06}".rstrip("0") * bool(fraction)
    dates = "".join(f"{number}{unit}" for number, unit in ((years, "Y"), (months, "M"), (days, "D")) if number)
    clock = "".join(f"{number}{unit}" for number, unit in ((hours, "H"), (minutes, "M")) if number)
    clock += f"{exact}S" if us else ""
    return f"P{dates}" + f"T{clock}" * bool(clock) if dates or clock else "PT0S"


def date_of(text: str) -> Numbers:
    """Read a date. Raises ValueError when it cannot be read, as all that follow do."""
    if (endless := _endless_of(text, _DAY)) is not None:
        return endless
    text, cycles = _in_cycle(text)
    return ((_DATE.validate_python(text) - _EPOCH).days + cycles * _CYCLE_DAYS,)


def timestamp_of(text: str) -> Numbers:
    """Read a timestamp without a time zone."""
    if (endless := _endless_of(text, _STAMP)) is not None:
        return endless
    text, cycles = _in_cycle(text)
    return (_us_of(_NAIVE.validate_python(text).replace(tzinfo=UTC)) + cycles * _CYCLE_DAYS * DAY_US,)


def timestamptz_of(text: str) -> Numbers:
    """Read a timestamp with its time zone."""
    if (endless := _endless_of(text, _STAMP)) is not None:
        return endless
    text, cycles = _in_cycle(text)
    return (_us_of(_AWARE.validate_python(text)) + cycles * _CYCLE_DAYS * DAY_US,)


def time_of(text: str) -> Numbers:
    """Read a time of day."""
    if text == "24:00:00":
        return (DAY_US,)
    found = _TIME.validate_python(text)
    if found.tzinfo is not None:
        raise ValueError("it has a time zone, and is to have none")
    return (_us_of_day(found),)


def timetz_of(text: str) -> Numbers:
    """Read a time of day with its offset."""
    found = _TIME.validate_python(text)
    if (offset := found.utcoffset()) is None:
        raise ValueError("it has no time zone, such as Z or +02:00")
    return _us_of_day(found), -round(offset.total_seconds())


def interval_of(text: str) -> Numbers:
    """Read an interval: ISO 8601, with signs and a fraction of the seconds, or hours, minutes and seconds."""
    if (endless := _endless_of(text, _SPAN)) is not None:
        return endless
    if not (found := _ISO_SPAN.fullmatch(text)) or text.endswith(("P", "T")):
        if "P" in text:
            raise ValueError("write an interval as P1M, P1DT12H or PT0.5S")
        span = _SPAN_TEXT.validate_python(text)
        return 0, span.days, span.seconds * SECOND_US + span.microseconds
    sign, second_sign, fraction = found[1], found[8], found[10] or ""
    years, months, weeks, days, hours, minutes = (int(number or 0) for number in found.groups()[1:7])
    exact_us = int(found[9] or 0) * SECOND_US + int(fraction.ljust(6, "0"))
    us = (hours * 3_600 + minutes * 60) * SECOND_US + (-exact_us if second_sign == "-" else exact_us)
    direction = -1 if sign == "-" else 1
    return direction * (12 * years + months), direction * (7 * weeks + days), direction * us


def _endless(value: Numbers, most: Numbers) -> str | None:
    if value == most:
        return _ENDLESS
    return f"-{_ENDLESS}" if value == _least(most) else None


def _endless_of(text: str, most: Numbers) -> Numbers | None:
    match text.lower():
        case "infinity":
            return most
        case "-infinity":
            return _least(most)
        case _:
            return None


def _least(most: Numbers) -> Numbers:
    return tuple(-number - 1 for number in most)


def _day_text(days: int) -> tuple[str, str]:
    """Return a day, and its era where that is not ours."""
    cycles, rest = divmod(days, _CYCLE_DAYS)
    day = _EPOCH + timedelta(rest)
    year = day.year + cycles * _CYCLE_YEARS
    return f"{year if year > 0 else 1 - year:04}-{day:%m-%d}", "" if year > 0 else " BC"


def _in_cycle(text: str) -> tuple[str, int]:
    """Return the same day in the years from 2000 to 2399, and how many cycles of the calendar it lies after them."""
    found = _YEAR.fullmatch(text)
    if found is None or (not int(found[1])):
        return text, 0
    year = 1 - int(found[1]) if found[3] else int(found[1])
    cycles, year = divmod(year - _EPOCH.year, _CYCLE_YEARS)
    return f"{year + _EPOCH.year}{found[2]}", cycles


def _clock(us: int) -> str:
    seconds, us = divmod(us, SECOND_US)
    text = f"{seconds // 3_600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{us:06}" if us else text


def _us_of(moment: datetime) -> int:
    return (moment - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _us_of_day(moment: time) -> int:
    return ((moment.hour * 60 + moment.minute) * 60 + moment.second) * SECOND_US + moment.microsecond


def _towards_zero(number: int, divisor: int) -> tuple[int, int]:
    quotient = abs(number) // divisor * (1 if number >= 0 else -1)
    return quotient, number - quotient * divisor
