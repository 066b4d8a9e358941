"""Sends one command to many runs: a preview, a question, and the answer of each.

As for one run, the answer is read from the journal, and so is the executor's own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triptych.client import Address, Client, Operator, RunFilter, RunRow
from triptych.commands.common.output import err, name_text, out, print_json
from triptych.commands.runs import matching, runs_table
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.run_ids import CLOCKS_DIFFER_BY
from triptych.schemas import ControlAction

MAX_RUNS = 10_000
_AT_ONCE = 100
_SHOWN = 20
_PATIENCE_S = 15.0
"""The wait ends when no command of a batch is answered for so long."""
_POLL_S = 0.1


@dataclass(slots=True)
class BatchResult:
    """The answers to a command, run by run."""

    done: list[UUID] = field(default_factory=list)
    refused: dict[UUID, str] = field(default_factory=dict)
    over: list[UUID] = field(default_factory=list)
    """Runs that had ended by then."""
    unanswered: list[UUID] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not (self.refused or self.unanswered)


def command_many(
    address: Address,
    dsn: str,
    wanted: RunFilter,
    action: ControlAction,
    command: dict[str, Any],
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show which runs fit, ask, send the command to each, and report their answers."""
    found = asyncio.run(matching(dsn, wanted))
    if not as_json:
        _show(found, action)
    if dry_run or not found:
        if as_json:
            print_json({"dry_run": dry_run, "runs": found})
        return
    if not yes:
        _ask(len(found), action)
    # The oldest first, as they were published.
    result = asyncio.run(_send(address, dsn, found[::-1], action, command))
    if as_json:
        refused = [{"run_id": run_id, "why": why} for run_id, why in result.refused.items()]
        told = {"done": result.done, "refused": refused, "over": result.over, "unanswered": result.unanswered}
        print_json({"action": action, "runs": len(found), **told})
    else:
        _print_result(result, action)
    if not result.is_whole:
        raise typer.Exit(1)


def _show(found: Sequence[RunRow], action: ControlAction) -> None:
    if not found:
        err.print("no runs fit these filters")
        return
    err.print(runs_table(found[:_SHOWN]))
    more = f", and the newest {_SHOWN} are shown" if len(found) > _SHOWN else ""
    most = f"; there may be more: repeat it for what is older than {found[-1].run_id}" if len(found) == MAX_RUNS else ""
    err.print(f"{action.value}: {len(found)} runs{more}{most}", style="bold", soft_wrap=True)


def _ask(count: int, action: ControlAction) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{count} runs fit; give --yes to {action.value} them without a question")
    typer.confirm(f"{action.value} these {count} runs?", abort=True, err=True)


async def _send(
    address: Address, dsn: str, runs: Sequence[RunRow], action: ControlAction, command: dict[str, Any]
) -> BatchResult:
    result = BatchResult()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
    )
    async with Operator.connect(dsn) as operator, Client(address.kafka, address.topic_prefix) as client:
        with bar:
            shown = bar.add_task(action.value, total=len(runs))
            for first in range(0, len(runs), _AT_ONCE):
                portion = runs[first : first + _AT_ONCE]
                since = utc_now() - CLOCKS_DIFFER_BY
                ids = await asyncio.gather(
                    *(client.control(run.run_id, run.partition, action, **command) for run in portion)
                )
                sent = dict(zip((run.run_id for run in portion), ids, strict=True))
                await _answered(operator, sent, since, result, lambda by: bar.advance(shown, by))
    return result


async def _answered(
    operator: Operator, sent: dict[UUID, str], since: datetime, result: BatchResult, advance: Callable[[int], None]
) -> None:
    """Wait for the events that answer these commands."""
    open_ids = set(sent)
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_S
    while open_ids and loop.time() < until:
        for run_id, entry in await operator.command_answers(sorted(open_ids), list(sent.values()), since):
            if run_id not in open_ids:
                continue
            open_ids.discard(run_id)
            advance(1)
            until = loop.time() + _PATIENCE_S
            if entry.type == "CommandRefused":
                result.refused[run_id] = entry.data["reason"]["message"]
            else:
                result.done.append(run_id)
        if open_ids:
            await asyncio.sleep(_POLL_S)
    for run_id in sorted(open_ids):
        run = await operator.run(str(run_id))
        (result.unanswered if run.finished_at is None else result.over).append(run_id)


def _print_result(result: BatchResult, action: ControlAction) -> None:
    parts = [f"{len(result.done)} done"]
    parts += [f"{len(result.refused)} refused"] if result.refused else []
    parts += [f"{len(result.over)} were over by then"] if result.over else []
    parts += [f"{len(result.unanswered)} not answered by any executor yet"] if result.unanswered else []
    out.print(f"{action.value}: {', '.join(parts)}", soft_wrap=True)
    for run_id, why in list(result.refused.items())[:_SHOWN]:
        err.print(name_text(f"run {run_id}: refused: {why}"), style="red", soft_wrap=True)
    for run_id in result.unanswered[:_SHOWN]:
        err.print(f"run {run_id}: the command was sent, and not answered yet", style="yellow", soft_wrap=True)
