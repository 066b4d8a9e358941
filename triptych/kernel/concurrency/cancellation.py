"""Tell a cancellation that this project asked for from one that a library let out.

aiokafka cancels tasks of its own when it closes or loses its broker, and the CancelledError reaches the code that waits
for them. `Fetcher.close` is such a place. Then asyncio takes a task that ends so for one that was told to end, and
reports nothing. So every wait for aiokafka is inside `foreign_cancellation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def foreign_cancellation() -> Iterator[None]:
    """Raise ConnectionAbortedError for a CancelledError that this task was not asked for."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionAbortedError("a library cancelled what it was asked for") from error
