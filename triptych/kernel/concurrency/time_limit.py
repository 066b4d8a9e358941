"""A time limit that sets no timer before there is anything to wait for.

Most of what a worker does ends without waiting; a timer for each request would cost more than the work. Nothing that
runs without waiting is ever cut off, as with any limit in asyncio.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class TimeLimit:
    """How long one piece of work may take."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout: asyncio.Timeout | None = None

    async def hold(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Return the result of `work`; raise TimeoutError when it takes too long. Its own exceptions go through."""
        try:
            waits_for = work.send(None)
        except StopIteration as done:
            result: ResultT = done.value
            return result
        self._timeout = asyncio.timeout(self._limit_s)
        async with self._timeout:
            return await _go_on(work, waits_for)

    def expired(self) -> bool:
        """Return whether the work was cut off."""
        return self._timeout is not None and self._timeout.expired()


@types.coroutine
def _go_on(work: Coroutine[Any, Any, ResultT], waits_for: Any) -> Generator[Any, Any, ResultT]:
    """Await a coroutine that waits already: what `await` does, from its second step on."""
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001 - a cancellation, too, is for the work to see
                waits_for = work.throw(error)
            else:
                waits_for = work.send(sent)
    except StopIteration as done:
        result: ResultT = done.value
        return result
