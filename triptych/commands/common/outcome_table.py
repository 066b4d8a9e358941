"""Outcomes as a table: status, reason, steps, calls, tokens, USD and time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from triptych.commands.common.output import duration, is_narrow, name_text, status_text, usd
from triptych.operator.submission_report import SubmissionReport, SubmittedLine
from triptych.schemas import Outcome, Reason

_TASK_WIDTH = 40
"""A task id is the client's and may have 200 characters; a longer one than this goes on in the next line."""


def outcome_table(outcomes: Iterable[Outcome]) -> Table:
    """Outcomes as they came."""
    table = _empty()
    for outcome in outcomes:
        table.add_row(name_text(outcome.task_id), *_cells(outcome))
    return table


def submission_table(report: SubmissionReport) -> Table:
    """Show every line that was submitted, in its order, with its outcome."""
    table = _empty()
    for line in report.lines:
        table.add_row(_name(line), *_line_cells(line))
    return table


def submission_json(report: SubmissionReport) -> list[dict[str, Any]]:
    """Give the same for machines."""
    return [
        {
            "line": line.number,
            "status": "duplicate" if line.duplicate_of else line.status,
            "duplicate_of_line": line.duplicate_of,
            "partition": line.receipt.partition,
            "offset": line.receipt.offset,
            "outcome": line.outcome,
            "dead_letter": line.dead_letter,
        }
        for line in report.lines
    ]


def _empty() -> Table:
    narrow = is_narrow()
    table = Table(box=None, header_style="dim", padding=(0, 1 if narrow else 2, 0, 0), expand=not narrow)
    table.add_column("task", overflow="fold", max_width=_TASK_WIDTH)
    table.add_column("status", no_wrap=True)
    # The reason takes what is left and is cut first: no figure is ever cut. A narrow table has its code alone.
    if narrow:
        table.add_column("reason", overflow="fold")
    else:
        table.add_column("reason", overflow="ellipsis", no_wrap=True, ratio=1)
    for heading in ("steps", "calls", "tokens", "USD", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _name(line: SubmittedLine) -> Text:
    return name_text(line.key[1] if line.key else f"(line {line.number})")


def _line_cells(line: SubmittedLine) -> list[str | Text]:
    if line.duplicate_of is not None:
        return [Text("duplicate", style="dim"), Text(f"of line {line.duplicate_of}", style="dim")]
    if line.outcome is not None:
        return _cells(line.outcome)
    if line.dead_letter is not None:
        return [Text("dead letter", style="magenta"), _said(line.dead_letter.reason)]
    return [Text("no outcome yet", style="red")]


def _cells(outcome: Outcome) -> list[str | Text]:
    usage = outcome.usage
    return [
        status_text(outcome.status.value),
        Text(outcome.reason.code) if outcome.status == "succeeded" else _said(outcome.reason),
        str(usage.steps),
        str(usage.tool_calls),
        f"{usage.tokens:,}",
        usd(round(usage.usd * 1_000_000)),
        duration(usage.wall_ms),
    ]


def _said(reason: Reason) -> Text:
    """Cut a reason so that it fits the table. It may quote a client, so it is never read as markup."""
    return name_text(reason.code if is_narrow() else f"{reason.code}: {reason.message}")
