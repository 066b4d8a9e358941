"""The types of Postgres that a statement uses, down to the fields of its rows; and how the driver is to read them.

What the driver would change on its way (months of an interval, infinity, years before our era) it hands over as numbers
of Postgres, and `times` writes them as text.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.tools.adapters.sql import times

SQL = Queries.load("triptych.tools.adapters.sql", "types.sql")
RECORD = "record"
"""The type of a row that has no type of its own, as `row(1, 2)` makes it."""

_READ_IN_ROWS = frozenset(
    {
        "bit", "bool", "box", "bpchar", "bytea", "char", "cidr", "circle", "date", "float4", "float8", "inet", "int2",
        "int4", "int8", "interval", "json", "jsonb", "jsonpath", "line", "lseg", "name", "numeric", "oid", "path",
        "pg_lsn", "point", "polygon", "text", "tid", "time", "timestamp", "timestamptz", "timetz", "uuid", "varbit",
        "varchar", "xid", "xml",
    }
)  # fmt: skip
"""Of the types of Postgres itself those that the driver reads wherever they stand; others only by themselves."""
_UNREADABLE = re.compile(r'cannot decode type "([^"]+)"\."([^"]+)"')
_JSONB_VERSION = b"\x01"
_FLOAT4_MIN_DIGITS, _FLOAT4_MAX_DIGITS = 6, 9

Kind: TypeAlias = Literal["scalar", "enum", "array", "composite", "range", "multirange", "domain"]


@dataclass(frozen=True, slots=True)
class PgType:
    """One type, as `pg_type` describes it."""

    oid: int
    schema: str
    name: str
    kind: Kind
    element: int = 0
    """Of an array its elements, of a range its bounds, of a domain what it is made of."""
    fields: tuple[tuple[str, int], ...] = ()
    labels: tuple[str, ...] = ()


class Types(dict[int, PgType]):
    """Types by oid, together with all that they are made of."""

    @classmethod
    async def ask(cls, connection: asyncpg.Connection, oids: Iterable[int]) -> Types:
        """Return what the database says of these types."""
        rows = await connection.fetch(SQL["types"], list(oids))
        return cls(
            {
                row["oid"]: PgType(
                    row["oid"],
                    row["schema"],
                    row["name"],
                    row["kind"],
                    row["element"],
                    tuple(zip(row["field_names"], row["field_types"], strict=True)),
                    tuple(row["labels"]),
                )
                for row in rows
            }
        )

    def base(self, oid: int) -> PgType:
        """Return the type that a value of this one has: a domain is what it is made of."""
        found = self[oid]
        while found.kind == "domain":
            found = self[found.element]
        return found

    def places(self, oid: int, place: str, within: tuple[int, ...] = ()) -> Iterator[tuple[str, PgType]]:
        """Yield the types that a value is made of, each with the place of its first occurrence."""
        found = self.base(oid)
        if found.oid in within:
            return
        yield place, found
        within = (*within, found.oid)
        if found.element:
            yield from self.places(found.element, place, within)
        for name, field in found.fields:
            yield from self.places(field, f"{place}.{name}", within)


@dataclass(frozen=True, slots=True)
class _Codec:
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Json]
    format: Literal["tuple", "binary"]


def _as_it_is(value: Any) -> Any:
    return value


def _float4(value: bytes) -> float:
    """Return the number with the fewest digits that is this one in four bytes: 0.1, and not 0.10000000149011612."""
    (exact,) = struct.unpack("!f", value)
    shortest = (float(f"{exact:.{digits}g}") for digits in range(_FLOAT4_MIN_DIGITS, _FLOAT4_MAX_DIGITS + 1))
    # The largest number, rounded up, does not fit into four bytes. Nine digits are always exact.
    return next((each for each in shortest if _in_four_bytes(each) == value), float(exact))


def _in_four_bytes(value: float) -> bytes:
    try:
        return struct.pack("!f", value)
    except OverflowError:
        return b""


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


CODECS: Mapping[str, _Codec] = {
    "json": _Codec(codec.encode, codec.decode, "binary"),
    "jsonb": _Codec(
        lambda value: _JSONB_VERSION + codec.encode(value),
        lambda raw: codec.decode(raw.removeprefix(_JSONB_VERSION)),
        "binary",
    ),
    "float4": _Codec(partial(struct.pack, "!f"), _float4, "binary"),
    # So the bytes that a row still holds are a "char". `set_type_codec` takes its name for another type.
    "bytea": _Codec(_as_it_is, _base64, "binary"),
    "date": _Codec(_as_it_is, times.date_text, "tuple"),
    "timestamp": _Codec(_as_it_is, times.timestamp_text, "tuple"),
    "timestamptz": _Codec(_as_it_is, times.timestamptz_text, "tuple"),
    "time": _Codec(_as_it_is, times.time_text, "tuple"),
    "timetz": _Codec(_as_it_is, times.timetz_text, "tuple"),
    "interval": _Codec(_as_it_is, times.interval_text, "tuple"),
}
"""Of the types of Postgres itself those that are read in a way of our own, in rows and arrays too."""


async def teach(connection: asyncpg.Connection, names: Iterable[str] = CODECS) -> None:
    """Let a connection read these types as we want them."""
    for name in names:
        each = CODECS[name]
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=each.encode, decoder=each.decode, format=each.format
        )


@dataclass(frozen=True, slots=True)
class StatementTypes:
    """What the database says of a statement."""

    parameters: tuple[int, ...]
    columns: tuple[tuple[str, int], ...]
    types: Types
    unreadable: frozenset[int]
    """Types that the driver cannot read within a row."""

    def odd(self, oid: int, name: str) -> Iterator[str]:
        """Yield what cannot be read in a value of this type, and where in it."""
        for place, found in self.types.places(oid, name):
            if found.name == RECORD:
                yield f"{place} is a row whose fields have no names"
            elif found.oid in self.unreadable:
                yield f"{place} is a {found.name}, which cannot be read within a row"


async def describe(connection: asyncpg.Connection, statement: str) -> StatementTypes:
    """Ask the database for the types of a statement. Do not use the connection afterwards.

    Raises:
        asyncpg.PostgresError: the database does not take the statement.
        asyncpg.UnsupportedClientFeatureError: a type cannot be read, and its place is not known.
    """
    unreadable: set[int] = set()
    while True:
        try:
            prepared = await connection.prepare(statement)
            break
        except asyncpg.UnsupportedClientFeatureError as error:
            more = await _scalars_of(connection, str(error)) - unreadable
            if not more:
                raise
            unreadable |= more
    parameters = tuple(each.oid for each in prepared.get_parameters())
    columns = tuple((each.name, each.type.oid) for each in prepared.get_attributes())
    types = await Types.ask(connection, {*parameters, *(oid for _, oid in columns)})
    return StatementTypes(parameters, columns, types, frozenset(unreadable))


async def _scalars_of(connection: asyncpg.Connection, said: str) -> set[int]:
    """Find the field types that may keep the driver from reading a row. Let it read them as bytes from now on."""
    found = _UNREADABLE.search(said)
    oid = await connection.fetchval(SQL["type_named"], *found.groups()) if found else None
    if oid is None:
        return set()
    types = await Types.ask(connection, [oid])
    odd = [each for each in types.values() if each.kind == "scalar" and not _is_read_in_rows(each)]
    for each in odd:
        await connection.set_type_codec(
            each.name, schema=each.schema, encoder=_as_it_is, decoder=_as_it_is, format="binary"
        )
    return {each.oid for each in odd}


def _is_read_in_rows(one: PgType) -> bool:
    return one.schema == "pg_catalog" and one.name in _READ_IN_ROWS
