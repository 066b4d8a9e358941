"""`triptych runs`: which runs there are, and how they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table
from rich.text import Text

from triptych.client import Operator, RunFilter, RunRow
from triptych.commands.common.filters import Filters
from triptych.commands.common.option_groups import with_groups
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.commands.common.output import (
    duration,
    err,
    is_narrow,
    local_time,
    name_text,
    out,
    print_json,
    status_text,
    usd,
)

_WIDE = 150
"""From this many columns on there is room for the run id, its time, tenant and playbook."""


@with_groups
def runs(
    *,
    filters: Filters,
    older_than: Annotated[
        UUID | None, typer.Option(metavar="RUN", help="The next page: what comes after this run id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, newest first.")] = 50,
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first. With --tool and --error-code, one step must fit both."""
    wanted = filters.run_filter(older_than=older_than, limit=limit)
    found = asyncio.run(matching(database(data, postgres), wanted))
    if as_json:
        print_json(found)
        return
    if not found:
        err.print("no runs" if wanted == RunFilter(limit=limit) else "no runs fit these filters")
        return
    out.print(runs_table(found))
    if len(found) == limit:
        err.print(f"{limit} runs; what is older: --older-than {found[-1].run_id}", style="dim", soft_wrap=True)


async def matching(dsn: str, wanted: RunFilter) -> list[RunRow]:
    """Read the runs that fit, newest first.

    Raises:
        FilterUnknownError: none fits, and none can: the filter names what does not exist.
    """
    async with Operator.connect(dsn) as operator:
        found = await operator.runs(wanted)
        if not found:
            await operator.check(wanted)
        return found


def runs_table(found: Sequence[RunRow]) -> Table:
    """Show the status and every figure whole; names fold. A narrow table names runs by their task."""
    narrow = is_narrow(_WIDE)
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    if not narrow:
        table.add_column("run", no_wrap=True)
        table.add_column("started", no_wrap=True)
        table.add_column("tenant", overflow="fold")
    table.add_column("task", overflow="fold", max_width=40)
    if not narrow:
        table.add_column("playbook", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("reason", overflow="ellipsis", no_wrap=True, max_width=24)
    for heading in ("steps", "calls", "tokens", "USD", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in found:
        wall_ms = ((run.finished_at or run.updated_at) - run.started_at).total_seconds() * 1000
        names: list[str | Text] = [str(run.run_id), local_time(run.started_at), name_text(run.tenant)]
        table.add_row(
            *([] if narrow else names),
            name_text(run.task_id),
            *([] if narrow else [name_text(run.playbook)]),
            status_text(run.status),
            name_text(run.reason_code or ""),
            str(run.steps_used),
            str(run.tool_calls),
            f"{run.tokens:,}",
            usd(run.usd_micros),
            duration(wall_ms),
        )
    return table
