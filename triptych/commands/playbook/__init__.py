"""`triptych playbook`: agents written in YAML. Each sub-command has the file of its name."""

from __future__ import annotations

import typer

from triptych.commands.playbook import activate, check, ls, rollback

app = typer.Typer(help="Playbooks: agents written in YAML.", no_args_is_help=True)
app.command()(check.check)
app.command()(ls.ls)
app.command()(activate.activate)
app.command()(rollback.rollback)
