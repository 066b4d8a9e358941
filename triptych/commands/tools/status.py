"""`triptych tools status`: what is wrong with tools, and which breakers do not stand closed."""

from __future__ import annotations

import asyncio

from rich.table import Table

from triptych.client import tool_health
from triptych.client.operator import operator_connection
from triptych.client.tool_health import AlertRow, BreakerRow
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.commands.common.output import name_text, out, print_json


def status(*, data: DataDir = DEFAULT_DATA, postgres: Postgres = None, as_json: AsJson = False) -> None:
    """Show open breakers and alerts: results outside their contract, failed probes, drift."""
    breakers, alerts = asyncio.run(_read(database(data, postgres)))
    if as_json:
        print_json({"breakers": breakers, "alerts": alerts})
        return
    if not breakers and not alerts:
        out.print("every breaker is closed, and there are no alerts")
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("operation", "what", "since"):
        table.add_column(heading, no_wrap=True)
    table.add_column("detail")
    for row in breakers:
        by = f"held by {row.forced_by}, " if row.forced_by else ""
        table.add_row(
            row.operation, f"breaker {row.state}", f"{row.since:%d %b %H:%M}", name_text(f"{by}in {row.instance}")
        )
    for alert in alerts:
        table.add_row(
            alert.operation, alert.kind, f"{alert.first_at:%d %b %H:%M}", name_text(f"{alert.count}x {alert.message}")
        )
    if table.rows:
        out.print(table)


async def _read(dsn: str) -> tuple[list[BreakerRow], list[AlertRow]]:
    async with operator_connection(dsn) as connection:
        known = await tool_health.tools(connection)
        breakers = [row for tool in known for row in await tool_health.breakers(connection, tool)]
        alerts = [row for tool in known for row in await tool_health.alerts(connection, tool)]
    return [row for row in breakers if row.state != "closed" or row.forced_by], alerts
