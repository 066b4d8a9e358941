"""The person: looks for runs that were escalated, as `triptych runs` does, and lets them go on.

A run in doubt is told that its letter counts as posted; any other is resumed, with more of everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter

import aiokafka
import asyncpg
from aiokafka.errors import KafkaError

from triptych_chaos.client import within
from triptych_chaos.history import History
from triptych_chaos.services import PREFIX

PATIENCE_S = 15.0
"""A command is given again, under the same id, when it has changed nothing for so long."""
_INTERVAL_S = 2.0
_EXTEND = {"tool_calls": 20, "tokens": 60_000, "usd": 1.0, "wall_ms": 240_000}
_ESCALATED = """
select run_id::text, task_id, partition, reason_code, reason_message, updated_at::text
from executor.runs where status = 'escalated'
"""


class Approver:
    """Answers escalations for ever."""

    def __init__(self, kafka: str, dsn: str, history: History) -> None:
        self.answered: Counter[str] = Counter()
        """By reason code, how many escalations were answered."""
        self._kafka, self._dsn, self._history = kafka, dsn, history
        self._told_at: dict[str, float] = {}

    async def work(self) -> None:
        while True:
            with contextlib.suppress(KafkaError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await within(30.0, self._work_once())
            await asyncio.sleep(_INTERVAL_S)

    async def _work_once(self) -> None:
        await self._answer(await self._escalated())

    async def _escalated(self) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._dsn, timeout=5)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(_ESCALATED, timeout=10)
            return rows
        finally:
            await connection.close(timeout=5)

    async def _answer(self, escalated: list[asyncpg.Record]) -> None:
        now = time.monotonic()
        due = [row for row in escalated if now - self._told_at.get(_command_id(row), -PATIENCE_S) >= PATIENCE_S]
        if not due:
            return
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=self._kafka, acks="all", request_timeout_ms=10_000)
        try:
            await producer.start()
            for row in due:
                await self._tell(producer, row)
        finally:
            await producer.stop()

    async def _tell(self, producer: aiokafka.AIOKafkaProducer, row: asyncpg.Record) -> None:
        command_id, run_id, code = _command_id(row), row["run_id"], row["reason_code"]
        is_doubt = code == "in_doubt"
        what = (
            {"action": "skip", "data": {"ticket_id": run_id}} if is_doubt else {"action": "resume", "extend": _EXTEND}
        )
        command = {"command_id": command_id, "run_id": run_id, "principal": "user:approver", **what}
        await producer.send_and_wait(
            f"{PREFIX}.control", json.dumps(command).encode(), key=run_id.encode(), partition=row["partition"]
        )
        if command_id not in self._told_at:
            self.answered[code] += 1
        self._told_at[command_id] = time.monotonic()
        self._history.write(
            "command",
            task=row["task_id"],
            run=run_id,
            action=what["action"],
            command=command_id,
            reason=code,
            message=row["reason_message"],
        )


def _command_id(row: asyncpg.Record) -> str:
    """Return one id for each state of a run, so that a repeated command is the same command."""
    return f"approver:{row['run_id']}:{row['updated_at']}"
