"""`triptych submit`: publish tasks, and wait for their outcomes if asked to."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from triptych.client import Address, Client
from triptych.commands.common.exit_codes import of_statuses
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Kafka, Prefix, broker, wrong_option
from triptych.commands.common.outcome_table import submission_json, submission_table
from triptych.commands.common.output import err, name_text, out, print_json
from triptych.commands.common.progress import watch
from triptych.kernel.errors import TriptychError
from triptych.operator.submission_report import SubmissionReport, lines_of
from triptych.schemas import Task, codec


class OutcomesPendingError(TriptychError):
    """Some tasks have no outcome in time."""

    def __init__(self, waiting: int, timeout_s: float) -> None:
        self.waiting, self.timeout_s = waiting, timeout_s
        super().__init__(f"{waiting} without an outcome after {timeout_s:g} s; they go on: see `triptych runs`")


def submit(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.jsonl", help="One task a line, published as it is; - reads stdin.")
    ] = None,
    *,
    playbook: Annotated[str | None, typer.Option(help="The playbook of a single task.")] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="JSON|@FILE", help="The input of a single task.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="The tenant of a single task.")] = "default",
    principal: Annotated[str, typer.Option(help="On whose behalf a single task is done.")] = "anonymous",
    task_id: Annotated[str | None, typer.Option(help="Makes a single task idempotent within its tenant.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcomes and show them.")] = False,
    timeout_s: Annotated[float, typer.Option(min=0, help="How many seconds to wait.")] = 300,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Publish tasks: the lines of a file as they are, or one task made of --playbook and --input."""
    if (file is None) == (playbook is None):
        raise typer.BadParameter("give either FILE.jsonl, or --playbook and --input")
    if file is not None:
        values = lines_of(_read(file))
        if not values:
            raise typer.BadParameter(f"{file} has no lines")
    else:
        values = {1: _task(playbook or "", input_, tenant, principal, task_id)}
    report = asyncio.run(_submit(broker(data, kafka, prefix), values, timeout_s if wait else None))
    if as_json:
        print_json(submission_json(report))
    elif wait:
        out.print(submission_table(report))
    else:
        err.print(f"published {len(report.lines)}; `triptych outcomes --follow` shows their outcomes")
        for line in report.runs:
            if line.key:
                out.print(name_text(line.key[1]))
    if wait and report.waiting:
        raise OutcomesPendingError(report.waiting, timeout_s)
    if wait:
        raise typer.Exit(of_statuses(line.status for line in report.runs))


async def _submit(address: Address, values: dict[int, bytes], timeout_s: float | None) -> SubmissionReport:
    """Publish, and wait for `timeout_s` unless it is None.

    The feed begins with the oldest outcomes, because a task that was submitted before has its outcome there.
    """
    async with Client(address.kafka, address.topic_prefix) as client:
        if timeout_s is None:
            return SubmissionReport.of(values, await client.submit_raw([*values.values()]))
        async with client.feed(dead_letters=True, from_start=True) as feed:
            report = SubmissionReport.of(values, await client.submit_raw([*values.values()]))
            with suppress(TimeoutError):  # the report says what is still waited for
                await watch(feed, report, timeout_s)
            return report


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error


def _task(playbook: str, input_: str | None, tenant: str, principal: str, task_id: str | None) -> bytes:
    try:
        return Task(
            playbook=playbook, input=_json(input_), tenant=tenant, principal=principal, task_id=task_id
        ).to_bytes()
    except ValidationError as error:
        raise wrong_option(error) from None


def _json(text: str | None) -> Any:
    if text is None:
        return {}
    content = _read(Path(text[1:])) if text.startswith("@") else text.encode()
    try:
        return codec.decode(content)
    except codec.InvalidJson as error:
        raise typer.BadParameter(f"--input: {error}") from None
