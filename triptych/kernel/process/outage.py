"""Patience with a dependency that is gone for a while: wait longer each time, log only the turns.

A loop that meets an outage keeps its work and tries again. It never gives up, and never spins.
"""

from __future__ import annotations

import asyncio

import asyncpg
from aiokafka.errors import KafkaError

from triptych.kernel.errors import PublishFailed, StatementTooLarge
from triptych.kernel.process.log import Logger

POSTGRES_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
    OSError,
)
"""What asyncpg raises when the server is away, restarting, out of reach, or has no room: no disk, no memory, no
connection. A timeout is an OSError too; an error within the client ends its connection, as when the server goes away
between two parts of a statement."""

_CONTENT = (
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.WithCheckOptionViolationError,
    asyncpg.RaiseError,
    asyncpg.ConfigurationLimitExceededError,
    StatementTooLarge,
    UnicodeError,
    OverflowError,
)
_TOO_LARGE_TO_HOLD = ("invalid memory alloc request size", "enlarge string buffer")
_MALFORMED = ("invalid message length", "invalid message format", "left in message", "invalid string in message")
"""What Postgres says of a message that it cannot read. A pooler uses the same SQLSTATE, 08P01, for every outage."""


def is_refusal(error: BaseException) -> bool:
    """Return whether Postgres, or its client, refuses a statement for its content: waiting changes nothing then.

    Look at this first: some of these are an outage by their class alone.
    """
    if isinstance(error, asyncpg.PostgresError) and any(text in str(error) for text in _TOO_LARGE_TO_HOLD):
        return True
    if isinstance(error, asyncpg.ProtocolViolationError):
        return any(text in str(error) for text in _MALFORMED)
    return isinstance(error, _CONTENT)


KAFKA_GONE = (KafkaError, PublishFailed, OSError)

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0


class Outage:
    """The state of one dependency as one loop sees it."""

    def __init__(self, log: Logger, dependency: str) -> None:
        self._log, self._dependency = log, dependency
        self._wait_s = 0.0

    async def wait(self, error: BaseException, *, unless: asyncio.Event) -> None:
        """Note a failure and wait before the next try; return immediately when `unless` is set."""
        if not self._wait_s:
            self._log.warning("dependency is gone; trying again", dependency=self._dependency, error=repr(error))
        self._wait_s = min(LONGEST_WAIT_S, self._wait_s * 2 or FIRST_WAIT_S)
        try:
            async with asyncio.timeout(self._wait_s):
                await unless.wait()
        except TimeoutError:
            return

    def over(self) -> None:
        """Note that the dependency answered."""
        if self._wait_s:
            self._wait_s = 0.0
            self._log.info("dependency is back", dependency=self._dependency)
