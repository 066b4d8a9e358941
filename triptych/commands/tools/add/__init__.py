"""`triptych tools add`: give agents a tool more. Each kind of tool has the file of its name."""

from __future__ import annotations

import typer

from triptych.commands.tools.add import mcp, openapi, sql

app = typer.Typer(help="Add a tool to triptych.toml.", no_args_is_help=True)
app.command()(mcp.mcp)
app.command()(openapi.openapi)
app.command()(sql.sql)
