"""`triptych new`: the beginning of something of your own. Each sub-command has the file of its name."""

from __future__ import annotations

import typer

from triptych.commands.new import tool

app = typer.Typer(help="Make something new.", no_args_is_help=True)


@app.callback()
def _new() -> None:
    """Keep `tool` a sub-command although it is the only one."""


app.command()(tool.tool)
