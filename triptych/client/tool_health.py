"""What tools say of themselves in their own schemas: where breakers stand, what is wrong, what people told them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.schemas import Json

_QUERIES = Queries.load("triptych.client", "tool_health.sql")


@dataclass(frozen=True, slots=True)
class BreakerRow:
    """A breaker in one process of a tool."""

    tool: str
    operation: str
    instance: str
    state: str
    forced_by: str | None
    since: datetime


@dataclass(frozen=True, slots=True)
class AlertRow:
    """Something that is wrong with a tool's upstream."""

    tool: str
    operation: str
    kind: str
    message: str
    count: int
    first_at: datetime
    last_at: datetime


async def tools(connection: asyncpg.Connection) -> list[str]:
    """Return the tools that have a schema."""
    return [row["tool"] for row in await connection.fetch(_QUERIES["tools"])]


async def breakers(connection: asyncpg.Connection, tool: str) -> list[BreakerRow]:
    """Return the states of a tool's breakers."""
    return [BreakerRow(tool, **row) for row in await connection.fetch(_in_schema("breakers", tool))]


async def alerts(connection: asyncpg.Connection, tool: str) -> list[AlertRow]:
    """Return the open alerts of a tool."""
    return [AlertRow(tool, **row) for row in await connection.fetch(_in_schema("alerts", tool))]


async def gaps(connection: asyncpg.Connection) -> list[dict[str, Json]]:
    """Return what plans wanted of tools and could not have, the most wanted first."""
    return [{**row, "run_id": str(row["run_id"])} for row in await connection.fetch(_QUERIES["gaps"])]


async def answer(connection: asyncpg.Connection, tool: str, command_id: str) -> str | None:
    """Return the answer to a command, or None when no process has answered it yet."""
    found: str | None = await connection.fetchval(_in_schema("answer", tool), command_id)
    return found


def _in_schema(statement: str, tool: str) -> str:
    """Return a statement for a tool's own schema. Names of tools are slugs, and quotes double in an identifier."""
    schema = f"tool_{tool}".replace('"', '""')
    return _QUERIES[statement].replace("tool_schema", f'"{schema}"')
