"""Two stacks for the modules that kill, stop and fault them; each is expected to outlive whatever is done to it.

A module begins on a fresh one if a test failed since: what a failure leaves behind is nobody else's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from errands import Errands
from support_desk import SupportDesk


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupportDesk]:
    """The whole embedded stack, started and stopped from the command line."""
    desk = SupportDesk(tmp_path_factory.mktemp("desk"))
    desk.up()
    yield desk
    desk.down()


class Shared:
    """The stack of errands, as long as nothing has failed."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders, self._opened = folders, AsyncExitStack()
        self._errands: Errands | None = None
        self._failed = 0

    async def healthy(self, failed: int) -> Errands:
        """The stack of the module before, or a new one if more tests have failed meanwhile."""
        if self._errands is None or failed > self._failed:
            with contextlib.suppress(Exception):  # whatever it was, that test has told it
                await self.close()
            self._failed = failed
            self._errands = await self._opened.enter_async_context(Errands.started(self._folders.mktemp("errands")))
        return self._errands

    async def close(self) -> None:
        self._errands = None
        await self._opened.aclose()


@pytest.fixture(scope="session")
async def shared_errands(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    shared = Shared(tmp_path_factory)
    yield shared
    await shared.close()


@pytest.fixture(scope="module")
async def errands(request: pytest.FixtureRequest, shared_errands: Shared) -> Errands:
    """A stack with fail points, and errands to run through it."""
    errands = await shared_errands.healthy(request.session.testsfailed)
    errands.disarm()
    return errands
