"""`triptych tools`: what agents may reach. Each sub-command has the file of its name."""

from __future__ import annotations

import typer

from triptych.commands.tools import accept, add, breaker, diff, gaps, ls, show, status, test

app = typer.Typer(help="Tools: what agents may reach.", no_args_is_help=True)
app.add_typer(add.app, name="add")
app.command()(ls.ls)
app.command()(show.show)
app.command()(status.status)
app.command()(gaps.gaps)
app.command()(breaker.breaker)
app.command()(test.test)
app.command()(diff.diff)
app.command()(accept.accept)
