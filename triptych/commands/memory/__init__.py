"""`triptych memory`: what runs have noted for later ones. Each sub-command has the file of its name."""

from __future__ import annotations

import typer

from triptych.commands.memory import forget, ls

app = typer.Typer(help="What runs have noted for later ones: see it, and forget it.", no_args_is_help=True)
app.command()(ls.ls)
app.command()(forget.forget)
