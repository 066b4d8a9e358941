"""`python -m triptych_chaos`: strike a stack under load, check the result, and leave nothing running."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from triptych_chaos.errors import ChaosError
from triptych_chaos.history import History, recording
from triptych_chaos.nemesis import Order, run
from triptych_chaos.report import Report, show
from triptych_chaos.services import ROOT

_OUT = ROOT / ".triptych" / "chaos"
_SAY_EVERY_S = 15.0
_err = Console(stderr=True, highlight=False)


def chaos(
    *,
    minutes: Annotated[float, typer.Option(min=0.2, help="How long faults are injected.")] = 5.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same faults.")] = 1,
    rate: Annotated[float, typer.Option(min=0.1, help="New tasks a second.")] = 4.0,
    interval: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="Between two faults, on average.")] = 3.2,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the history and the report go.")] = _OUT,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data and the logs even if all is well.")] = False,
) -> None:
    """Strike a stack with a seeded sequence of faults, under constant load, and check every guarantee from outside."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # here the broker goes away all the time
    folder = (out / f"{seed}-{datetime.now(UTC):%Y%m%dT%H%M%S}").resolve()
    folder.mkdir(parents=True)
    order = Order(minutes, seed, rate, interval, _commit())
    try:
        with recording(folder / "history.jsonl") as history:
            report = _run(order, folder, history)
    except ChaosError as error:
        _err.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, asyncio.CancelledError):
        _err.print(f"Interrupted; nothing was checked. The history so far is in {folder}.")
        sys.exit(130)
    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n", "utf-8")
    console = Console(highlight=False)
    show(report, console if console.is_terminal else Console(highlight=False, width=160))
    if report.found.violations or keep:
        _err.print(f"The data and the logs are in {folder}.")
    else:
        for data in ("servers", "stack"):
            shutil.rmtree(folder / data)
    _err.print(f"Written: {folder / 'report.json'} and {folder / 'history.jsonl'}")
    sys.exit(1 if report.found.violations else 0)


def _run(order: Order, folder: Path, history: History) -> Report:
    with Progress(TimeElapsedColumn(), TextColumn("{task.description}"), console=_err, transient=True) as progress:
        shown = progress.add_task("")
        said_at = -_SAY_EVERY_S

        def say(text: str) -> None:
            nonlocal said_at
            progress.update(shown, description=text)
            if not _err.is_terminal and time.monotonic() - said_at >= _SAY_EVERY_S:
                said_at = time.monotonic()
                _err.print(f"{datetime.now(UTC):%H:%M:%S}  {text}")

        return asyncio.run(_until_told_to_end(run(order, folder, history, say)))


async def _until_told_to_end(running: Coroutine[Any, Any, Report]) -> Report:
    """SIGTERM ends it in order, as SIGINT does anyway."""
    task = asyncio.ensure_future(running)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except BaseExceptionGroup as group:
        _, ours = group.split(lambda error: not isinstance(error, ChaosError))
        raise _first(ours or group) from None


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _commit() -> str:
    """Return the commit of the tree, with a `+` when the tree has changes. Empty outside of a repository."""
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=9"], capture_output=True, check=False
    )
    return described.stdout.decode().strip()


if __name__ == "__main__":
    typer.run(chaos)
