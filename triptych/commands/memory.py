"""`triptych memory`: what is known of whom, and forgetting it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import typer
from rich.table import Table

from triptych.client import DatabaseUnreachableError
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, tool_role
from triptych.commands.common.output import err, local_time, name_text, out, print_json
from triptych.kernel.postgres.database import Queries

app = typer.Typer(help="What runs have noted for later ones: see it, and forget it.", no_args_is_help=True)

_SQL = Queries.load("triptych.commands", "memory.sql")
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


@app.command("ls")
def list_facts(
    subject: Annotated[str | None, typer.Argument(help="All that is known of it; without it, the subjects.")] = None,
    *,
    tenant: Tenant = "default",
    tool: Tool = "memory",
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """List the subjects of a tenant, or the facts of one with their source and their end."""
    dsn = tool_role(data, postgres, tool)
    query, arguments = ("subjects", (tenant,)) if subject is None else ("facts", (tenant, subject))
    found = _ask(dsn, lambda connection: connection.fetch(_SQL[query], *arguments))
    rows = [dict(row) for row in found]
    if as_json:
        print_json(rows)
    elif rows:
        out.print(_table(rows))
    else:
        err.print(f"nothing is known of {subject or 'anybody'} in tenant {tenant}", markup=False)


@app.command()
def forget(
    subject: Annotated[str, typer.Argument(help="Of whom or what everything is deleted.")],
    *,
    tenant: Tenant = "default",
    tool: Tool = "memory",
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Delete everything that is known of a subject. What stands in the journals of runs goes with these."""
    dsn = tool_role(data, postgres, tool)
    forgotten = int(_ask(dsn, lambda connection: connection.fetchval(_SQL["forget"], tenant, subject)))
    if as_json:
        print_json({"tenant": tenant, "subject": subject, "forgotten": forgotten})
    else:
        out.print(f"{forgotten} facts of {subject} are gone", markup=False)


def _ask(dsn: str, ask: Callable[[asyncpg.Connection], Awaitable[ResultT]]) -> ResultT:
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


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "), overflow="fold")
    for row in rows:
        cells = (local_time(cell) if isinstance(cell, datetime) else str(cell) for cell in row.values())
        table.add_row(*map(name_text, cells))
    return table
