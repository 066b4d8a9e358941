"""`triptych cancel|resume|skip|abort`: a person's command to one run, or to all that fit a filter.

A command is published to the run's own partition. The answer is read from the journal, so
that the answer on the terminal is the executor's and not a guess.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import ValidationError

from triptych.client import Address, Client, JournalEntry, Operator, RunFilter, RunOverError, RunRow
from triptych.client.operator import OPEN_STATUSES
from triptych.commands.common.bulk import MAX_RUNS, command_many
from triptych.commands.common.filters import Filters
from triptych.commands.common.options import (
    DEFAULT_DATA,
    AsJson,
    DataDir,
    Kafka,
    Postgres,
    Prefix,
    broker,
    database,
    wrong_option,
)
from triptych.commands.common.output import err, out, print_json
from triptych.operator.command_answers import wait_for_answers
from triptych.schemas import Control, ControlAction

_ANSWER_TIMEOUT_S = 15.0
_ESCALATED = ("escalated",)

RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="A run id, the beginning of one, or a task id; or else filters.", show_default=False
    ),
]
Note = Annotated[str, typer.Option(help="Why; it is kept in the run's journal.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With filters: only show which runs fit.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="With filters: do not ask.")]


@dataclass(frozen=True, slots=True)
class Where:
    """Which stack is meant, and how it is answered."""

    data: DataDir = DEFAULT_DATA
    kafka: Kafka = None
    prefix: Prefix = None
    postgres: Postgres = None
    as_json: AsJson = False

    @property
    def servers(self) -> tuple[Address, str]:
        """The broker, and the DSN of the operator's database."""
        return broker(self.data, self.kafka, self.prefix), database(self.data, self.postgres)


@dataclass(frozen=True, slots=True)
class Selection(Filters):
    """The runs to command when none is named: those that fit the filters."""

    dry_run: DryRun = False
    yes: Yes = False

    def wanted(self, action: ControlAction) -> RunFilter:
        """Return the filter, which lets through only runs that the action is for."""
        if replace(self, dry_run=False, yes=False) == Selection():
            raise typer.BadParameter(
                f"name a RUN, or say which by filters: triptych {action.value} --reason tool_unavailable"
            )
        possible = OPEN_STATUSES if action is ControlAction.CANCEL else _ESCALATED
        wanted = self.run_filter(limit=MAX_RUNS)
        if impossible := [each for each in wanted.statuses if each not in possible]:
            raise typer.BadParameter(
                f"--status {impossible[0]}: {action.value} is for runs that are {' or '.join(possible)}"
            )
        return wanted if wanted.statuses else replace(wanted, statuses=possible)


def command_runs(
    run: str | None, selection: Selection, where: Where, action: ControlAction, command: dict[str, Any]
) -> None:
    if run is None:
        wanted = selection.wanted(action)
        address, dsn = where.servers
        _check(action, command)
        dry_run, yes, as_json = selection.dry_run, selection.yes, where.as_json
        command_many(address, dsn, wanted, action, command, dry_run=dry_run, yes=yes, as_json=as_json)
    elif selection != Selection():
        raise typer.BadParameter("name one RUN, or give filters for many; not both")
    else:
        address, dsn = where.servers
        _report(asyncio.run(_send(address, dsn, run, action, command)), as_json=where.as_json)


def _check(action: ControlAction, command: dict[str, Any]) -> None:
    """Refuse a wrong option once, before anything is sent."""
    try:
        Control(command_id="check", run_id=UUID(int=0), action=action, **command)
    except ValidationError as error:
        raise wrong_option(error) from None


async def _send(
    address: Address, dsn: str, reference: str, action: ControlAction, command: dict[str, Any]
) -> tuple[RunRow, list[JournalEntry]]:
    """Send a command and wait for the events that answer it. None come when no executor answers in time."""
    async with Operator.connect(dsn) as operator, Client(address.kafka, address.topic_prefix) as client:
        run = await operator.run(reference)
        if run.finished_at is not None:
            raise RunOverError(run.run_id, run.status, action.value)
        try:
            command_id = await client.control(run.run_id, run.partition, action, **command)
        except ValidationError as error:
            raise wrong_option(error) from None
        answers = await wait_for_answers(operator, run.run_id, command_id, _ANSWER_TIMEOUT_S)
        return await operator.run(str(run.run_id)), answers


def _report(answered: tuple[RunRow, list[JournalEntry]], *, as_json: bool) -> None:
    run, answers = answered
    refusals = [entry.data["reason"]["message"] for entry in answers if entry.type == "CommandRefused"]
    if as_json:
        print_json({"run": run, "events": answers})
    elif not answers:
        err.print(f"run {run.run_id}: the command was sent, but no executor has answered it yet", style="yellow")
    elif refusals:
        err.print(f"run {run.run_id}: refused: {refusals[0]}", style="red", markup=False, soft_wrap=True)
    else:
        done = ", ".join(entry.type for entry in answers)
        out.print(f"run {run.run_id}: {done}; it is {run.status} now", soft_wrap=True)
    if refusals or not answers:
        raise typer.Exit(1)
