"""`triptych retention`: removes runs that ended long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import psycopg
import typer
from rich.table import Table

from triptych.client import DatabaseUnreachableError
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir
from triptych.commands.common.output import err, out, print_json
from triptych.commands.common.owner import OwnerPostgres, owner_of
from triptych.embedded.config import MOST_DAYS
from triptych.embedded.postgres import owner_at
from triptych.operator.retention import RetentionReport, remove_old

_DAYS = re.compile(r"(\d+)\s*d")


def days(text: str) -> timedelta:
    """Read a number of days, such as `90d`, up to a hundred years."""
    found = _DAYS.fullmatch(text.strip())
    if found is None or not 1 <= int(found[1]) <= MOST_DAYS:
        raise typer.BadParameter(f"{text!r} is not a span of 1 to {MOST_DAYS} days; write 90d")
    return timedelta(days=int(found[1]))


def retention(
    *,
    keep: Annotated[
        timedelta, typer.Option(parser=days, metavar="DAYS", help="How long a run is kept after its end.")
    ] = "90d",  # type: ignore[assignment]  # typer parses the default as it does what is given
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")] = False,
    data: DataDir = DEFAULT_DATA,
    postgres: OwnerPostgres = None,
    as_json: AsJson = False,
) -> None:
    """Remove runs that ended long ago, a week at a time, and make partitions for the weeks ahead."""
    dsn = postgres or owner_of(data)
    where = owner_at(dsn)
    try:
        report = remove_old(dsn, datetime.now(UTC), keep, dry_run=dry_run)
    except psycopg.Error as error:
        raise DatabaseUnreachableError(where, error) from error
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: RetentionReport) -> None:
    if not report.knows_runs:
        err.print("No executor keeps runs in this database, so nothing says what is over: nothing goes.")
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for heading in ("week of", "partitions"):
        table.add_column(heading)
    for heading in ("MB", "runs that stay"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for week in report.weeks:
        names = ", ".join(week.tables)
        size = f"{week.size_bytes / 1e6:,.1f}"
        table.add_row(f"{week.week:%Y-%m-%d}", names, size, str(week.kept_runs), week.waits)
    if report.weeks:
        out.print(table)
    for name, rows in report.rows.items():
        out.print(f"{name}: {rows:,} rows")
    what = "would go" if report.dry_run else "went"
    err.print(f"What was over before {report.before:%Y-%m-%d %H:%M} UTC {what}.")
