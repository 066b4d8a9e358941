"""The load: a plain Kafka client that keeps a number of runs in flight and counts their outcomes.

It is aiokafka and JSON, as any client in any language would be; nothing of Triptych's is used here.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any, Self

import aiokafka
from aiokafka.admin import AIOKafkaAdminClient

from triptych_bench.cases import FAN_OUT, Case, Fan
from triptych_bench.errors import NoOutcomeError, RunFailedError
from triptych_bench.figures import Window
from triptych_bench.stack import Stack

PATIENCE_S = 60.0
_POLL_MS = 1_000


class Load:
    """Runs in flight in one stack. Async context manager; one load at a time."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._tasks, self._outcomes = (f"{stack.topic_prefix}.{noun}" for noun in ("tasks", "outcomes"))
        self._producer = aiokafka.AIOKafkaProducer(bootstrap_servers=stack.kafka, acks="all", enable_idempotence=True)
        self._consumer = aiokafka.AIOKafkaConsumer(
            self._outcomes, bootstrap_servers=stack.kafka, group_id=None, isolation_level="read_committed"
        )
        self._partitions: list[aiokafka.TopicPartition] = []
        self._sent_at: dict[str, float] = {}
        self._playbook = ""
        self._input: dict[str, Any] = {}
        self._arrived_at = 0.0
        self.runs = 0
        """Runs that have ended since this was made."""
        self.steps = 0
        """The steps they had."""

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._consumer.start()
        await self._consumer.seek_to_end()
        self._partitions = await self._all_partitions()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.gather(self._producer.stop(), self._consumer.stop())

    async def hold(self, case: Case, *, settle_s: float, window_s: float, generations: int) -> Window:
        """Keep `case.in_flight` runs in flight, let it settle, count for a while, and see all of them out.

        It counts for at least `window_s` and at least `generations` outcomes for each run in flight.

        Raises:
            RunFailedError: a run did not succeed.
            NoOutcomeError: none has come for PATIENCE_S.
        """
        self._playbook, self._input = case.review.playbook, {}
        self._arrived_at = time.perf_counter()
        await self._publish(case.in_flight)
        await self._count(settle_s, case.in_flight)
        window = await self._count(window_s, generations * case.in_flight)
        while self._sent_at:
            await self._arrivals()
        return window

    async def fan_out(self, fan: Fan, branches: int) -> float:
        """Play runs that fan out until there were so many branches; how long it took, from first task to last outcome.

        Raises:
            RunFailedError: a run did not succeed, so some branch did not.
            NoOutcomeError: none has come for PATIENCE_S.
        """
        self._playbook, self._input = FAN_OUT, {"items": list(range(fan.branches))}
        to_come = branches // fan.branches
        began = time.perf_counter()
        while True:
            count = min(fan.in_flight - len(self._sent_at), to_come)
            await self._publish(count)
            to_come -= count
            if not self._sent_at:
                return self._arrived_at - began
            await self._arrivals()

    async def messages(self) -> int:
        """Count the records on all topics of the stack."""
        return sum((await self._consumer.end_offsets(self._partitions)).values())

    async def _all_partitions(self) -> list[aiokafka.TopicPartition]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._stack.kafka)
        try:
            await admin.start()
            described = await admin.describe_topics()
        finally:
            await admin.close()
        return [
            aiokafka.TopicPartition(topic["topic"], each["partition"])
            for topic in described
            for each in topic["partitions"]
            if topic["topic"].startswith(f"{self._stack.topic_prefix}.")
        ]

    async def _count(self, at_least_s: float, at_least_runs: int) -> Window:
        began = self._arrived_at
        latencies_ms: list[float] = []
        steps = 0
        while self._arrived_at - began < at_least_s or len(latencies_ms) < at_least_runs:
            ended = await self._arrivals()
            await self._publish(len(ended))
            latencies_ms += [latency_ms for latency_ms, _ in ended]
            steps += sum(used for _, used in ended)
        return Window(self._arrived_at - began, steps, latencies_ms)

    async def _publish(self, count: int) -> None:
        for _ in range(count):
            task_id = uuid.uuid4().hex
            self._sent_at[task_id] = time.perf_counter()
            task = json.dumps({"task_id": task_id, "playbook": self._playbook, "input": self._input})
            await self._producer.send(self._tasks, task.encode())

    async def _arrivals(self) -> list[tuple[float, int]]:
        """Return the latency and the steps of each of our runs that has ended, as soon as one has."""
        patient_until = time.perf_counter() + PATIENCE_S
        while time.perf_counter() < patient_until:
            polled = await self._consumer.getmany(timeout_ms=_POLL_MS)
            now = time.perf_counter()
            ended = [
                ((now - sent_at) * 1000, self._steps(outcome))
                for records in polled.values()
                for outcome in (json.loads(record.value) for record in records)
                if (sent_at := self._sent_at.pop(outcome["task_id"], None)) is not None
            ]
            if ended:
                self._arrived_at = now
                self.runs += len(ended)
                self.steps += sum(used for _, used in ended)
                return ended
        raise NoOutcomeError(self._playbook, len(self._sent_at), PATIENCE_S, self._stack.layout.logs)

    def _steps(self, outcome: dict[str, Any]) -> int:
        if outcome["status"] != "succeeded":
            raise RunFailedError(self._playbook, outcome["status"], outcome["reason"]["message"])
        return int(outcome["usage"]["steps"])
