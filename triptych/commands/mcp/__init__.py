"""`triptych mcp`: tasks for MCP clients. The other way, MCP servers as tools, is `triptych tools add mcp`."""

from __future__ import annotations

import typer

from triptych.commands.mcp import serve

app = typer.Typer(help="Triptych for MCP clients.", no_args_is_help=True)


@app.callback()
def _mcp() -> None:
    """Keep `serve` a sub-command although it is the only one."""


app.command()(serve.serve)
