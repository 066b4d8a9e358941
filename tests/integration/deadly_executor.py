"""An executor that dies of records that say so, and whose database refuses those that say so."""

from __future__ import annotations

import os
import signal
from typing import Any

from triptych.executor.__main__ import serve
from triptych.executor.intake import Executor
from triptych.executor.settings import ExecutorSettings
from triptych.executor.store import ExecutorStore
from triptych.kernel.service import run
from triptych.kernel.settings import load_settings

read, commit = Executor.read, ExecutorStore.commit


def deadly_read(self: Executor, arrival: Any) -> Any:
    """Read a record, and die of a deadly one."""
    if b"DEADLY" in arrival.body:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"EXHAUSTING" in arrival.body:
        raise MemoryError
    if b"BOTTOMLESS" in arrival.body:
        raise RecursionError("maximum recursion depth exceeded")
    return read(self, arrival)


async def refused_commit(self: ExecutorStore, batch: Any) -> Any:
    """Commit a batch, unless it holds a task that stands for one that is over a limit of Postgres."""
    if any(batch.states[run_id].task_id.startswith("refused") for run_id in batch.created):
        await self._pool.execute("select repeat('x', 2000000000)")
    return await commit(self, batch)


ExecutorStore.commit = refused_commit  # type: ignore[method-assign]
Executor.read = deadly_read  # type: ignore[method-assign]

if __name__ == "__main__":
    run("executor", load_settings(ExecutorSettings), serve)
