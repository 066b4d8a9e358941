"""Virtual time: one queue of everything that is going to happen, and an event loop for each simulated process.

Within a process callbacks run in the order in which asyncio promises to run them. What varies is how long
anything outside takes, so every order of processes, messages and statements that can happen does happen.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import Future as _Future
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

App = Callable[[Any, Any, Any], Awaitable[None]]
"""Something that answers HTTP, as ASGI has it."""
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The wall clock at virtual second 0."""


class Scheduler:
    """What happens when, in seconds of virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = count()
        self.task_number = count()
        self.token_number = count()

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._queue, (max(when, self.now), next(self._number), action, args))

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._number), action, args))

    def run_while(self, is_wanted: Callable[[], bool]) -> None:
        """Let one thing after the other happen, until no more is wanted or nothing will ever happen again."""
        queue, take = self._queue, heapq.heappop
        while queue and is_wanted():
            self.now, _, action, args = take(queue)
            action(*args)


class Handle:
    """A callback that waits for its turn."""

    __slots__ = ("_when", "args", "callback", "context", "is_cancelled")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        when: float = 0.0,
    ) -> None:
        self.callback, self.args, self._when = callback, args, when
        self.context = contextvars.copy_context() if context is None else context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self._when


class Task(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks have the same order in every run."""

    def __init__(self, coro: Any, *, loop: ProcessLoop, number: int, name: str | None, context: Any) -> None:
        self._number = number
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one life of one process. It runs whenever something is ready, unless paused."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._ready: deque[Handle] = deque()
        self._is_running = self._is_due = False
        self._tasks: list[asyncio.Task[Any]] = []
        self.is_paused = self.is_closed_down = False
        self.skew_s = 0.0
        """How far this process's wall clock is ahead."""
        self.app: App | None = None
        """What answers HTTP here, while it does."""
        self.errors: list[str] = []
        self.on_death: Callable[[], None] | None = None
        """What happens when the process dies in the middle of its own code."""

    def die(self) -> None:
        """End this process here and now. Raises CancelledError: nothing of it goes on."""
        if self.on_death is not None:
            self.on_death()
        raise asyncio.CancelledError

    def token(self) -> str:
        """Make a unique value that is not secret."""
        return f"token-{next(self._scheduler.token_number)}"

    def wall_clock(self) -> datetime:
        return EPOCH + timedelta(seconds=self._scheduler.now + self.skew_s)

    # --- what asyncio asks of a loop --------------------------------------------------------------

    def time(self) -> float:
        return self._scheduler.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task = Task(coro, loop=self, number=next(self._scheduler.task_number), name=name, context=context)
        self._tasks.append(task)
        return task

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args, context)
        self._ready.append(handle)
        if not self._is_running and not self._is_due and not self.is_paused:
            self._is_due = True
            self._scheduler.after(0.0, self.run_ready)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self._scheduler.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        if self.is_closed_down:  # nothing waits in a process that is gone
            return self.call_soon(callback, *args, context=context)
        handle = Handle(callback, args, context, when)
        self._scheduler.at(when, self._ring, handle)
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.is_closed_down:
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    # --- what drives it ---------------------------------------------------------------------------

    def _ring(self, handle: Handle) -> None:
        if handle.is_cancelled or self.is_closed_down:
            return
        self._ready.append(handle)
        self.run_ready()

    def resolve(self, future: asyncio.Future[Any], result: Any) -> None:
        """Give a future that something outside answers its result, and let the process go on."""
        if future.done() or self.is_closed_down:
            return
        self._is_due = True  # it runs below: what the future wakes up need not see to that
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
        self.run_ready()

    def run_ready(self) -> None:
        """Run until nothing is ready."""
        self._is_due = False
        if self._ready and not self.is_paused and not self.is_closed_down:
            self._run()

    def _run(self) -> None:
        self._is_running = True
        _set_running_loop(self)
        ready = self._ready
        try:
            while ready:
                handle = ready.popleft()
                if not handle.is_cancelled:
                    handle.context.run(handle.callback, *handle.args)
        finally:
            self._is_running = False
            _set_running_loop(None)

    def close_down(self) -> None:
        """End the process. What its tasks still do while they end has no effect."""
        self.is_closed_down = True
        for _ in range(20):
            open_tasks = [task for task in self._tasks if not task.done()]
            if not open_tasks:
                break
            for task in open_tasks:
                task.cancel()
            self._run()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False
            elif not task.cancelled():
                task.exception()
        self._tasks.clear()
        self._ready.clear()
