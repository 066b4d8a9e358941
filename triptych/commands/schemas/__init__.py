"""`triptych schemas`: the wire contract. Each sub-command has the file of its name."""

from __future__ import annotations

import typer

from triptych.commands.schemas import accept, export

app = typer.Typer(help="The wire contract: JSON Schema and AsyncAPI.", no_args_is_help=True)
app.command()(export.export)
app.command()(accept.accept)
