"""The floor of the machine: the same broker, database and interpreter, with nothing of Triptych in between.

It works in a topic and a database of its own and leaves the services' alone.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Self

import aiokafka
import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from triptych_bench.figures import Floor
from triptych_bench.stack import Stack

BATCH_ROWS = 500
_DATABASE = "floor"
_TOPIC = "floor"
_VALUE = b"x" * 300
"""About as long as a message between services."""
_TABLE = "create table rows (run_id uuid, seq integer, type text, data jsonb, primary key (run_id, seq))"
_ONE = "insert into rows values ($1, 0, 'Measured', '{\"value\": 1}')"
_BATCH = "insert into rows select * from unnest($1::uuid[], $2::integer[], $3::text[], $4::jsonb[])"
_CALLS = 100_000
_COLUMNS = ["Measured"] * BATCH_ROWS, ['{"value": 1}'] * BATCH_ROWS


class _Counter:
    """What the interpreter is timed with: a call, an attribute, an object, as in any fold."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count

    def next(self) -> _Counter:
        return _Counter(self.count + 1)


class Ground:
    """Measures the floor of the machine that a stack stands on. Async context manager."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._producer = aiokafka.AIOKafkaProducer(bootstrap_servers=stack.kafka, acks="all", enable_idempotence=True)
        self._consumer = aiokafka.AIOKafkaConsumer(
            _TOPIC, bootstrap_servers=stack.kafka, group_id=None, isolation_level="read_committed"
        )
        self._connection: asyncpg.Connection[asyncpg.Record]
        self._run_ids = sorted(uuid.uuid4() for _ in range(BATCH_ROWS))
        self._batches = 0

    async def __aenter__(self) -> Self:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._stack.kafka)
        try:
            await admin.start()
            await admin.create_topics([NewTopic(name=_TOPIC, num_partitions=1, replication_factor=1)])
        finally:
            await admin.close()
        await self._producer.start()
        await self._consumer.start()
        await self._consumer.seek_to_end()
        first = await self._connect("postgres")
        await first.execute(f"create database {_DATABASE}")
        await first.close()
        self._connection = await self._connect(_DATABASE)
        await self._connection.execute(_TABLE)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.gather(self._producer.stop(), self._consumer.stop(), self._connection.close())

    async def measure(self, seconds: float) -> Floor:
        """Spend about a quarter of the time on each of the four."""
        each_s = seconds / 4
        hops_ms = await self._repeat(self._hop, each_s)
        commits_ms = await self._repeat(self._commit, each_s)
        batches_ms = await self._repeat(self._batch, each_s)
        calls_ms = await self._repeat(self._calls, each_s)
        await self._connection.execute("truncate rows")
        return Floor(
            hop_ms=statistics.median(hops_ms),
            commit_ms=statistics.median(commits_ms),
            batch_rows_per_s=BATCH_ROWS * 1000 / statistics.median(batches_ms),
            calls_ms=statistics.median(calls_ms),
        )

    async def _repeat(self, once: Callable[[], Awaitable[None]], seconds: float) -> list[float]:
        """Return how long each took, without the first, which may have to warm up."""
        await once()
        taken_ms: list[float] = []
        end = time.perf_counter() + seconds
        while not taken_ms or time.perf_counter() < end:
            began = time.perf_counter()
            await once()
            taken_ms.append((time.perf_counter() - began) * 1000)
        return taken_ms

    async def _hop(self) -> None:
        """Published with the safety that the services ask for, and read."""
        await self._producer.send(_TOPIC, _VALUE, partition=0)
        await self._consumer.getone()

    async def _commit(self) -> None:
        await self._connection.execute(_ONE, uuid.uuid4())

    async def _batch(self) -> None:
        """Write rows as the executor writes its journal: all rows of a batch in one statement."""
        self._batches += 1
        await self._connection.execute(_BATCH, self._run_ids, [self._batches] * BATCH_ROWS, *_COLUMNS)

    async def _calls(self) -> None:
        counter = _Counter(0)
        for _ in range(_CALLS):
            counter = counter.next()

    async def _connect(self, database: str) -> asyncpg.Connection[asyncpg.Record]:
        owner = self._stack.owner
        return await asyncpg.connect(
            host=owner.host, port=owner.port, user=owner.user, password=owner.password, database=database
        )
