"""Two stacks for the modules that kill, stop and fault them; each must outlive every fault.

A module begins on a fresh one if a test failed since: what a failure leaves behind stays with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from crash_stack import CrashStack
from support_desk import SupportDesk


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupportDesk]:
    """Start the whole embedded stack from the command line, and stop it at the end."""
    desk = SupportDesk(tmp_path_factory.mktemp("desk"))
    desk.up()
    yield desk
    desk.down()


class Shared:
    """The stack of the modules that crash it, as long as nothing has failed."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders, self._opened = folders, AsyncExitStack()
        self._crash_stack: CrashStack | None = None
        self._failed = 0

    async def healthy(self, failed: int) -> CrashStack:
        """Return the stack of the module before, or a new one if more tests have failed meanwhile."""
        if self._crash_stack is None or failed > self._failed:
            with contextlib.suppress(Exception):  # the test that failed has reported it
                await self.close()
            self._failed = failed
            self._crash_stack = await self._opened.enter_async_context(
                CrashStack.started(self._folders.mktemp("crash_stack"))
            )
        return self._crash_stack

    async def close(self) -> None:
        self._crash_stack = None
        await self._opened.aclose()


@pytest.fixture(scope="session")
async def shared_crash_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    shared = Shared(tmp_path_factory)
    yield shared
    await shared.close()


@pytest.fixture(scope="module")
async def crash_stack(request: pytest.FixtureRequest, shared_crash_stack: Shared) -> CrashStack:
    """Give a stack with fail points, and runs to send through it."""
    crash_stack = await shared_crash_stack.healthy(request.session.testsfailed)
    crash_stack.disarm()
    return crash_stack
