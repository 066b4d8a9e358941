"""An executor that dies of records that say so, and whose database refuses those that say so."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime
from typing import Any

from triptych.executor.__main__ import serve
from triptych.executor.intake import Executor
from triptych.executor.machine import GivenUp, Tick
from triptych.executor.settings import ExecutorSettings
from triptych.executor.store import ExecutorStore
from triptych.kernel.process.service import run
from triptych.kernel.process.settings import load_settings

read, commit, apply, wake_at = Executor.read, ExecutorStore.commit, Executor.apply, Executor.wake_at


def deadly_read(self: Executor, inbound: Any) -> Any:
    """Read a record, and die of a deadly one."""
    if b"DEADLY" in inbound.body:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"EXHAUSTING" in inbound.body:
        raise MemoryError
    if b"BOTTOMLESS" in inbound.body:
        raise RecursionError("maximum recursion depth exceeded")
    return read(self, inbound)


def deadly_apply(self: Executor, state: Any, message: Any, *rest: Any, **named: Any) -> Any:
    """Follow a message, and die when the time of a deadly run has come."""
    name = state.task_id if state is not None else ""
    is_given_up = isinstance(message.content, GivenUp)
    if name.startswith("deadly-time") and (isinstance(message.content, Tick) or (is_given_up and "ever" in name)):
        os.kill(os.getpid(), signal.SIGKILL)
    return apply(self, state, message, *rest, **named)


def early(self: Executor, state: Any) -> Any:
    """The time of a deadly run has always come."""
    due_at = wake_at(self, state)
    return datetime(2026, 1, 1, tzinfo=UTC) if due_at is not None and "-time" in state.task_id else due_at


async def refused_commit(self: ExecutorStore, batch: Any) -> Any:
    """Commit a batch, unless it holds a task that stands for one that is over a limit of Postgres."""
    if any(batch.states[run_id].task_id.startswith("refused") for run_id in batch.created):
        await self._pool.execute("select repeat('x', 2000000000)")
    return await commit(self, batch)


ExecutorStore.commit = refused_commit  # type: ignore[method-assign]
Executor.read = deadly_read  # type: ignore[method-assign]
Executor.apply = deadly_apply  # type: ignore[method-assign]
Executor.wake_at = early  # type: ignore[method-assign]

if __name__ == "__main__":
    run("executor", load_settings(ExecutorSettings), serve)
