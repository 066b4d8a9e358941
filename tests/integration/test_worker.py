"""The worker loop on a real broker and a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import aiokafka
import asyncpg
import orjson
import pytest

from triptych.kernel import cloudevents
from triptych.kernel.database import connect
from triptych.kernel.health import Health
from triptych.kernel.log import configure_logging
from triptych.kernel.migrate import WORKER
from triptych.kernel.service import Service
from triptych.kernel.settings import ServiceSettings
from triptych.kernel.worker import JobAttempt, WorkerConfig, run_worker
from triptych.schemas import CallAnswer, CallRequest, ErrorCode, Grant, Result, Spend, ToolError

SCHEMA = "tool_echo"
CONFIG = WorkerConfig(
    request_noun="calls.echo",
    answer_noun="results",
    answer_type="triptych.result",
    group="tool-echo",
    concurrency=8,
    lease_ms=1_500,
)


def request(**changes: Any) -> CallRequest:
    fields: dict[str, Any] = {
        "request_id": f"r-{uuid4().hex[:12]}",
        "run_id": uuid4(),
        "tenant": "acme",
        "partition": 1,
        "deadline_at": datetime.now(UTC) + timedelta(seconds=60),
        "principal": "user:ana",
        "step": "say",
        "operation": "echo.echo",
        "arguments": {"value": "hello"},
        "attempt": 1,
        "idempotency_key": "k-1",
        "contract_hash": "0" * 16,
        "timeout_ms": 5_000,
    }
    return CallRequest(**fields | changes)


@dataclass
class Parrot:
    """A worker that repeats what it is told, when it is told."""

    request_type = CallRequest
    act: Callable[[CallRequest, JobAttempt], Awaitable[None]] | None = None
    seen: list[tuple[str, JobAttempt]] = field(default_factory=list)

    async def execute(self, request: CallRequest, attempt: JobAttempt) -> CallAnswer:
        self.seen.append((request.request_id, attempt))
        if self.act is not None:
            await self.act(request, attempt)
        return self._answer(request, Result.ok(request.arguments["value"]), Spend())

    def failed(self, request: CallRequest, error: ToolError, spend: Spend) -> CallAnswer:
        return self._answer(request, Result.failed(error.code, error.message), spend)

    @staticmethod
    def _answer(request: CallRequest, result: Result, spend: Spend) -> CallAnswer:
        return CallAnswer(
            request_id=request.request_id, run_id=request.run_id, tenant=request.tenant, spend=spend, result=result
        )


@dataclass
class Bench:
    """The two ends of a worker, and the table in between."""

    settings: ServiceSettings
    pool: asyncpg.Pool
    producer: aiokafka.AIOKafkaProducer
    answers: list[aiokafka.ConsumerRecord]
    dead: list[aiokafka.ConsumerRecord]

    async def ask(self, *requests: CallRequest, raw: bytes | None = None) -> None:
        topic = self.settings.topic(CONFIG.request_noun)
        for one in requests:
            await self.producer.send(topic, one.to_bytes(), key=str(one.run_id).encode(), partition=one.partition)
        if raw is not None:
            await self.producer.send(topic, raw, partition=0)
        await self.producer.flush()

    def answers_to(self, one: CallRequest) -> list[CallAnswer]:
        answers = [CallAnswer.model_validate_json(record.value) for record in self.answers if record.value != b"{}"]
        return [answer for answer in answers if answer.request_id == one.request_id]

    async def state(self, one: CallRequest) -> str | None:
        return await self.pool.fetchval("select state from jobs where request_id = $1", one.request_id)

    @asynccontextmanager
    async def running(
        self, worker: Parrot, config: WorkerConfig = CONFIG, instance: str = "one"
    ) -> AsyncIterator[Service]:
        settings = self.settings.model_copy(update={"instance": instance})
        log = configure_logging("warning", "console", instance=instance)
        service = Service("tool-echo", log, Health("tool-echo", instance), asyncio.Event())
        task = asyncio.create_task(run_worker(service, settings, worker, config, pool=self.pool))
        try:
            yield service
        finally:
            service.stopping.set()
            await task


@pytest.fixture(scope="module")
async def bench(servers, prefix, database, create_topics) -> AsyncIterator[Bench]:
    await create_topics(CONFIG.request_noun, CONFIG.answer_noun, "dead-letters")
    dsn = database.prepare({SCHEMA: (WORKER,)}).services[SCHEMA]
    settings = ServiceSettings(
        kafka=servers.kafka, postgres=dsn, topic_prefix=prefix, instance="one", shutdown_timeout_ms=4_000
    )
    pool = await connect(dsn, "test")
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=servers.kafka)
    await producer.start()
    bench = Bench(settings, pool, producer, [], [])
    consumer = aiokafka.AIOKafkaConsumer(
        settings.topic(CONFIG.answer_noun),
        settings.topic("dead-letters"),
        bootstrap_servers=servers.kafka,
        auto_offset_reset="earliest",
    )
    await consumer.start()

    async def collect() -> None:
        async for record in consumer:
            (bench.answers if record.topic.endswith("results") else bench.dead).append(record)

    collecting = asyncio.create_task(collect())
    yield bench
    collecting.cancel()
    await consumer.stop()
    await producer.stop()
    await pool.close()


async def test_each_request_is_answered_once_on_the_partition_of_its_run(bench, eventually):
    requests = [request(partition=number % 2) for number in range(50)]
    async with bench.running(Parrot()):
        await bench.ask(*requests)
        await eventually(lambda: all(bench.answers_to(one) for one in requests))
    for one in requests:
        (answer,) = bench.answers_to(one)
        assert answer.result == Result.ok("hello")
        assert answer.worker == "one"
        assert answer.started_at <= answer.finished_at
        assert await bench.state(one) == "published"
    record = next(record for record in bench.answers if requests[0].request_id.encode() in record.value)
    assert record.partition == requests[0].partition
    assert record.key == str(requests[0].run_id).encode()
    assert cloudevents.event_id(record.headers) == f"{requests[0].request_id}:answer"
