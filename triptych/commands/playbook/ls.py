"""`triptych playbook ls`: the versions of playbooks, and which of them new tasks get."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.commands.common.output import local_time, out, print_json
from triptych.commands.common.owner import connected
from triptych.commands.common.playbook_versions import versions


def ls(
    name: Annotated[str | None, typer.Argument(help="One playbook; all when left out.")] = None,
    *,
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of playbooks, the one that new tasks get marked."""
    with connected(database(data, postgres)) as connection:
        found = versions(connection, name)
    if as_json:
        print_json(found)
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("playbook", "version", "", "deployed", "activated", "by", "note"):
        table.add_column(heading, no_wrap=heading == "version")
    for each in found:
        activated = local_time(each.activated_at) if each.activated_at else ""
        state = Text("active", style="green") if each.active else Text()
        row = (each.name, each.version, state, local_time(each.deployed_at), activated)
        table.add_row(*row, Text(each.activated_by), Text(each.note))
    out.print(table)
