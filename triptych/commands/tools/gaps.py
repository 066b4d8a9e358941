"""`triptych tools gaps`: what plans wanted of tools and could not have."""

from __future__ import annotations

import asyncio
from typing import Any

from rich.table import Table

from triptych.client import tool_health
from triptych.client.operator import operator_connection
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.commands.common.output import name_text, out, print_json


def gaps(*, data: DataDir = DEFAULT_DATA, postgres: Postgres = None, as_json: AsJson = False) -> None:
    """List what plans wanted and did not get: unknown or forbidden operations, and abilities that no tool has."""
    found = asyncio.run(_read(database(data, postgres)))
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("every plan got what it wanted")
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("times", "wanted", "playbook", "kind"):
        table.add_column(heading, no_wrap=heading != "wanted")
    table.add_column("for the goal")
    for gap in found:
        wanted = f"{gap['capability']}: {gap['why']}" if gap["why"] else gap["capability"]
        table.add_row(str(gap["count"]), name_text(wanted), gap["playbook"], gap["kind"], name_text(gap["goal"]))
    out.print(table)


async def _read(dsn: str) -> list[dict[str, Any]]:
    async with operator_connection(dsn) as connection:
        return await tool_health.gaps(connection)
