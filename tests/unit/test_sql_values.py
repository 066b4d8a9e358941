"""Values between JSON and Postgres: dates beyond Python's calendar, intervals, and what is made of other values."""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from asyncpg.types import BitString, Range
from hypothesis import given
from hypothesis import strategies as st

from triptych.json_schema import JsonSchema
from triptych.schemas import ErrorCode
from triptych.tools.adapters.sql import times
from triptych.tools.adapters.sql.failures import failure_of_postgres
from triptych.tools.adapters.sql.types import CODECS, PgType, Types
from triptych.tools.adapters.sql.values import column_schema, from_postgres, schema_of, to_postgres
from triptych.tools.sdk.failure import ToolFailure

INT4, NUMERIC, DATE, JSONB, MOOD, POINT, RANGE, DATES, INTS, SPANS, NODE, NODES, CHAR, BITS, YEAR = range(1, 16)
TYPES = Types(
    {
        each.oid: each
        for each in (
            PgType(INT4, "pg_catalog", "int4", "scalar"),
            PgType(NUMERIC, "pg_catalog", "numeric", "scalar"),
            PgType(DATE, "pg_catalog", "date", "scalar"),
            PgType(JSONB, "pg_catalog", "jsonb", "scalar"),
            PgType(CHAR, "pg_catalog", "char", "scalar"),
            PgType(BITS, "pg_catalog", "varbit", "scalar"),
            PgType(MOOD, "public", "mood", "enum", labels=("calm", "wild")),
            PgType(POINT, "public", "point", "composite", fields=(("x", INT4), ("mood", MOOD), ("note", JSONB))),
            PgType(RANGE, "pg_catalog", "daterange", "range", DATE),
            PgType(SPANS, "pg_catalog", "datemultirange", "multirange", DATE),
            PgType(DATES, "pg_catalog", "_date", "array", DATE),
            PgType(INTS, "pg_catalog", "_int4", "array", INT4),
            PgType(NODE, "public", "node", "composite", fields=(("id", INT4), ("children", NODES))),
            PgType(NODES, "public", "_node", "array", NODE),
            PgType(YEAR, "public", "year", "domain", INT4),
        )
    }
)

DAYS = {
    0: "2000-01-01",
    -1: "1999-12-31",
    9497: "2026-01-01",
    -2_451_507: "4713-01-01 BC",
    -730_120: "0001-12-31 BC",
    -730_119: "0001-01-01",
    2_921_940: "10000-01-01",
    2**31 - 1: "infinity",
    -(2**31): "-infinity",
}
INTERVALS = {
    (0, 0, 0): "PT0S",
    (1, 0, 0): "P1M",
    (14, 3, 14_706_500_000): "P1Y2M3DT4H5M6.5S",
    (0, -1, 7_200_000_000): "P-1DT2H",
    (-14, 0, 0): "P-1Y-2M",
    (0, 0, -500_000): "PT-0.5S",
    (0, 0, -3_660_000_000): "PT-1H-1M",
    (0, 0, 129_600_000_000): "PT36H",
    (2**31 - 1, 2**31 - 1, 2**63 - 1): "infinity",
    (-(2**31), -(2**31), -(2**63)): "-infinity",
}


@pytest.mark.parametrize(("days", "text"), DAYS.items())
def test_a_day_is_told_as_postgres_writes_it_and_taken_again(days: int, text: str) -> None:
    assert times.date_text((days,)) == text
    assert times.date_of(text) == (days,)


@given(st.dates())
def test_a_day_of_our_calendar_is_the_one_that_python_knows(day: date) -> None:
    days = ((day - date(2000, 1, 1)).days,)
    assert times.date_of(day.isoformat()) == days
    assert times.date_text(days) == day.isoformat()


@given(st.integers(-211_813_488_000_000_000, 9_223_371_331_199_999_999))
def test_every_timestamp_that_postgres_keeps_is_told_and_taken_again(us: int) -> None:
    assert times.timestamp_of(times.timestamp_text((us,))) == (us,)
    assert times.timestamptz_of(times.timestamptz_text((us,))) == (us,)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_timestamp_of_our_calendar_is_the_one_that_python_knows(moment: datetime) -> None:
    us = (moment - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert times.timestamptz_text((us,)) == moment.isoformat().replace("+00:00", "Z")
    assert times.timestamptz_of(moment.isoformat()) == (us,)


@pytest.mark.parametrize(("numbers", "text"), INTERVALS.items())
def test_months_of_an_interval_stay_months(numbers: tuple[int, ...], text: str) -> None:
    assert times.interval_text(numbers) == text
    assert times.interval_of(text) == numbers


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.integers(-(10**15), 10**15))
def test_every_interval_is_taken_as_it_was_told(months: int, days: int, us: int) -> None:
    assert times.interval_of(times.interval_text((months, days, us))) == (months, days, us)


