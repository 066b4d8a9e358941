"""Outcomes as a table: status, reason, steps, calls, tokens, USD and time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from triptych.cli.output import duration, status_text, usd
from triptych.cli.tally import Submitted, Tally
from triptych.schemas import Outcome


def outcome_table(outcomes: Iterable[Outcome]) -> Table:
    """Outcomes as they came."""
    table = _empty()
    for outcome in outcomes:
        table.add_row(outcome.task_id, *_cells(outcome))
    return table


def tally_table(tally: Tally) -> Table:
    """Every line that was submitted, in its order, with what came of it."""
    table = _empty()
    for line in tally.lines:
        table.add_row(_name(line), *_line_cells(line))
    return table


def tally_json(tally: Tally) -> list[dict[str, Any]]:
    """The same for machines."""
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
        for line in tally.lines
    ]


def _empty() -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), expand=True)
    table.add_column("task", no_wrap=True)
    table.add_column("status", no_wrap=True)
    # The reason takes what is left and is cut first: no figure is ever cut.
    table.add_column("reason", overflow="ellipsis", no_wrap=True, ratio=1)
    for heading in ("steps", "calls", "tokens", "USD", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _name(line: Submitted) -> str:
    return line.key[1] if line.key else f"(line {line.number})"


def _line_cells(line: Submitted) -> list[str | Text]:
    if line.duplicate_of is not None:
        return [Text("duplicate", style="dim"), Text(f"of line {line.duplicate_of}: one run", style="dim")]
    if line.outcome is not None:
        return _cells(line.outcome)
    if line.dead_letter is not None:
        reason = line.dead_letter.reason
        return [Text("dead letter", style="magenta"), f"{reason.code}: {reason.message}"]
    return [Text("no outcome yet", style="red")]


def _cells(outcome: Outcome) -> list[str | Text]:
    usage, reason = outcome.usage, outcome.reason
    status = status_text(outcome.status.value)
    said = reason.code if outcome.status == "succeeded" else f"{reason.code}: {reason.message}"
    return [
        status,
        said,
        str(usage.steps),
        str(usage.tool_calls),
        f"{usage.tokens:,}",
        usd(round(usage.usd * 1_000_000)),
        duration(usage.wall_ms),
    ]
