"""Coverage gaps: what a plan wanted of tools and could not have, counted for the people who give agents tools.

Nothing is planned around a gap. Noting one never fails a plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.kernel.process.log import Logger
from triptych.kernel.process.outage import POSTGRES_GONE
from triptych.schemas import PlanRequest

CAPABILITY_MAX_CHARS = 200
WHY_MAX_CHARS = 1_000


class GapKind(StrEnum):
    UNKNOWN = "unknown"
    """No tool offers an operation of this name."""
    NOT_ALLOWED = "not_allowed"
    """A tool does; the playbook does not allow it."""
    MISSING = "missing"
    """The model says that the goal needs it."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that a plan wanted."""

    capability: str
    kind: GapKind
    why: str = ""


class Gaps(Protocol):
    """Where gaps are counted."""

    async def note(self, request: PlanRequest, gaps: Iterable[Gap]) -> None:
        """Count what this request's plan wanted."""
        ...


class PostgresGaps:
    """Counts in the planner's own schema."""

    def __init__(self, pool: asyncpg.Pool, log: Logger) -> None:
        self._pool, self._log = pool, log
        self._sql = Queries.load("triptych.planner", "gaps.sql")

    async def note(self, request: PlanRequest, gaps: Iterable[Gap]) -> None:
        unique = {gap.capability[:CAPABILITY_MAX_CHARS]: gap for gap in gaps}
        if not unique:
            return
        columns = zip(*((name, gap.kind.value, gap.why[:WHY_MAX_CHARS]) for name, gap in unique.items()), strict=True)
        about = (request.tenant, request.playbook, request.goal, request.run_id)
        try:
            await self._pool.execute(self._sql["note"], *about, *map(list, columns))
        except (asyncpg.UndefinedTableError, *POSTGRES_GONE) as error:
            self._log.warning("gaps could not be counted", gaps=sorted(unique), error=repr(error))
