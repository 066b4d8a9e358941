"""The two ends of a worker, for tests: requests go in by Kafka, answers and dead letters come out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiokafka
import asyncpg

from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker.jobs import InboundRequest
from triptych.schemas import CallAnswer, CallRequest


def call_request(operation: str = "echo.echo", **changes: Any) -> CallRequest:
    """A request that asks for one attempt, with more time to answer it than any test waits: a busy machine is slow."""
    fields: dict[str, Any] = {
        "request_id": f"r-{uuid4().hex[:12]}",
        "run_id": uuid4(),
        "tenant": "acme",
        "partition": 1,
        "deadline_at": datetime.now(UTC) + timedelta(hours=1),
        "principal": "user:ana",
        "step": "say",
        "operation": operation,
        "arguments": {"value": "hello"},
        "attempt": 1,
        "idempotency_key": f"k-{uuid4().hex[:12]}",
        "contract_hash": "0" * 16,
        "timeout_ms": 5_000,
    }
    return CallRequest(**fields | changes)


def inbound_of(one: CallRequest) -> InboundRequest:
    """A request as a worker has read it."""
    return InboundRequest(one.run_id, one.request_id, one.tenant, one.partition, one.to_bytes(), None, one.deadline_at)


@dataclass
class Ends:
    """Publishes requests and collects what comes back."""

    settings: ServiceSettings
    pool: asyncpg.Pool
    producer: aiokafka.AIOKafkaProducer
    answers: list[aiokafka.ConsumerRecord] = field(default_factory=list)
    others: list[aiokafka.ConsumerRecord] = field(default_factory=list)
    _read: list[CallAnswer | None] = field(default_factory=list, repr=False)
    """Each of `answers`, decoded once: many tests look again and again."""

    async def ask(self, *requests: CallRequest) -> None:
        """Publish requests to the tools that they are for, as the executor would."""
        for one in requests:
            topic = self.settings.topic(f"calls.{one.operation.partition('.')[0]}")
            await self.producer.send(topic, one.to_bytes(), key=str(one.run_id).encode(), partition=one.partition)
        await self.producer.flush()

    def answers_to(self, one: CallRequest) -> list[CallAnswer]:
        """All answers to a request so far, repeats included."""
        self._read += [
            CallAnswer.model_validate_json(record.value) if record.value != b"{}" else None
            for record in self.answers[len(self._read) :]
        ]
        return [answer for answer in self._read if answer is not None and answer.request_id == one.request_id]

    async def answer_to(self, one: CallRequest, *, within_s: float = 120.0) -> CallAnswer:
        """The first answer to a request."""
        async with asyncio.timeout(within_s):
            while not (answers := self.answers_to(one)):  # noqa: ASYNC110 - it is Kafka that signals, not us
                await asyncio.sleep(0.01)
        return answers[0]

    async def state(self, one: CallRequest) -> str | None:
        """The state of the request's job; `answered` also as long as a row in the outbox has its answer."""
        return await self.pool.fetchval(
            "select case when exists (select from outbox where stored_by = lease and stored_at = answered_at)"
            " then 'answered' else state end from jobs where request_id = $1",
            one.request_id,
        )


@asynccontextmanager
async def open_ends(settings: ServiceSettings, pool: asyncpg.Pool, *other_nouns: str) -> AsyncIterator[Ends]:
    """Connect to both ends; `other_nouns` are collected besides the results."""
    results = settings.topic("results")
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=settings.kafka)
    consumer = aiokafka.AIOKafkaConsumer(
        results,
        *map(settings.topic, other_nouns),
        bootstrap_servers=settings.kafka,
        auto_offset_reset="earliest",
    )
    ends = Ends(settings, pool, producer)

    async def collect() -> None:
        async for record in consumer:
            (ends.answers if record.topic == results else ends.others).append(record)

    async with producer, consumer:
        collecting = asyncio.create_task(collect())
        try:
            yield ends
        finally:
            collecting.cancel()
            await asyncio.wait({collecting})
