"""Between JSON and the types of Postgres: schemas of parameters and columns, and values both ways."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from asyncpg import BitString, Range
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.sql import times
from triptych.tools.adapters.sql.types import PgType, Types
from triptych.tools.sdk.failure import ToolFailure

Schema = dict[str, Json]

_INTEGER: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_TEXT: Schema = {"type": "string"}
_BITS: Schema = _TEXT | {"pattern": "^[01]*$"}
_SCHEMAS: dict[str, Schema] = {
    "int2": _INTEGER,
    "int4": _INTEGER,
    "int8": _INTEGER,
    "oid": _INTEGER,
    "float4": _NUMBER,
    "float8": _NUMBER,
    # Money stays exact: a JSON number would go through a float somewhere.
    "numeric": _TEXT | {"pattern": r"^-?[0-9]+(\.[0-9]+)?$"},
    "bool": {"type": "boolean"},
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "char", "xml", "money", "tsvector", "tsquery"), _TEXT),
    **dict.fromkeys(("inet", "cidr", "macaddr", "macaddr8", "jsonpath", "regclass", "citext"), _TEXT),
    "uuid": _TEXT | {"format": "uuid"},
    "date": _TEXT | {"format": "date"},
    "timestamp": _TEXT | {"format": "date-time"},
    "timestamptz": _TEXT | {"format": "date-time"},
    "time": _TEXT | {"format": "time"},
    "timetz": _TEXT | {"format": "time"},
    "interval": _TEXT | {"format": "duration"},
    "bytea": _TEXT | {"contentEncoding": "base64"},
    "bit": _BITS,
    "varbit": _BITS,
}
_NOT_NUMBERS = ("NaN", "Infinity", "-Infinity")
_NOT_FINITE: Schema = {"enum": list(_NOT_NUMBERS)}
"""What Postgres keeps in numeric and float columns beside numbers. JSON has no number for it, so it is told as text."""
_BEYOND: Schema = _TEXT | {"pattern": "^-?infinity$|^[0-9]{5}| BC$"}
"""What Postgres keeps beside days of our calendar: infinity, years after 9999 and before our era."""
_NULL: Schema = {"type": "null"}

_ALSO_TOLD: Mapping[str, Schema] = {
    **dict.fromkeys(("numeric", "float4", "float8"), _NOT_FINITE),
    **dict.fromkeys(("date", "timestamp", "timestamptz"), _BEYOND),
    "interval": {"enum": ["infinity", "-infinity"]},
}
_ALSO_TAKEN: dict[str, frozenset[str]] = {
    "numeric": frozenset({"number", "integer"}),
    "float4": frozenset({"integer", "string"}),
    "float8": frozenset({"integer", "string"}),
}
_NUMBERS = frozenset({"numeric", "float4", "float8"})
_DECIMAL: TypeAdapter[Decimal] = TypeAdapter(Decimal)
_BOUNDS = frozenset({"[)", "[]", "(]", "()"})


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64 with the alphabet of RFC 4648 section 4 ({error})") from error


def _numeric(value: Json) -> Decimal:
    if value in _NOT_NUMBERS:
        return Decimal(value)
    return _DECIMAL.validate_python(value)


def _float(value: Json) -> float:
    if isinstance(value, str) and value not in _NOT_NUMBERS:
        raise ValueError(f"a number, or one of {', '.join(_NOT_NUMBERS)}")
    return float(value)


def _char(value: str) -> bytes:
    if not value.isascii() or len(value) > 1:
        raise ValueError('a "char" is one character of ASCII')
    return value.encode() or b"\0"


_READERS: dict[str, Callable[[Any], Any]] = {
    "numeric": _numeric,
    "float4": _float,
    "float8": _float,
    "uuid": TypeAdapter(UUID).validate_python,
    "date": times.date_of,
    "timestamp": times.timestamp_of,
    "timestamptz": times.timestamptz_of,
    "time": times.time_of,
    "timetz": times.timetz_of,
    "interval": times.interval_of,
    "bytea": _bytes,
    "char": _char,
    "bit": BitString,
    "varbit": BitString,
}


def schema_of(types: Types, oid: int, within: tuple[int, ...] = ()) -> Schema:
    """Return the JSON Schema of a parameter of this type. Unknown and recursive types take any value."""
    own = types.base(oid)
    if own.oid in within:
        return {}
    within = (*within, own.oid)
    match own.kind:
        case "array" | "multirange":
            inner = schema_of(types, own.element, within)
            return {"type": "array", "items": _nullable(inner if own.kind == "array" else _range(inner))}
        case "range":
            return _range(schema_of(types, own.element, within))
        case "composite":
            fields: Schema = {name: _nullable(schema_of(types, field, within)) for name, field in own.fields}
            return {"type": "object", "properties": fields, "additionalProperties": False}
        case "enum":
            return _TEXT | {"enum": list(own.labels)}
        case _:
            return dict(_SCHEMAS.get(own.name, {}))


def column_schema(types: Types, oid: int, within: tuple[int, ...] = ()) -> Schema:
    """Return what a column may hold. Postgres does not say whether a column of a result may be null, so each may."""
    own = types.base(oid)
    if own.oid in within:
        return {}
    within = (*within, own.oid)
    match own.kind:
        case "array":
            # How many dimensions an array has is a matter of each value.
            item = column_schema(types, own.element, within)
            told: Schema = {"type": "array", "items": {"anyOf": [item, {"type": "array"}]} if item else {}}
        case "multirange":
            told = {"type": "array", "items": _range(column_schema(types, own.element, within))}
        case "range":
            told = _range(column_schema(types, own.element, within))
        case "composite":
            fields: Schema = {name: column_schema(types, field, within) for name, field in own.fields}
            told = {"type": "object", "properties": fields, "required": list(fields)}
        case "enum":
            # Without its labels: a label may be added later, and rows may hold it then.
            told = dict(_TEXT)
        case _:
            return _result_schema(own.name)
    return _nullable(told)


def _result_schema(name: str) -> Schema:
    own = dict(_SCHEMAS.get(name, {}))
    if (more := _ALSO_TOLD.get(name)) is not None:
        return {"anyOf": [own, dict(more), dict(_NULL)]}
    return _nullable(own)


def _range(bound: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {
            "lower": _nullable(bound),
            "upper": _nullable(bound),
            "bounds": {"enum": sorted(_BOUNDS)},
            "empty": {"type": "boolean"},
        },
        "additionalProperties": False,
    }


def type_mismatch(declared: Schema, types: Types, oid: int) -> str | None:
    """Return what a declared JSON Schema says that the statement cannot take, or None."""
    name = types.base(oid).name
    own = schema_of(types, oid).get("type")
    stated = declared.get("type", own)
    taken = {own, "null"} | _ALSO_TAKEN.get(name, frozenset())
    wrong = {one for one in (stated if isinstance(stated, list) else [stated]) if own and one not in taken}
    return f"declared as {', '.join(sorted(map(str, wrong)))}, used as {name}" if wrong else None


def to_postgres(value: Json, types: Types, oid: int, place: str) -> Any:
    """Return an argument as asyncpg wants it.

    Raises:
        ToolFailure: `invalid_arguments`, with the place and what is wrong.
    """
    own = types.base(oid)
    if value is None:
        return None
    match own.kind, value:
        case "array", list():
            item = own.oid if any(isinstance(each, list) for each in value) else own.element
            return [to_postgres(each, types, item, f"{place}[{n}]") for n, each in enumerate(value)]
        case "multirange", list():
            return [_to_range(each, types, own, f"{place}[{n}]") for n, each in enumerate(value)]
        case "range", _:
            return _to_range(value, types, own, place)
        case "composite", dict():
            kinds = dict(own.fields)
            if unknown := value.keys() - kinds:
                raise _invalid(f"{place}: it has no field {', '.join(sorted(unknown))}", own)
            return {name: to_postgres(each, types, kinds[name], f"{place}.{name}") for name, each in value.items()}
        case (("array" | "multirange" | "composite"), _):
            raise _invalid(f"{place}: it must be {'an object' if own.kind == 'composite' else 'a list'}", own)
        case _:
            return _read(value, own, place)


def _read(value: Json, own: PgType, place: str) -> Any:
    reader = _READERS.get(own.name) if own.schema == "pg_catalog" else None
    if reader is None:
        return value
    if not isinstance(value, str) and own.name not in _NUMBERS:
        raise _invalid(f"{place}: it must be text", own)
    try:
        return reader(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]
        raise _invalid(f"{place}: {problem}", own) from error
    except (ValueError, OverflowError) as error:
        raise _invalid(f"{place}: {error}", own) from error


def _to_range(value: Json, types: Types, own: PgType, place: str) -> Range[Any]:
    if not isinstance(value, dict):
        raise _invalid(f"{place}: it must be an object with lower, upper and bounds", own)
    if value.get("empty"):
        return Range(empty=True)
    bounds = value.get("bounds", "[)")
    if bounds not in _BOUNDS:
        raise _invalid(f"{place}.bounds: one of {', '.join(sorted(_BOUNDS))}", own)
    lower, upper = (to_postgres(value.get(end), types, own.element, f"{place}.{end}") for end in ("lower", "upper"))
    return Range(
        lower, upper, lower_inc=lower is not None and bounds[0] == "[", upper_inc=upper is not None and bounds[1] == "]"
    )


def _invalid(problem: str, own: PgType) -> ToolFailure:
    return ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"arguments.{problem} (as {own.name})", undone=True)


def from_postgres(value: Any) -> Json:
    """Give a value of a row as JSON: numeric in full, rows and ranges as objects."""
    match value:
        case Decimal() | float():
            return _number(value)
        case asyncpg.Record() | dict():
            return {name: from_postgres(each) for name, each in value.items()}
        case list() | tuple():
            return [from_postgres(each) for each in value]
        case Range():
            return _range_to_json(value)
        case _:
            return _plain(value)


def _plain(value: Any) -> Json:
    match value:
        case BitString():
            return value.as_string().replace(" ", "")
        case b"\0":
            return ""
        case bytes():
            # A value of "char" as Postgres writes it: one byte, which is a character only in ASCII.
            return value.decode() if value.isascii() else "".join(f"\\{byte:03o}" for byte in value)
        case _:
            return to_jsonable_python(value, fallback=str)


def _number(value: Decimal | float) -> Json:
    # Not by `math` where it is exact: a numeric of more than 309 digits is infinite as a float.
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else _not_finite(float(value))
    return value if math.isfinite(value) else _not_finite(value)


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _range_to_json(value: Range[Any]) -> Json:
    if value.isempty:
        return {"empty": True}
    bounds = ("[" if value.lower_inc else "(") + ("]" if value.upper_inc else ")")
    return {"lower": from_postgres(value.lower), "upper": from_postgres(value.upper), "bounds": bounds}


def _nullable(schema: Schema) -> Schema:
    match schema:
        case {"anyOf": list(options)}:
            return schema if _NULL in options else schema | {"anyOf": [*options, dict(_NULL)]}
        case {"enum": list(values)}:
            return schema | {"type": [schema.get("type", "string"), "null"], "enum": [*values, None]}
        case {"type": str(own)}:
            return schema | {"type": [own, "null"]}
        case _:
            return schema
