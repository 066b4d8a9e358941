"""The queue in which jobs wait for one of the tasks that run them.

A task that finishes its job without waiting takes the next one itself, so a batch of a hundred quick jobs wakes two
tasks and not a hundred.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class JobQueue(Generic[ItemT]):
    """First in, first out, for as many tasks as call `take`."""

    def __init__(self) -> None:
        self._items: deque[ItemT] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._is_waking = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: ItemT) -> None:
        """Append an item."""
        self._items.append(item)
        self._wake_one()

    def clear(self) -> None:
        """Remove all items."""
        self._items.clear()

    async def take(self) -> ItemT:
        """Return the next item, as soon as there is one."""
        while not self._items:
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            try:
                await idle
            finally:
                if not idle.done() or idle.cancelled():
                    self._idle.remove(idle)
                else:
                    self._is_waking = False
        item = self._items.popleft()
        if self._items:
            # In case this task has to wait in the middle of its job.
            self._wake_one()
        return item

    def _wake_one(self) -> None:
        if self._idle and not self._is_waking:
            self._is_waking = True
            self._idle.popleft().set_result(None)
