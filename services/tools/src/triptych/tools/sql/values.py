"""Between JSON and the types of Postgres: schemas of parameters and columns, and values both ways."""

from __future__ import annotations

from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from asyncpg.types import Type
from pydantic import AwareDatetime, Base64Bytes, NaiveDatetime, TypeAdapter, ValidationError
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
_ALSO_TAKEN: dict[str, frozenset[str]] = {
    "numeric": frozenset({"number", "integer"}),
    "float4": frozenset({"integer"}),
    "float8": frozenset({"integer"}),
}
_PARSERS: dict[str, TypeAdapter[Any]] = {
    "numeric": TypeAdapter(Decimal),
    "uuid": TypeAdapter(UUID),
    "date": TypeAdapter(date),
    "timestamp": TypeAdapter(NaiveDatetime),
    "timestamptz": TypeAdapter(AwareDatetime),
    "time": TypeAdapter(time),
    "timetz": TypeAdapter(time),
    "interval": TypeAdapter(timedelta),
    "bytea": TypeAdapter(Base64Bytes),
}


def schema_of(pg_type: Type) -> dict[str, Json]:
    """The JSON Schema of a value of this type. Unknown types may be anything."""
    if pg_type.kind == "array":
        return {"type": "array", "items": _nullable(dict(_SCHEMAS.get(_element(pg_type), {})))}
    return dict(_SCHEMAS.get(pg_type.name, {}))


def column_schema(pg_type: Type) -> dict[str, Json]:
    """Postgres does not say whether a column of a result may be null, so each may."""
    return _nullable(schema_of(pg_type))


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
    """A value of a row as JSON."""
    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="null", fallback=str)


def _element(pg_type: Type) -> str:
    return pg_type.name.removesuffix("[]").removeprefix("_")


def _nullable(schema: dict[str, Json]) -> dict[str, Json]:
    return schema | {"type": [schema["type"], "null"]} if "type" in schema else schema
