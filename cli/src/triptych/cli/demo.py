"""`triptych demo`: the whole pipeline once, on the shipped support tickets, in front of a person.

It starts a stack of its own in a fresh data directory, so that it shows the same story each time, and
stops it again whatever happens.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from triptych.cli.commands_stack import down, up
from triptych.cli.options import AsJson
from triptych.cli.outcome_table import tally_json, tally_table
from triptych.cli.output import STYLES, duration, err, out, print_json, usd
from triptych.cli.progress import watch
from triptych.cli.tally import Tally, lines_of, total
from triptych.client import Client
from triptych.schemas import Outcome, OutcomeStatus

_DATA = Path(".triptych/demo")
_MARK = "made-by-triptych-demo"
"""A file in data directories that the demo made. It empties no other."""


def demo(
    *,
    data: Annotated[Path, typer.Option("--data", help="A directory for the demo alone; it is emptied.")] = _DATA,
    config: Annotated[Path, typer.Option(help="Which processes make the stack.")] = Path("triptych.toml"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running.")] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="How many seconds to wait for outcomes.")] = 180,
    as_json: AsJson = False,
) -> None:
    """Start a stack, submit the shipped tickets, show what becomes of them, and stop it again."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    values = lines_of(files("triptych.examples").joinpath("tickets.jsonl").read_bytes())
    _empty(data)
    stopped = False
    try:
        up(data=data, config=config)
        err.print(f"Submitting {len(values)} tickets")
        began = time.monotonic()
        tally = asyncio.run(_submit(data, values, timeout_s))
        took_ms = (time.monotonic() - began) * 1000
        if as_json:
            print_json(tally_json(tally))
        else:
            out.print(tally_table(tally))
            out.print(_summary(tally, took_ms))
            out.print(_next(tally, data, keep=keep))
        stopped = not keep
    except BaseException:
        stopped = True
        raise
    finally:
        if stopped:
            down(data=data)
    if tally.waiting:
        err.print(f"{tally.waiting} tickets have no outcome after {timeout_s:g} s", style="red")
        raise typer.Exit(1)


def _empty(data: Path) -> None:
    """Stop and remove what an earlier demo left, and make the directory anew."""
    mark = data / _MARK
    if data.exists() and any(data.iterdir()):
        if not mark.exists():
            raise typer.BadParameter(f"{data} holds something that is no demo's; give an empty directory with --data")
        down(data=data)
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True)
    mark.touch()


async def _submit(data: Path, values: list[bytes], timeout_s: float) -> Tally:
    client = Client.from_stack(data)
    async with client, client.feed(dead_letters=True) as feed:
        tally = Tally.of(values, await client.submit_raw(values))
        try:
            await watch(feed, tally, timeout_s)
        except TimeoutError:
            err.print("time is up", style="red")
        return tally


def _summary(tally: Tally, took_ms: float) -> Text:
    calls, tokens, dollars = total(tally.outcomes())
    duplicates = len(tally.lines) - len(tally.runs)
    text = Text(f"\n{len(tally.lines)} lines in {duration(took_ms)}: ", style="bold")
    parts = [Text(f"{count} {status}", style=STYLES.get(status, "")) for status, count in tally.counts().items()]
    if duplicates:
        parts.append(Text(f"{duplicates} duplicates (no second run)", style="dim"))
    text.append(Text(", ").join(parts))
    text.append(f"; {calls} tool calls, {tokens:,} tokens, {usd(round(dollars * 1_000_000))}")
    return text


def _next(tally: Tally, data: Path, *, keep: bool) -> Text:
    """Where to look next: a run that met trouble and got through, and one that a person has to see."""
    option = f"--data {data}"
    lines = ["\nWhere to look next:"]
    if not keep:
        lines.append(f"  triptych up {option}                 the same stack again, with all it has done")
    outcomes = tally.outcomes()
    busy = max((o for o in outcomes if o.status is OutcomeStatus.SUCCEEDED), key=_attempts, default=None)
    stuck = next((o for o in outcomes if o.status is OutcomeStatus.ESCALATED), None)
    if busy:
        lines.append(f"  triptych trace {option} {busy.task_id}   every request, answer, retry and cost of a run")
    if stuck:
        lines.append(f"  triptych trace {option} {stuck.task_id}   why a run waits for a person")
        lines.append(f"  triptych resume {option} {stuck.task_id}  let it go on")
    lines.append(f"  triptych runs {option} --status escalated; triptych topics {option}; triptych status {option}")
    if keep:
        lines.append(f"  triptych down {option}")
    return Text("\n".join(lines))


def _attempts(outcome: Outcome) -> int:
    """How many more calls a run made than it had steps."""
    return outcome.usage.tool_calls - outcome.usage.steps
