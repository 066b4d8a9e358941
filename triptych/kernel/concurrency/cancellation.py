"""Tells a cancellation that somebody asked for from one that a library let out.

aiokafka cancels tasks of its own when it closes or loses its broker, and the CancelledError reaches whoever waits
for them (`Fetcher.close` is such a place). A task that it ends is taken for one that was told to end: nobody
hears of it. Whatever waits for aiokafka stands in `foreign_cancellation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def foreign_cancellation() -> Iterator[None]:
    """Raises ConnectionAbortedError for a CancelledError that nobody has asked this task for."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionAbortedError("a library cancelled what it was asked for") from error
