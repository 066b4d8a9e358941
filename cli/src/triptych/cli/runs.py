"""`triptych runs`: which runs there are, and how they stand."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table
from rich.text import Text

from triptych.cli.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.cli.output import duration, err, is_narrow, local_time, out, print_json, status_text, usd
from triptych.client import Operator, RunFilter, RunRow

_AGO = re.compile(r"(\d+)\s*([smhd])")
_WIDE = 150
"""From this many columns on there is room for the run id, its time, tenant and playbook."""
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def since_time(text: str) -> datetime:
    """A moment: `90s`, `15m`, `2h`, `7d` ago, or an ISO 8601 time (local when it has no offset)."""
    if ago := _AGO.fullmatch(text.strip()):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write 15m, 2h, 7d or 2026-01-31T12:00") from None


def runs(
    *,
    status: Annotated[str | None, typer.Option(help="For example running, escalated, succeeded, failed.")] = None,
    playbook: Annotated[str | None, typer.Option(help="Runs of this playbook.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Runs of this tenant.")] = None,
    reason: Annotated[str | None, typer.Option(help="Runs with this reason code, for example budget_usd.")] = None,
    tool: Annotated[
        str | None, typer.Option(help="Runs with a step of this tool or operation: helpdesk, helpdesk.create_ticket.")
    ] = None,
    error_code: Annotated[
        str | None, typer.Option(help="Runs with a step that ended with this error, for example timeout.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=since_time, metavar="TIME", help="Admitted since: 15m, 2h, or a time.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=since_time, metavar="TIME", help="Admitted before: 15m, 2h, or a time.")
    ] = None,
    older_than: Annotated[
        UUID | None, typer.Option(metavar="RUN", help="The next page: what comes after this run id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, newest first.")] = 50,
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first. With --tool and --error-code, one step must fit both."""
    wanted = RunFilter(
        statuses=(status,) if status else (),
        playbook=playbook,
        tenant=tenant,
        reason=reason,
        tool=tool,
        error_code=error_code,
        since=since,
        until=until,
        older_than=older_than,
        limit=limit,
    )
    found = asyncio.run(_read(database(data, postgres), wanted))
    if as_json:
        print_json(found)
        return
    if not found:
        err.print("no runs" if wanted == RunFilter(limit=limit) else "no runs fit these filters")
        return
    out.print(_table(found))
    if len(found) == limit:
        err.print(f"{limit} runs; what is older: --older-than {found[-1].run_id}", style="dim", soft_wrap=True)


async def _read(dsn: str, wanted: RunFilter) -> list[RunRow]:
    async with Operator.connect(dsn) as operator:
        return await operator.runs(wanted)


def _table(found: list[RunRow]) -> Table:
    """The status and every figure whole; names of one's own choice fold. A narrow table knows runs by their task."""
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
        names: list[str | Text] = [str(run.run_id), local_time(run.started_at), Text(run.tenant)]
        table.add_row(
            *([] if narrow else names),
            Text(run.task_id),
            *([] if narrow else [run.playbook]),
            status_text(run.status),
            Text(run.reason_code or ""),
            str(run.steps_used),
            str(run.tool_calls),
            f"{run.tokens:,}",
            usd(run.usd_micros),
            duration(wall_ms),
        )
    return table
