"""`triptych kb`: what the knowledge base knows. Each sub-command has the file of its name."""

from __future__ import annotations

import typer

from triptych.commands.kb import calibrate, ingest, ls

app = typer.Typer(help="The knowledge base: load documents, and hold its scores to questions.", no_args_is_help=True)
app.command()(ingest.ingest)
app.command()(ls.ls)
app.command()(calibrate.calibrate)
