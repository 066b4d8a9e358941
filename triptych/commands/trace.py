"""`triptych trace`: the whole story of one run, in order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from triptych.client import JournalEntry, Operator, RunRow, StepRow
from triptych.commands.common.branches import folded, folded_steps, with_branches
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.commands.common.output import (
    duration,
    is_narrow,
    local_time,
    name_text,
    out,
    print_json,
    status_text,
    usd,
)
from triptych.commands.common.story import StepCost, StoryLine, render_story
from triptych.kernel.process.terminal_text import on_one_line

_COLOURS = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta", "bright_blue")
_VALUE_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that is known of a run."""

    run: RunRow
    budgets: dict[str, Any]
    steps: list[StepRow]
    children: list[RunRow]
    events: list[JournalEntry]


def trace(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id, the beginning of one, or a task id.")],
    *,
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    full: Annotated[bool, typer.Option("--full", help="Show long values whole.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell the whole story of a run: every event, request, answer, retry and cost, in order."""
    found = asyncio.run(_read(database(data, postgres), run))
    if as_json:
        print_json(found)
        return
    story = render_story(found.events, None if full else _VALUE_WIDTH)
    _print_header(found)
    _print_timeline(story.lines if full else folded(story.lines), found.run.started_at)
    _print_steps(folded_steps(found.steps), with_branches(story.costs))


async def _read(dsn: str, reference: str) -> Trace:
    async with Operator.connect(dsn) as operator:
        run = await operator.run(reference)
        return Trace(
            run,
            await operator.budgets(run),
            await operator.steps(run.run_id),
            await operator.children(run.run_id),
            await operator.journal(run.run_id),
        )


def _print_header(found: Trace) -> None:
    run, budgets = found.run, found.budgets
    wall_ms = ((run.finished_at or run.updated_at) - run.started_at).total_seconds() * 1000
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    status = status_text(run.status)
    if run.reason_code:
        status = Text.assemble(status, on_one_line(f"  {run.reason_code}: {run.reason_message}"))
    table.add_row("run", Text(str(run.run_id), style="bold"))
    table.add_row("status", status)
    table.add_row("task", name_text(f"{run.task_id}  (tenant {run.tenant}, for {run.principal})"))
    table.add_row("playbook", name_text(f"{run.playbook}@{run.playbook_version}, plan revision {run.revision}"))
    if run.parent_run_id:
        table.add_row("parent", Text(f"{run.parent_run_id}, whose budgets it draws on"))
    for number, child in enumerate(found.children):
        reason = on_one_line(f"  {child.reason_code}: {child.reason_message}") if child.reason_code else ""
        told = Text.assemble(str(child.run_id), on_one_line(f"  {child.playbook}  "), status_text(child.status), reason)
        table.add_row("" if number else "children", told)
    table.add_row("started", Text(f"{local_time(run.started_at)}, took {duration(wall_ms)}"))
    used = [
        _of("steps", str(run.steps_used), budgets.get("steps")),
        _of("tool calls", str(run.tool_calls), budgets.get("tool_calls")),
        _of("tokens", f"{run.tokens:,}", budgets.get("tokens")),
        _of("USD", usd(run.usd_micros), budgets.get("usd")),
        _of("replans", str(run.replans), budgets.get("replans")),
    ]
    table.add_row("used", Text(", ".join(used)))
    out.print(table)
    out.print()


def _of(name: str, amount: str, limit: float | None) -> str:
    return f"{name} {amount}" if limit is None else f"{name} {amount} of {limit:,}"


def _print_timeline(lines: list[StoryLine], start: datetime) -> None:
    """Print a line for each event. Colour and column tell steps apart that run side by side."""
    colours = cycle(_COLOURS)
    colour_of: dict[str, str] = {}
    wide = max((len(line.step) for line in lines), default=0)
    previous = ""
    for line in lines:
        colour = colour_of.setdefault(line.step, next(colours) if line.step else "white")
        name = "│".rjust(len(line.step)) if line.step and line.step == previous else line.step
        previous = line.step
        _print_line(line, start, name.ljust(wide), colour)
    out.print()


def _print_line(line: StoryLine, start: datetime, name: str, colour: str) -> None:
    offset = f"+{(line.at - start).total_seconds():.3f}s".rjust(10)
    _say(Text.assemble((offset, "dim"), "  ", (name, colour), "  "), Text(on_one_line(line.text), line.tone))
    for detail in line.details:
        _say(Text(" " * (len(offset) + len(name) + 7)), Text(on_one_line(detail), "dim"))


def _say(margin: Text, text: Text) -> None:
    """Print a line. What does not fit a terminal goes on below its beginning; in a file it stays one line, for grep."""
    if not out.is_terminal:
        out.print(margin + text, soft_wrap=True)
        return
    grid = Table.grid()
    grid.add_column(no_wrap=True, width=len(margin))
    grid.add_column(overflow="fold")
    grid.add_row(margin, text)
    out.print(grid)


def _print_steps(steps: list[StepRow], costs: dict[str, StepCost]) -> None:
    table = Table(box=None, header_style="dim", padding=(0, 1 if is_narrow() else 2, 0, 0))
    for heading in ("step", "operation", "status"):
        table.add_column(heading, overflow="fold")
    for heading in ("attempts", "time", "tokens", "USD"):
        table.add_column(heading, justify="right")
    for step in steps:
        cost = costs.get(step.step_id)
        took = (
            ""
            if not (step.started_at and step.finished_at)
            else duration((step.finished_at - step.started_at).total_seconds() * 1000)
        )
        status = status_text(step.status)
        if step.error_code:
            status = Text.assemble(status, f" ({step.error_code})")
        table.add_row(
            name_text(step.step_id),
            name_text(step.operation),
            status,
            str(step.attempts),
            took,
            f"{cost.tokens:,}" if cost else "",
            usd(cost.usd_micros) if cost else "",
        )
    for name in ("plan", "review"):
        if (cost := costs.get(name)) and name not in {step.step_id for step in steps}:
            table.add_row(
                f"({name})", "", "", str(cost.requests), "", f"{cost.tokens:,}", usd(cost.usd_micros), style="dim"
            )
    out.print(table)
