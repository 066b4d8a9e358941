"""Tables in partitions by age: made ahead of time, and dropped whole when everything in them is old.

A run id is a UUIDv7 and begins with its time, so a week is a range of run ids. Every table that is partitioned by range
has a default partition, which takes the rows of all other times. So an insert never fails for want of a partition, with
any time that a record claims. The caller must own the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
from psycopg import sql

from triptych.kernel.run_ids import WEEK, Span

AHEAD = 8
"""This many weeks from now on have partitions. Rows of later weeks go to the default partition.
"""

_TABLES = """
select parent.oid, schema.nspname, parent.relname, standard.relname, standard.reloptions
from pg_partitioned_table as partitioned
join pg_class as parent on parent.oid = partitioned.partrelid
join pg_namespace as schema on schema.oid = parent.relnamespace
join pg_class as standard on standard.oid = partitioned.partdefid
join pg_attribute as key on key.attrelid = parent.oid and key.attnum = partitioned.partattrs[0]
where partitioned.partstrat = 'r' and partitioned.partnatts = 1 and key.attname = 'run_id'
order by schema.nspname, parent.relname
"""
_PARTITIONS = """
select child.relname, pg_get_expr(child.relpartbound, child.oid)
from pg_inherits join pg_class as child on child.oid = pg_inherits.inhrelid
where pg_inherits.inhparent = %s and pg_get_expr(child.relpartbound, child.oid) <> 'DEFAULT'
"""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a table: its name and what it holds."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class AgedTable:
    """A table that is partitioned by the age of its runs."""

    oid: int
    schema: str
    name: str
    default: str
    options: tuple[str, ...]
    """Storage options, which each new partition takes over from the default one."""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def of(self, name: str) -> sql.Identifier:
        """Return the identifier of one of its partitions, from the bare name."""
        return sql.Identifier(self.schema, name)


def aged_tables(connection: psycopg.Connection) -> list[AgedTable]:
    """Return every table of this database that is partitioned by age, by schema and name."""
    rows = connection.execute(_TABLES).fetchall()
    return [AgedTable(oid, schema, name, default, tuple(options or ())) for oid, schema, name, default, options in rows]


def partitions(connection: psycopg.Connection, table: AgedTable) -> list[Partition]:
    """Return the partitions of a table, oldest first, without the default one."""
    found = [Partition(name, _span(bound)) for name, bound in connection.execute(_PARTITIONS, [table.oid]).fetchall()]
    return sorted(found, key=lambda partition: partition.span.first)


def make_partitions(connection: psycopg.Connection, now: datetime) -> list[str]:
    """Make what is missing for this week and those ahead, and return the names of new partitions.

    If the default partition holds rows of a week already, they stay there: rows never move into a new partition.
    """
    return [
        f"{table.schema}.{_name(table, span)}"
        for table in aged_tables(connection)
        for span in sorted(set(_weeks(now)) - {partition.span for partition in partitions(connection, table)})
        if _make(connection, table, span)
    ]


def _weeks(now: datetime) -> Iterator[Span]:
    for number in range(AHEAD + 1):
        yield Span.week_of(now + number * WEEK)


def _name(table: AgedTable, span: Span) -> str:
    return f"{table.name}_{span.begins_at:%Y%m%d}"


def _make(connection: psycopg.Connection, table: AgedTable, span: Span) -> bool:
    """Make one partition; False when the default one holds rows that it would be for.

    It is attached and not created in place: that would lock the table against everybody.
    """
    new = table.of(_name(table, span))
    bounds = sql.SQL("FROM ({}) TO ({})").format(sql.Literal(str(span.first)), sql.Literal(str(span.end)))
    try:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '5s'")
            connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(new, table.identifier))
            for option in table.options:
                connection.execute(sql.SQL("ALTER TABLE {} SET ({})").format(new, sql.SQL(option)))
            attach = sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES {}")
            connection.execute(attach.format(table.identifier, new, bounds))
    except psycopg.errors.CheckViolation:
        return False
    return True


def _span(bound: str) -> Span:
    """Parse what Postgres shows: FOR VALUES FROM ('...') TO ('...')."""
    first, end = (UUID(text) for text in bound.split("'")[1::2])
    return Span(first, end)
