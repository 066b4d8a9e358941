"""`triptych cancel|resume|skip|abort`: a person's command to one run.

A command is published to the run's own partition. What came of it is read back from the journal, so
that the answer on the terminal is the executor's and not a guess.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from triptych.cli.options import (
    DEFAULT_DATA,
    AsJson,
    DataDir,
    Kafka,
    Postgres,
    Prefix,
    Principal,
    broker,
    database,
    principal_of,
    wrong_option,
)
from triptych.cli.output import err, out, print_json
from triptych.client import Address, Client, JournalEntry, Operator, RunOverError, RunRow
from triptych.schemas import ControlAction, codec

_ANSWER_TIMEOUT_S = 15.0
_POLL_S = 0.1

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id, the beginning of one, or a task id.")]
Note = Annotated[str, typer.Option(help="Why; it is kept in the run's journal.")]
BUDGETS = ("steps", "tool_calls", "tokens", "usd", "wall_ms", "replans")


def cancel(
    run: RunArgument,
    *,
    note: Note = "",
    principal: Principal = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run. What is under way is not waited for."""
    command = {"principal": principal_of(principal), "note": note}
    address, dsn = broker(data, kafka, prefix), database(data, postgres)
    _report(asyncio.run(_send(address, dsn, run, ControlAction.CANCEL, command)), as_json=as_json)


def resume(
    run: RunArgument,
    *,
    extend: Annotated[
        list[str] | None, typer.Option(metavar="BUDGET=AMOUNT", help="More of a budget, for example usd=0.5.")
    ] = None,
    note: Note = "",
    principal: Principal = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Take up an escalated run where it stopped, with fresh attempts."""
    command = {"principal": principal_of(principal), "note": note, "extend": amounts(extend or [])}
    address, dsn = broker(data, kafka, prefix), database(data, postgres)
    _report(asyncio.run(_send(address, dsn, run, ControlAction.RESUME, command)), as_json=as_json)


def skip(
    run: RunArgument,
    *,
    step: Annotated[str | None, typer.Option(help="The step; the one that stopped the run when left out.")] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="JSON", help="What the step is taken to have answered.")
    ] = None,
    note: Note = "",
    principal: Principal = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Treat a step of an escalated run as done, and go on."""
    command = {"principal": principal_of(principal), "note": note, "step": step, "data": _json(answer)}
    address, dsn = broker(data, kafka, prefix), database(data, postgres)
    _report(asyncio.run(_send(address, dsn, run, ControlAction.SKIP, command)), as_json=as_json)


def abort(
    run: RunArgument,
    *,
    note: Note = "",
    undo: Annotated[bool, typer.Option("--undo", help="Undo first what it has written, the latest first.")] = False,
    principal: Principal = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """End an escalated run as failed."""
    command = {"principal": principal_of(principal), "note": note, "undo": undo}
    address, dsn = broker(data, kafka, prefix), database(data, postgres)
    _report(asyncio.run(_send(address, dsn, run, ControlAction.ABORT, command)), as_json=as_json)


def amounts(pairs: list[str]) -> dict[str, float]:
    """`usd=0.5` and the like, as the command carries them."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, amount = pair.partition("=")
        if name not in BUDGETS:
            raise typer.BadParameter(f"--extend {pair}: there is no budget {name!r}; use {', '.join(BUDGETS)}")
        try:
            more = float(amount)
        except ValueError:
            more = 0.0
        if not 0 < more < math.inf:
            raise typer.BadParameter(f"--extend {pair}: write it as {name}=NUMBER, with a number above 0")
        found[name] = more
    return found


def _json(text: str | None) -> Any:
    try:
        return None if text is None else codec.decode(text)
    except codec.InvalidJson as error:
        raise typer.BadParameter(f"--answer: {error}") from None


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
        answers: list[JournalEntry] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                while not answers:
                    await asyncio.sleep(_POLL_S)
                    journal = await operator.journal(run.run_id)
                    answers = [entry for entry in journal if entry.data.get("command_id") == command_id]
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
