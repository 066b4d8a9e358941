"""An executor process on a real broker and database, and the hands of a test that plays planner and tools."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

import triptych.executor
from triptych.contracts.compiled_contract import CompiledContract
from triptych.playbook.plans import PlanContext, make_plan
from triptych.schemas import (
    Compensation,
    Contract,
    Effect,
    FixedPlan,
    Limits,
    PlanRequest,
    ToolContracts,
    handoff_contract,
    topics,
)

ECHO = Contract(
    operation="echo.echo",
    description="Says it again.",
    arguments={"type": "object"},
    result={"type": "object"},
    effect=Effect.READ,
    timeout_ms=1_000,
)
WRITE = ECHO.model_copy(
    update={
        "operation": "echo.write",
        "effect": Effect.IDEMPOTENT,
        "compensate": Compensation(operation="echo.back", arguments={"of": "${{ data.value }}"}),
    }
)
BACK = ECHO.model_copy(update={"operation": "echo.back", "effect": Effect.IDEMPOTENT})
MIGRATIONS = Path(triptych.executor.__file__).with_name("migrations")


def announcement(*contracts: Contract) -> bytes:
    """What a tool says that it offers."""
    return ToolContracts(tool=contracts[0].tool, contracts=contracts).to_bytes()


def plan_of(raw: bytes, *contracts: Contract) -> dict[str, Any]:
    """The plan that an honest planner makes of a request for one with a fixed plan."""
    request = PlanRequest.model_validate_json(raw)
    offered = (*contracts, handoff_contract(request.handoffs, request.others))
    terms = PlanContext(
        offers={contract.operation: CompiledContract.of(contract) for contract in offered},
        max_steps=request.max_steps,
        retry=request.retry,
        revision=request.revision,
        known=request.known,
        others=request.others,
        limits=request.limits or Limits(),
    )
    assert isinstance(request.spec, FixedPlan)
    return json.loads(make_plan(request.spec.steps, terms).to_bytes())


class ExecutorHarness:
    """An executor process, and the test's own hands on the topics around it."""

    def __init__(self, kafka: str, prefix: str, dsn: str, playbooks: Path, log: Path) -> None:
        self.kafka, self.prefix, self.dsn, self.playbooks, self.log = kafka, prefix, dsn, playbooks, log
        self.contracts: tuple[Contract, ...] = ()
        self.operator_dsn = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: dict[str, list[dict[str, Any]]] = {}
        self.partitions: dict[str, list[int]] = {}
        self._answered: set[str] = set()
        """Requests that a test has answered: one that is published again does not stand for the next run's."""

    def start(
        self, instance: str = "executor-1", program: tuple[str, ...] = ("-m", "triptych.executor"), **settings: str
    ) -> subprocess.Popen[bytes]:
        env = os.environ | {
            "TRIPTYCH_KAFKA": self.kafka,
            "TRIPTYCH_POSTGRES": self.dsn,
            "TRIPTYCH_TOPIC_PREFIX": self.prefix,
            "TRIPTYCH_INSTANCE": instance,
            "TRIPTYCH_PLAYBOOKS": str(self.playbooks),
            "TRIPTYCH_SESSION_TIMEOUT_MS": "6000",
            **{f"TRIPTYCH_{name.upper()}": value for name, value in settings.items()},
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, *program], env=env, stderr=log)
        return self.process

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def __aenter__(self) -> ExecutorHarness:
        self.producer = AIOKafkaProducer(bootstrap_servers=self.kafka)
        await self.producer.start()
        nouns = (topics.PLAN_REQUESTS, "calls.echo", topics.OUTCOMES, topics.DEAD_LETTERS, topics.ESCALATIONS)
        self.consumer = AIOKafkaConsumer(
            *(f"{self.prefix}.{noun}" for noun in nouns), bootstrap_servers=self.kafka, auto_offset_reset="earliest"
        )
        await self.consumer.start()
        self.reading = asyncio.create_task(self._read())
        await self.announce(ECHO, WRITE, BACK)
        return self

    async def announce(self, *contracts: Contract) -> None:
        """A tool says what it offers."""
        self.contracts += contracts
        await self.producer.send_and_wait(
            f"{self.prefix}.{topics.CONTRACTS}", announcement(*contracts), key=contracts[0].tool.encode(), partition=0
        )

    async def __aexit__(self, *_exc: object) -> None:
        self.reading.cancel()
        await self.consumer.stop()
        await self.producer.stop()
        if self.process and self.process.poll() is None:
            self.stop()

    async def _read(self) -> None:
        async for record in self.consumer:
            noun = record.topic.removeprefix(f"{self.prefix}.")
            message = json.loads(record.value) | {"_headers": dict(record.headers), "_raw": record.value}
            if noun in {topics.PLAN_REQUESTS, "calls.echo"} and message["request_id"] in self._answered:
                continue
            self.seen.setdefault(noun, []).append(message)
            self.partitions.setdefault(noun, []).append(record.partition)

    async def send(
        self, noun: str, value: bytes | dict[str, Any], partition: int | None = None, **headers: str
    ) -> None:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        await self.producer.send_and_wait(
            f"{self.prefix}.{noun}", raw, partition=partition, headers=[(k, v.encode()) for k, v in headers.items()]
        )

    def of(self, noun: str, **wanted: object) -> list[dict[str, Any]]:
        return [
            message for message in self.seen.get(noun, []) if all(message.get(name) == v for name, v in wanted.items())
        ]

    async def answer_plans(self) -> None:
        answers = []
        for request in self.seen.pop(topics.PLAN_REQUESTS, []):
            plan = plan_of(request["_raw"], *self.contracts)
            answers.append(self.send(topics.PLANS, self._reply(request) | {"plan": plan}, request["partition"]))
        await asyncio.gather(*answers)

    async def is_called(self) -> bool:
        """Play the planner, if it is asked, and tell whether a tool is asked; call it from a waiting condition."""
        await self.answer_plans()
        return bool(self.of("calls.echo"))

    async def answer_calls(self) -> None:
        answers = []
        for request in self.seen.pop("calls.echo", []):
            result = {"status": "ok", "data": request["arguments"]}
            answers.append(self.send(topics.RESULTS, self._reply(request) | {"result": result}, request["partition"]))
        await asyncio.gather(*answers)

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        self._answered.add(request["request_id"])
        return {name: request[name] for name in ("request_id", "run_id", "tenant")}

    async def work(self) -> None:
        """Play planner and tool once; call it from a waiting condition."""
        await self.answer_plans()
        await self.answer_calls()
