"""Postgres: one pool a process, and SQL kept in .sql files by name.

A file holds blocks that begin with `-- name: take_jobs`; `Queries.load` gives them back by that name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any
from uuid import UUID

import asyncpg
from asyncpg.pgproto import pgproto

from triptych.kernel.errors import ConfigurationError

_BLOCK = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)

# Fresh, unanalysed tables are otherwise planned with sequential scans, and every hot statement is a
# lookup by key. JIT compiles for longer than such a statement runs.
PLANNER_OPTIONS = {"enable_seqscan": "off", "jit": "off", "plan_cache_mode": "force_generic_plan"}


class Queries(Mapping[str, str]):
    """SQL statements by name."""

    def __init__(self, statements: dict[str, str]) -> None:
        self._statements = statements

    @classmethod
    def load(cls, package: str, filename: str) -> Queries:
        """Read the named blocks of a .sql file that ships in `package`."""
        parts = _BLOCK.split(files(package).joinpath(filename).read_text("utf-8"))
        return cls({name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)})

    def __getitem__(self, name: str) -> str:
        return self._statements[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)

    def __len__(self) -> int:
        return len(self._statements)


def as_in_rows(key: UUID) -> UUID:
    """Return the same UUID as rows hold it: hashed, compared, printed and written in C, in a seventh of the time."""
    return pgproto.UUID(key.bytes)


class _Pool(asyncpg.Pool):
    """A pool that takes a connection back without a task.

    asyncpg starts a task for each release, to protect it from a cancellation. The caller waits for that task, between
    the commit and the publish. But a release only waits when the server has to end something first.
    """

    __slots__ = ()

    async def release(
        self,
        connection: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as asyncpg has it
    ) -> None:
        """Take a connection back."""
        inner = connection._con  # noqa: SLF001 - nothing public takes a connection back otherwise
        if inner is None or inner.is_closed() or inner.is_in_transaction() or inner._protocol._is_cancelling():  # noqa: SLF001
            await super().release(connection, timeout=timeout)
        else:
            inner._on_release()  # noqa: SLF001
            await connection._holder.release(timeout)  # noqa: SLF001


async def _leave_as_it_is(_connection: asyncpg.Connection) -> None:
    """Reset nothing, since our statements do not change a session: a reset would be a round trip after each."""


async def connect(dsn: str, application_name: str, *, max_connections: int = 4) -> asyncpg.Pool:
    """Open a pool for a service's own role.

    Raises:
        ConfigurationError: the server refuses the role, the password or the database, or the DSN is none.
    """
    try:
        return await _Pool(
            dsn,
            min_size=1,
            max_size=max_connections,
            max_queries=50_000,
            max_inactive_connection_lifetime=300.0,
            loop=None,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            command_timeout=60,
            reset=_leave_as_it_is,
            server_settings={"application_name": application_name, **PLANNER_OPTIONS},
        )
    except (
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
    ) as error:
        raise ConfigurationError(f"TRIPTYCH_POSTGRES: the server refused the connection: {error}") from error
    except ValueError:
        # What it says may hold a part of the password.
        raise ConfigurationError(
            "TRIPTYCH_POSTGRES: this is not a DSN; write postgresql://role:password@host:port/database, with / # ? @ "
            "and other special characters of the password percent-encoded"
        ) from None
