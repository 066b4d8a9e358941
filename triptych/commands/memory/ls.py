"""`triptych memory ls`: the facts that are known of a subject, or all subjects."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from triptych.commands.common.memory_tool import SQL, Postgres, Tenant, Tool, query
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, tool_role
from triptych.commands.common.output import err, local_time, name_text, out, print_json


def ls(
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
    name, arguments = ("subjects", (tenant,)) if subject is None else ("facts", (tenant, subject))
    found = query(dsn, lambda connection: connection.fetch(SQL[name], *arguments))
    rows = [dict(row) for row in found]
    if as_json:
        print_json(rows)
    elif rows:
        out.print(_table(rows))
    else:
        err.print(f"nothing is known of {subject or 'anybody'} in tenant {tenant}", markup=False)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "), overflow="fold")
    for row in rows:
        cells = (local_time(cell) if isinstance(cell, datetime) else str(cell) for cell in row.values())
        table.add_row(*map(name_text, cells))
    return table
