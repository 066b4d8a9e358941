"""A worker that repeats what it is told, and its process, as far as it can be one inside a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ends import Ends

from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker import JobAttempt, WorkerConfig, run_worker
from triptych.schemas import CallAnswer, CallRequest, ErrorCode, Request, Result, Spend, ToolError
from triptych.schemas.base import Answer

SCHEMA = "tool_echo"
CONFIG = WorkerConfig(
    request_noun="calls.echo",
    answer_noun="results",
    answer_type="triptych.result",
    group="tool-echo",
    concurrency=8,
    lease_ms=1_500,
)

Act = Callable[[CallRequest, JobAttempt], Awaitable[None]]


@dataclass
class Parrot:
    """A worker that repeats what it is told, after whatever a test wants to happen first."""

    request_type = CallRequest
    act: Act | None = None
    only_reads: bool = False
    """Whether its requests may be repeated."""
    attempts: list[tuple[str, JobAttempt]] = field(default_factory=list)

    async def execute(self, request: CallRequest, attempt: JobAttempt) -> CallAnswer:
        self.attempts.append((request.request_id, attempt))
        if self.act is not None:
            await self.act(request, attempt)
        return self._answer(request, Result.ok(request.arguments["value"]), Spend())

    def failed(self, request: Request, error: ToolError, spend: Spend) -> CallAnswer:
        return self._answer(request, Result.failed(error.code, error.message), spend)

    def unstorable(self, request: Request, answer: Answer, message: str) -> CallAnswer:
        return self._answer(request, Result.failed(ErrorCode.CONTRACT_VIOLATION, message), answer.spend)

    def may_repeat(self, _request: CallRequest) -> bool:
        return self.only_reads

    def attempts_of(self, one: CallRequest) -> list[JobAttempt]:
        return [attempt for request_id, attempt in self.attempts if request_id == one.request_id]

    @staticmethod
    def _answer(request: CallRequest, result: Result, spend: Spend) -> CallAnswer:
        return CallAnswer(
            request_id=request.request_id, run_id=request.run_id, tenant=request.tenant, spend=spend, result=result
        )


@dataclass
class Gate:
    """Holds attempts until it is opened."""

    opened: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _request: CallRequest, _attempt: JobAttempt) -> None:
        self.entered.set()
        await self.opened.wait()


@dataclass
class Process:
    """A worker process, as far as it can be one inside a test."""

    service: Service
    task: asyncio.Task[None]

    async def die(self) -> None:
        """End without handing anything back, as kill -9 would."""
        # aiokafka leaks what it was just opening when it is cancelled; a dead process leaks nothing.
        while await self.service.health.unready():  # noqa: ASYNC110 - health has no event to wait for
            await asyncio.sleep(0.01)
        self.task.cancel()
        await asyncio.wait({self.task})


async def ask_again(ends: Ends, process: Process, one: CallRequest, eventually: Any) -> None:
    """Ask the same once more, and wait until the process has dropped it."""
    await ends.ask(one)
    await eventually(lambda: process.service.health.counters.get("duplicates") == 1)


@asynccontextmanager
async def running(
    ends: Ends, worker: Parrot, config: WorkerConfig = CONFIG, *, instance: str = "one", **options: object
) -> AsyncIterator[Process]:
    settings = ends.settings.model_copy(update={"instance": instance})
    log = configure_logging("error", "console", instance=instance)
    service = Service("tool-echo", log, Health("tool-echo", instance), asyncio.Event())
    task = asyncio.create_task(run_worker(service, settings, worker, config, pool=ends.pool, **options))
    try:
        yield Process(service, task)
    finally:
        service.stopping.set()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


def settings_of(kafka: str, database: Any, prefix: str) -> ServiceSettings:
    """What a parrot is started with, on a schema that is made for it."""
    return ServiceSettings(
        kafka=kafka,
        postgres=database.prepare({SCHEMA: (WORKER,)}).services[SCHEMA],
        topic_prefix=prefix,
        shutdown_timeout_ms=3_500,
        inline_max_bytes=1_024,
        session_timeout_ms=6_000,
    )
