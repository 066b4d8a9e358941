"""What the commands of `triptych memory` share: their options, and a query under the role of the tool."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import asyncpg
import typer

from triptych.client import DatabaseUnreachableError
from triptych.kernel.postgres.database import Queries

SQL = Queries.load("triptych.commands.memory", "memory.sql")
_TIMEOUT_S = 10
ResultT = TypeVar("ResultT")

Tool = Annotated[str, typer.Option("--tool", help="The name of the tool's table in triptych.toml.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose memory.")]
Postgres = Annotated[
    str | None,
    typer.Option(
        "--postgres", envvar="TRIPTYCH_POSTGRES", metavar="DSN", help="The tool's own role, if not of --data."
    ),
]


def query(dsn: str, ask: Callable[[asyncpg.Connection], Awaitable[ResultT]]) -> ResultT:
    async def connected() -> ResultT:
        connection = await asyncpg.connect(dsn, timeout=_TIMEOUT_S)
        try:
            return await ask(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(connected())
    except (OSError, asyncpg.PostgresError) as error:
        parts = urlsplit(dsn)
        raise DatabaseUnreachableError(f"{parts.hostname}:{parts.port}{parts.path}", error) from error