def test_intervals_are_taken_in_other_forms_and_what_is_none_is_refused() -> None:
    assert times.interval_of("36:00:00") == (0, 1, 43_200_000_000)
    assert times.interval_of("-P1M1DT1S") == (-1, -1, -1_000_000)
    assert times.interval_of("P2W") == (0, 14, 0)
    for wrong in ("P", "PT", "P1.5M", "a month", "P1M2", ""):
        with pytest.raises(ValueError, match=r"interval|duration|valid"):
            times.interval_of(wrong)


def test_times_of_day_have_a_zone_where_their_type_has_one() -> None:
    assert times.time_text((86_400_000_000,)) == "24:00:00"
    assert times.time_of("24:00:00") == (86_400_000_000,)
    assert times.timetz_text((36_000_000_000, -7_200)) == "10:00:00+02:00"
    assert times.timetz_of("10:00:00+02:00") == (36_000_000_000, -7_200)
    assert times.timetz_text((1, 12_600)) == "00:00:00.000001-03:30"
    with pytest.raises(ValueError, match="no time zone"):
        times.timetz_of("10:00")
    with pytest.raises(ValueError, match="is to have none"):
        times.time_of("10:00Z")


def test_arguments_become_what_the_driver_takes() -> None:
    taken: list[tuple[Any, int, Any]] = [
        ({"x": 1, "mood": "calm", "note": {"lower": 1}}, POINT, {"x": 1, "mood": "calm", "note": {"lower": 1}}),
        ({"lower": "2026-01-01", "upper": "infinity"}, RANGE, Range((9497,), (2**31 - 1,))),
        ({"lower": None, "upper": "2026-01-01", "bounds": "(]"}, RANGE, Range(None, (9497,), upper_inc=True)),
        ({"empty": True}, RANGE, Range(empty=True)),
        ([{"lower": "2026-01-01"}], SPANS, [Range((9497,), None)]),
        (["2026-01-01", None], DATES, [(9497,), None]),
        ([["2026-01-01"], ["2000-01-01"]], DATES, [[(9497,)], [(0,)]]),
        ({"id": 1, "children": [{"id": 2}]}, NODE, {"id": 1, "children": [{"id": 2}]}),
        ("101", BITS, BitString("101")),
        ("", CHAR, b"\0"),
        (7, YEAR, 7),
    ]
    for value, oid, wanted in taken:
        assert to_postgres(value, TYPES, oid, "a") == wanted


