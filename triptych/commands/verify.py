"""`triptych verify`: whether everything that a stack has written down agrees with itself."""

from __future__ import annotations

import asyncio
from itertools import groupby

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triptych.client.operator import operator_connection
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.commands.common.output import err, out, print_json
from triptych.operator.audit import Audit, Problem, audit


def verify(*, data: DataDir = DEFAULT_DATA, postgres: Postgres = None, as_json: AsJson = False) -> None:
    """Check that journals, projections, budgets, timers, jobs and receipts agree. It changes nothing."""
    found = asyncio.run(_audit(database(data, postgres)))
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


async def _audit(dsn: str) -> Audit:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("runs")
        async with operator_connection(dsn) as connection:
            return await audit(connection, lambda done, total: bar.update(task, completed=done, total=total))


def _show(found: Audit) -> None:
    """Print the problems run by run, then what was looked at."""
    problems = sorted(found.problems, key=_run_of)
    for run, group in groupby(problems, key=_run_of):
        out.print(f"[bold]{escape(run)}[/]")
        for problem in group:
            out.print(f"  [red]{problem.check}[/]  {escape(problem.message)}", soft_wrap=True)
    checked = found.checked
    out.print(
        f"{checked.runs:,} runs, {checked.events:,} events, {checked.steps:,} steps and the jobs of "
        f"{checked.worker_schemas} workers: "
        + (f"[red]{len(problems)} problems[/]" if problems else "[green]all agree[/]")
    )


def _run_of(problem: Problem) -> str:
    return f"{problem.run_id}" + (f"  task {problem.task_id}" if problem.task_id else "")
