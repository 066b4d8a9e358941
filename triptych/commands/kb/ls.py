"""`triptych kb ls`: the collections of the knowledge base."""

from __future__ import annotations

import asyncio

from rich.table import Table

from triptych.commands.common.knowledge_tool import Postgres, Tool, opened
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, tool_role
from triptych.commands.common.output import name_text, out, print_json


def ls(*, tool: Tool = "kb", data: DataDir = DEFAULT_DATA, postgres: Postgres = None, as_json: AsJson = False) -> None:
    """List collections by tenant, with their documents."""

    async def collections() -> list[dict[str, object]]:
        async with opened(tool_role(data, postgres, tool)) as knowledge:
            return await knowledge.collections()

    found = asyncio.run(collections())
    if as_json:
        print_json(found)
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for heading in ("tenant", "collection"):
        table.add_column(heading)
    for heading in ("documents", "chunks"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(*(name_text(str(row[name])) for name in ("tenant", "collection", "documents", "chunks")))
    out.print(table)
