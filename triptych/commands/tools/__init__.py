"""`triptych tools`: what agents may reach, and how to give them more of it."""

from __future__ import annotations

import typer

from triptych.commands.tools import add_mcp, add_openapi, add_sql, drift, gaps, ls, show, status, tell, trial

app = typer.Typer(help="Tools: what agents may reach.", no_args_is_help=True)
add = typer.Typer(help="Add a tool to triptych.toml.", no_args_is_help=True)
app.add_typer(add, name="add")


@add.callback()
def _add() -> None:
    """Keeps each kind of tool a sub-command, however many there are."""


add.command("mcp")(add_mcp.mcp)
add.command("openapi")(add_openapi.openapi)
add.command("sql")(add_sql.sql)
app.command()(ls.ls)
app.command()(show.show)
app.command()(status.status)
app.command()(gaps.gaps)
app.command()(tell.breaker)
app.command("test")(trial.trial)
app.command()(drift.diff)
app.command()(drift.accept)
