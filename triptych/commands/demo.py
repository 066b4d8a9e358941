"""`triptych demo`: the whole pipeline once, on the shipped support tickets, in front of a person.

It starts a stack of its own in a fresh data directory, so that it shows the same story each time, and
always stops it again.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from triptych.client import Client
from triptych.commands.common.options import DEFAULT_CONFIG, DEMO_CONFIG, AsJson, configuration
from triptych.commands.common.outcome_table import submission_json, submission_table
from triptych.commands.common.output import STYLES, duration, err, out, print_json, usd
from triptych.commands.common.progress import watch
from triptych.commands.common.stack import stop
from triptych.commands.up import up
from triptych.operator.submission_report import SubmissionReport, lines_of, total
from triptych.schemas import Outcome, OutcomeStatus

_DATA = Path(".triptych/demo")
_MARK = "made-by-triptych-demo"
"""A file in data directories that the demo made. It empties no other."""


def demo(
    *,
    data: Annotated[Path, typer.Option("--data", help="A directory for the demo alone; it is emptied.")] = _DATA,
    config: Annotated[Path, typer.Option(help="Which processes make the stack.")] = DEMO_CONFIG,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running.")] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="How many seconds to wait for outcomes.")] = 180,
    as_json: AsJson = False,
) -> None:
    """Start a stack, submit the shipped tickets, show their outcomes, and stop it again."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    values = lines_of(files("triptych.examples").joinpath("demo", "tickets.jsonl").read_bytes())
    _empty(data)
    stopped = False
    try:
        up(data=data, config=config)
        err.print(f"Submitting {len(values)} tickets")
        began = time.monotonic()
        report = asyncio.run(_submit(data, values, timeout_s))
        took_ms = (time.monotonic() - began) * 1000
        if as_json:
            print_json(submission_json(report))
        else:
            out.print(submission_table(report))
            out.print(_summary(report, took_ms))
            out.print(where_to_look_next(report, data, config, keep=keep), soft_wrap=True)
        stopped = not keep
    except BaseException:
        stopped = True
        raise
    finally:
        if stopped and (said := stop(data.resolve())):
            err.print(said)
    if report.waiting:
        err.print(f"{report.waiting} tickets have no outcome after {timeout_s:g} s", style="red")
        raise typer.Exit(1)


def _empty(data: Path) -> None:
    """Stop and remove what an earlier demo left, and make the directory again."""
    mark = data / _MARK
    if data.exists() and any(data.iterdir()):
        if not mark.exists():
            raise typer.BadParameter(f"{data} holds files that no demo wrote; give an empty directory with --data")
        if said := stop(data.resolve()):
            err.print(said)
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True)
    mark.touch()


async def _submit(data: Path, values: dict[int, bytes], timeout_s: float) -> SubmissionReport:
    client = Client.from_stack(data)
    async with client, client.feed(dead_letters=True) as feed:
        report = SubmissionReport.of(values, await client.submit_raw([*values.values()]))
        try:
            await watch(feed, report, timeout_s)
        except TimeoutError:
            err.print("time is up", style="red")
        return report


def _summary(report: SubmissionReport, took_ms: float) -> Text:
    calls, tokens, dollars = total(report.outcomes())
    duplicates = len(report.lines) - len(report.runs)
    text = Text(f"\n{len(report.lines)} lines in {duration(took_ms)}: ", style="bold")
    parts = [Text(f"{count} {status}", style=STYLES.get(status, "")) for status, count in report.counts().items()]
    if duplicates:
        parts.append(Text(f"{duplicates} duplicates (no second run)", style="dim"))
    text.append(Text(", ").join(parts))
    text.append(f"; {calls} tool calls, {tokens:,} tokens, {usd(round(dollars * 1_000_000))}")
    return text


def where_to_look_next(report: SubmissionReport, data: Path, config: Path, *, keep: bool) -> Text:
    """Name commands to paste: they show a run that met trouble, and one that a person has to see."""
    outcomes = report.outcomes()
    busy = max((o for o in outcomes if o.status is OutcomeStatus.SUCCEEDED), key=_attempts, default=None)
    stuck = next((o for o in outcomes if o.status is OutcomeStatus.ESCALATED), None)
    found: list[tuple[str, list[str]]] = []
    if not keep:
        named = [] if config == configuration(DEFAULT_CONFIG) else ["--config", str(config)]
        found.append(("the same stack again, with all it has done", ["up", *named]))
    if busy:
        found.append(("every request, answer, retry and cost of a run", ["trace", busy.task_id]))
    if stuck:
        found.append(("why a run waits for a person", ["trace", stuck.task_id]))
        found.append(("let it go on", ["resume", stuck.task_id]))
    found.append(("all that wait", ["runs", "--status", "escalated"]))
    found.append(("what travelled on each topic", ["topics"]))
    found.append(("stop it", ["down"]))
    text = Text("\nWhere to look next:\n", style="bold")
    for why, words in found:
        text.append(f"  {shlex.join([_program(), *words, '--data', str(data)])}", style="none")
        text.append(f"  # {why}\n", style="dim")
    return text


def _program() -> str:
    """Return how to call this program from here: by its name if that finds it, else by its path."""
    me = Path(sys.argv[0]).absolute()
    found = shutil.which(me.name)
    if found is not None and Path(found).absolute() == me:
        return me.name
    return os.path.relpath(me) if me.is_relative_to(Path.cwd()) else str(me)


def _attempts(outcome: Outcome) -> int:
    """Count how many more calls a run made than it had steps."""
    return outcome.usage.tool_calls - outcome.usage.steps