@pytest.mark.parametrize(
    ("value", "oid", "place"),
    [
        ({"lower": "yesterday"}, RANGE, "arguments.a.lower"),
        ({"lower": "2026-01-01", "bounds": "[["}, RANGE, "arguments.a.bounds"),
        ("[1,2)", RANGE, "arguments.a"),
        ({"x": 1, "z": 2}, POINT, "no field z"),
        ([1], POINT, "an object"),
        ([["2026-01-01"], ["never"]], DATES, "arguments.a[1][0]"),
        ({}, SPANS, "a list"),
        ("2x", BITS, "arguments.a"),
        ("ab", CHAR, "one character"),
        (7, DATE, "must be text"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_with_its_place(value: Any, oid: int, place: str) -> None:
    with pytest.raises(ToolFailure) as refused:
        to_postgres(value, TYPES, oid, "a")
    assert refused.value.code is ErrorCode.INVALID_ARGUMENTS
    assert place in refused.value.message


@pytest.mark.parametrize(
    ("value", "oid"),
    [
        ({"x": 1, "mood": "new since", "note": None}, POINT),
        (None, POINT),
        ("infinity", DATE),
        ("0044-03-15 BC", DATE),
        ([[1, 2], [3, None]], INTS),
        ([1, None], INTS),
        ({"lower": None, "upper": "2026-01-01", "bounds": "()"}, RANGE),
        ({"empty": True}, RANGE),
        ([{"lower": "2026-01-01", "upper": None, "bounds": "[)"}], SPANS),
        ({"id": 1, "children": [{"id": 2, "children": None}]}, NODE),
    ],
)
def test_what_a_column_tells_fits_its_schema(value: Any, oid: int) -> None:
    assert JsonSchema.of(column_schema(TYPES, oid)).is_valid(value)


def test_schemas_of_arguments_say_what_a_type_is_made_of() -> None:
    assert schema_of(TYPES, MOOD) == {"type": "string", "enum": ["calm", "wild"]}
    assert schema_of(TYPES, POINT)["properties"]["mood"] == {"type": ["string", "null"], "enum": ["calm", "wild", None]}
    assert schema_of(TYPES, YEAR) == {"type": "integer"}
    ranges = JsonSchema.of(schema_of(TYPES, RANGE))
    assert ranges.is_valid({"lower": "2026-01-01"})
    assert not ranges.is_valid({"from": "2026-01-01"})


def test_a_char_and_bits_are_told_as_postgres_writes_them() -> None:
    assert [from_postgres(value) for value in (b"a", b"\0", b"\xe4", BitString("1010101"))] == [
        "a",
        "",
        "\\344",
        "1010101",
    ]


@given(st.floats(width=32))
def test_a_number_of_four_bytes_is_told_with_the_digits_that_it_has(number: float) -> None:
    told = CODECS["float4"].decode(struct.pack("!f", number))
    assert struct.pack("!f", told) == struct.pack("!f", number)
    assert len(f"{told:g}") <= 13


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Decimal("1e400"), "1" + "0" * 400),
        (Decimal("-1e400"), "-1" + "0" * 400),
        (Decimal("1.10"), "1.10"),
        (Decimal("Infinity"), "Infinity"),
        (Decimal("-Infinity"), "-Infinity"),
        (Decimal("NaN"), "NaN"),
        (float("-inf"), "-Infinity"),
    ],
)
def test_a_number_is_told_in_full_and_infinity_by_its_name(value: Decimal | float, told: str) -> None:
    assert from_postgres(value) == told


def test_numbers_are_told_as_they_were_written() -> None:
    told = CODECS["float4"].decode
    for number in (0.1, 3.4028235e38, 1e-45, 16_777_216.0, 1.0):
        assert told(struct.pack("!f", number)) == pytest.approx(number, rel=1e-9)
    assert told(struct.pack("!f", 0.1)) == 0.1
    assert to_postgres("NaN", TYPES, NUMERIC, "a").is_nan()
    assert to_postgres(0.5, TYPES, NUMERIC, "a") == Decimal("0.5")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (asyncpg.UnsupportedClientFeatureError("cannot decode"), ErrorCode.CONTRACT_VIOLATION),
        (asyncpg.InternalClientError("unexpected codec"), ErrorCode.CONTRACT_VIOLATION),
        (asyncpg.FeatureNotSupportedError("not supported"), ErrorCode.CONTRACT_VIOLATION),
        (asyncpg.InvalidCachedStatementError("cached plan must not change"), ErrorCode.UNAVAILABLE),
        (asyncpg.OutdatedSchemaCacheError("prepare again", schema="public"), ErrorCode.UNAVAILABLE),
        (asyncpg.InterfaceError("connection is closed"), ErrorCode.UNAVAILABLE),
        (asyncpg.DataError("an integer is required"), ErrorCode.INVALID_ARGUMENTS),
    ],
)
def test_an_error_of_types_on_our_side_is_no_outage(error: Exception, code: ErrorCode) -> None:
    failure = failure_of_postgres(error, "crm.pay", undone=True)
    assert failure is not None
    assert failure.code is code


def test_a_value_that_the_driver_does_not_take_is_told_by_the_name_of_its_argument() -> None:
    error = asyncpg.DataError(
        "invalid input for query argument $2: ('secret', 1) (an integer (of 4 bytes) is required)"
    )
    error.__cause__ = TypeError("an integer (of 4 bytes) is required")
    failure = failure_of_postgres(error, "crm.pay", undone=True, parameters=("id", "total"))
    assert failure is not None
    assert failure.message == "crm.pay: arguments.total: an integer (of 4 bytes) is required"
    of_the_server = failure_of_postgres(asyncpg.DataError("value too long"), "crm.pay", undone=True, parameters=("id",))
    assert of_the_server is not None
    assert of_the_server.message == "crm.pay: value too long"
