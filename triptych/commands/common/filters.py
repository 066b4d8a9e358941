"""The options that say which runs are meant, for lists and for commands to many runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer

from triptych.client import RUN_STATUSES, RunFilter

_AGO = re.compile(r"(\d{1,6})\s*([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def since_time(text: str) -> datetime:
    """Read a moment: `90s`, `15m`, `2h`, `7d` ago, or an ISO 8601 time (local when it has no offset)."""
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a time; write 15m, 2h, 7d or 2026-01-31T12:00") from None


def statuses(given: list[str] | None) -> tuple[str, ...]:
    """Statuses, each in an option of its own or several with commas between."""
    return tuple(dict.fromkeys(name.strip() for text in given or () for name in text.split(",") if name.strip()))


Statuses = Annotated[
    list[str] | None,
    typer.Option("--status", help=f"May be repeated, or several with commas: {', '.join(RUN_STATUSES)}."),
]
OfPlaybook = Annotated[str | None, typer.Option("--playbook", help="Runs of this playbook.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Runs of this tenant.")]
WithReason = Annotated[str | None, typer.Option("--reason", help="Runs with this reason code, for example budget_usd.")]
WithTool = Annotated[
    str | None,
    typer.Option("--tool", help="Runs with a step of this tool or operation: helpdesk, helpdesk.create_ticket."),
]
WithErrorCode = Annotated[
    str | None, typer.Option("--error-code", help="Runs with a step that ended with this error, for example timeout.")
]
Since = Annotated[
    datetime | None, typer.Option(parser=since_time, metavar="TIME", help="Admitted since: 15m, 2h, or a time.")
]
Until = Annotated[
    datetime | None, typer.Option(parser=since_time, metavar="TIME", help="Admitted before: 15m, 2h, or a time.")
]


@dataclass(frozen=True, slots=True)
class Filters:
    """The options as they were given; None where one was not."""

    status: Statuses = None
    playbook: OfPlaybook = None
    tenant: OfTenant = None
    reason: WithReason = None
    tool: WithTool = None
    error_code: WithErrorCode = None
    since: Since = None
    until: Until = None

    def run_filter(self, *, limit: int, older_than: UUID | None = None) -> RunFilter:
        """Return the filter that they make together."""
        return RunFilter(
            statuses=statuses(self.status),
            playbook=self.playbook,
            tenant=self.tenant,
            reason=self.reason,
            tool=self.tool,
            error_code=self.error_code,
            since=self.since,
            until=self.until,
            older_than=older_than,
            limit=limit,
        )
