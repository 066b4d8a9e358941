"""What a stack's Postgres has written: its write-ahead log, and its tables and indexes on disk."""

from __future__ import annotations

from typing import NamedTuple, Self

import asyncpg

from triptych_bench.stack import Stack

_WRITTEN = """
select
    (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
    (select sum(pg_database_size(oid)) from pg_database)::bigint
"""


class Written(NamedTuple):
    """Bytes, since the cluster was made."""

    wal: int
    disk: int

    def since(self, earlier: Written, steps: int) -> Written:
        """Return the bytes of one of these steps. Tables grow by pages, so few steps tell little."""
        return Written(round((self.wal - earlier.wal) / steps), round((self.disk - earlier.disk) / steps))


class Storage:
    """A connection as the owner of the cluster."""

    def __init__(self, stack: Stack) -> None:
        self._owner = stack.owner
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Self:
        owner = self._owner
        self._connection = await asyncpg.connect(
            host=owner.host, port=owner.port, user=owner.user, password=owner.password, database="postgres"
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._connection is not None  # noqa: S101 - entered before
        await self._connection.close()

    async def written(self) -> Written:
        """Return what has been written until now."""
        assert self._connection is not None  # noqa: S101 - entered before
        (row,) = await self._connection.fetch(_WRITTEN)
        return Written(*row)
