"""Waiting for outcomes in front of a person: a bar, the counts, and the newest outcomes, on standard error."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from triptych.client import Feed
from triptych.commands.common.output import STYLES, duration, err, status_text
from triptych.kernel.process.terminal_text import on_one_line
from triptych.operator.submission_report import SubmissionReport
from triptych.schemas import DeadLetter, Outcome

_NEWEST = 6
_GRACE_S = 3.0
"""How long to wait for the outcome of a task that is a dead letter: it has one if its id could be read."""


class Watch:
    """Shows a submission report as it fills. Context manager."""

    def __init__(self, report: SubmissionReport) -> None:
        self._report = report
        self._newest: deque[Text] = deque(maxlen=_NEWEST)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
        )
        self._task = self._bar.add_task("outcomes", total=len(report.runs))
        self._live = Live(self._shown(), console=err, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def add(self, message: Outcome | DeadLetter) -> None:
        """Take a message into account and show it."""
        if not self._report.add(message):
            return
        self._newest.append(_line(message))
        self._bar.update(self._task, completed=len(self._report.runs) - self._report.waiting)
        self._live.update(self._shown())

    def _shown(self) -> Group:
        counts = [
            Text.assemble((f"{count} {status}", STYLES.get(status, "")))
            for status, count in self._report.counts().items()
        ]
        return Group(*self._newest, self._bar, Text("  ").join(counts))


async def watch(feed: Feed, report: SubmissionReport, timeout_s: float) -> None:
    """Show progress until everything is settled.

    Raises:
        TimeoutError: `timeout_s` is over; the report holds what has come.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    with Watch(report) as shown:
        while not report.settled:
            patience = until if report.waiting else min(until, loop.time() + _GRACE_S)
            try:
                async with asyncio.timeout_at(patience):
                    shown.add(await anext(feed))
            except TimeoutError:
                if report.waiting:
                    raise
                return


def _line(message: Outcome | DeadLetter) -> Text:
    if isinstance(message, DeadLetter):
        place = f"{message.topic}[{message.partition}]@{message.offset}"
        return Text.assemble("  ", ("dead letter", "magenta"), on_one_line(f"  {place}  {message.reason.code}"))
    took = duration(message.usage.wall_ms)
    return Text.assemble(
        "  ", status_text(message.status.value), on_one_line(f"  {message.task_id}  {message.reason.code}  {took}")
    )
