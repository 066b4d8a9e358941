"""Between JSON and the types of Postgres: schemas of parameters and columns, and values both ways."""

from __future__ import annotations

import base64
import binascii
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from asyncpg.types import Range, Type
from pydantic import AwareDatetime, NaiveDatetime, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.failure import ToolFailure

_INTEGER: dict[str, Json] = {"type": "integer"}
_NUMBER: dict[str, Json] = {"type": "number"}
_TEXT: dict[str, Json] = {"type": "string"}
_SCHEMAS: dict[str, dict[str, Json]] = {
    "int2": _INTEGER,
    "int4": _INTEGER,
    "int8": _INTEGER,
    "oid": _INTEGER,
    "float4": _NUMBER,
    "float8": _NUMBER,
    # Money stays exact: a JSON number would go through a float somewhere.
    "numeric": _TEXT | {"pattern": r"^-?[0-9]+(\.[0-9]+)?$"},
    "bool": {"type": "boolean"},
    "text": _TEXT,
    "varchar": _TEXT,
    "bpchar": _TEXT,
    "name": _TEXT,
    "uuid": _TEXT | {"format": "uuid"},
    "date": _TEXT | {"format": "date"},
    "timestamp": _TEXT | {"format": "date-time"},
    "timestamptz": _TEXT | {"format": "date-time"},
    "time": _TEXT | {"format": "time"},
    "timetz": _TEXT | {"format": "time"},
    "interval": _TEXT | {"format": "duration"},
    "bytea": _TEXT | {"contentEncoding": "base64"},
}
_NOT_FINITE: dict[str, Json] = {"enum": ["NaN", "Infinity", "-Infinity"]}
"""What Postgres keeps in numeric and float columns beside numbers. JSON has no number for it, so it is told as text."""

_MAY_BE_NOT_FINITE = frozenset({"numeric", "float4", "float8"})
_ALSO_TAKEN: dict[str, frozenset[str]] = {
    "numeric": frozenset({"number", "integer"}),
    "float4": frozenset({"integer"}),
    "float8": frozenset({"integer"}),
}


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64 with the alphabet of RFC 4648 section 4 ({error})") from error


_PARSERS: dict[str, TypeAdapter[Any]] = {
    "numeric": TypeAdapter(Decimal),
    "uuid": TypeAdapter(UUID),
    "date": TypeAdapter(date),
    "timestamp": TypeAdapter(NaiveDatetime),
    "timestamptz": TypeAdapter(AwareDatetime),
    "time": TypeAdapter(time),
    "timetz": TypeAdapter(time),
    "interval": TypeAdapter(timedelta),
    "bytea": TypeAdapter(Annotated[bytes, PlainValidator(_bytes)]),
}


def schema_of(pg_type: Type) -> dict[str, Json]:
    """The JSON Schema of a value of this type. Unknown types may be anything."""
    if pg_type.kind == "array":
        return {"type": "array", "items": _nullable(dict(_SCHEMAS.get(_element(pg_type), {})))}
    return dict(_SCHEMAS.get(pg_type.name, {}))


def column_schema(pg_type: Type) -> dict[str, Json]:
    """Postgres does not say whether a column of a result may be null, so each may."""
    if pg_type.kind == "array":
        return _nullable({"type": "array", "items": _told(_element(pg_type))})
    return _told(pg_type.name)


def _told(name: str) -> dict[str, Json]:
    own = dict(_SCHEMAS.get(name, {}))
    if name in _MAY_BE_NOT_FINITE:
        return {"anyOf": [own, dict(_NOT_FINITE), {"type": "null"}]}
    return _nullable(own)


def misfit(declared: dict[str, Json], pg_type: Type) -> str | None:
    """What a declared JSON Schema says that the statement cannot take, or None."""
    own = schema_of(pg_type).get("type")
    stated = declared.get("type", own)
    taken = {own, "null"} | _ALSO_TAKEN.get(pg_type.name, frozenset())
    wrong = {one for one in (stated if isinstance(stated, list) else [stated]) if own and one not in taken}
    return f"declared as {', '.join(sorted(map(str, wrong)))}, used as {pg_type.name}" if wrong else None


def to_postgres(value: Json, pg_type: Type, name: str) -> Any:
    """An argument as asyncpg wants it.

    Raises:
        ToolFailure: `invalid_arguments`, with the name and what is wrong.
    """
    array = pg_type.kind == "array"
    parser = _PARSERS.get(_element(pg_type) if array else pg_type.name)
    if value is None or parser is None:
        return value
    try:
        if array and isinstance(value, list):
            return [None if one is None else parser.validate_python(one) for one in value]
        return parser.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"arguments.{name}: {problem} (as {pg_type.name})") from error


def from_postgres(value: Any) -> Json:
    """Give a value of a row as JSON: numeric in full, bytes in base64, rows and ranges as objects."""
    match value:
        case Decimal() | float():
            return _number(value)
        case bytes():
            return base64.b64encode(value).decode()
        case asyncpg.Record() | dict():
            return {name: from_postgres(each) for name, each in value.items()}
        case list() | tuple():
            return [from_postgres(each) for each in value]
        case Range():
            return _range(value)
        case _:
            return to_jsonable_python(value, fallback=str)


def _number(value: Decimal | float) -> Json:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return f"{value:f}" if isinstance(value, Decimal) else value


def _range(value: Range[Any]) -> Json:
    if value.isempty:
        return {"empty": True}
    bounds = ("[" if value.lower_inc else "(") + ("]" if value.upper_inc else ")")
    return {"lower": from_postgres(value.lower), "upper": from_postgres(value.upper), "bounds": bounds}


def _element(pg_type: Type) -> str:
    return pg_type.name.removesuffix("[]").removeprefix("_")


def _nullable(schema: dict[str, Json]) -> dict[str, Json]:
    return schema | {"type": [schema["type"], "null"]} if "type" in schema else schema
