"""Alerts about a tool's upstream: collected without waiting, and written as rows for operators.

To raise an alert never fails or delays a call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from uuid import UUID

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.kernel.process.log import Logger

WAITING_MAX = 100
"""The most rows that wait to be written. The log has the alerts that find no room."""

SQL = Queries.load("triptych.tools.runtime", "alerts.sql")


class Alerts:
    """What was seen to be wrong with the upstream, until it is written down."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._open: set[tuple[str, str]] = set()
        self._waiting: deque[tuple[str, tuple[object, ...]]] = deque()

    def open(self, operation: str, kind: str, message: str, run_id: UUID | None = None) -> None:
        """Raise an alert of a kind: `result` (a shape outside the contract), `probe` or `drift`."""
        self._log.error("alert", operation=operation, kind=kind, message=message)
        self._open.add((operation, kind))
        # An upstream says what it likes, and Postgres stores no NUL in text.
        self._put("raise_alert", operation, kind, message.replace("\0", "\ufffd"), run_id)

    def count(self, operation: str, kind: str, message: str, run_id: UUID | None = None) -> None:
        """Count something wrong that was let pass: the log has it once, and the row how often."""
        if (operation, kind) not in self._open:
            self._log.warning("alert", operation=operation, kind=kind, message=message)
        self._open.add((operation, kind))
        self._put("raise_alert", operation, kind, message.replace("\0", "\ufffd"), run_id)

    def close(self, operation: str, kind: str, *, always: bool = False) -> None:
        """Close an alert. `always`: also one that an earlier process has opened."""
        if always or (operation, kind) in self._open:
            self._open.discard((operation, kind))
            self._put("close_alert", operation, kind)

    def close_others(self, kind: str, still: Iterable[str]) -> None:
        """Close the alerts of this kind, except those of these operations."""
        self._put("close_others", kind, list(still))

    async def write(self, pool: asyncpg.Pool) -> None:
        """Write down what waits. What cannot be written now still waits."""
        while self._waiting:
            statement, values = self._waiting[0]
            await pool.execute(SQL[statement], *values)
            self._waiting.popleft()

    def _put(self, statement: str, *values: object) -> None:
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append((statement, values))
