"""The last good answers of reads, for steps that may fall back on one when the upstream fails.

An answer is kept for its tenant, operation and arguments, and only where a playbook asks for it.
"""

from __future__ import annotations

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.kernel.process.log import Logger
from triptych.kernel.process.outage import POSTGRES_GONE
from triptych.schemas import codec
from triptych.schemas.result import ErrorCode, Result
from triptych.schemas.work import CallRequest
from triptych.tools.runtime.effect_ledger import arguments_hash
from triptych.tools.sdk.failure import ToolFailure

SQL = Queries.load("triptych.tools.runtime", "last_answers.sql")


class LastAnswers:
    """The answers of one tool. Without a pool none is kept."""

    def __init__(self, pool: asyncpg.Pool | None, log: Logger) -> None:
        self._pool, self._log = pool, log

    async def keep(self, request: CallRequest, result: Result) -> None:
        """Keep a good answer. The call has succeeded whether or not that works."""
        if self._pool is None:
            return
        try:
            await self._pool.execute(SQL["keep_answer"], *_key(request), result.to_bytes())
        except POSTGRES_GONE as error:
            self._log.warning("an answer could not be kept", operation=request.operation, error=repr(error))

    async def last(self, request: CallRequest, max_age_ms: int) -> Result:
        """Return the last good answer to the same call, with its age.

        Raises:
            ToolFailure: `unavailable`, when no answer was kept or it is too old.
        """
        row = None if self._pool is None else await self._pool.fetchrow(SQL["last_answer"], *_key(request))
        if row is None or row["age_ms"] > max_age_ms:
            age = "none was kept" if row is None else f"the last is {row['age_ms'] / 1_000:.0f} s old"
            message = f"{request.operation} has no answer to fall back on: {age}"
            raise ToolFailure(ErrorCode.UNAVAILABLE, message, undone=True)
        last = codec.read(Result, row["result"], limits=codec.STORED)
        return last.model_copy(update={"age_ms": max(0, round(row["age_ms"]))})

    async def prune(self) -> None:
        """Delete answers that are too old for any playbook."""
        if self._pool is not None:
            await self._pool.execute(SQL["prune_answers"])


def _key(request: CallRequest) -> tuple[str, str, str]:
    return request.tenant, request.operation, arguments_hash(request)
