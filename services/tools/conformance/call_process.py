"""One life of a tool's process, without Kafka: a request becomes a job, is attempted once, and is answered.

Inbox, lease, intent, receipt and answer are those of the service, in its tables. It ends as it is told to:
with an answer in a file, or by SIGKILL at a fail point.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from triptych.kernel import failpoints
from triptych.kernel.postgres import database
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.settings import load_settings
from triptych.kernel.worker import Connection, Finished, JobAttempt
from triptych.kernel.worker.jobs import InboundRequest, JobKey, Jobs
from triptych.schemas import codec
from triptych.schemas.result import Result
from triptych.schemas.work import CallAnswer, CallRequest
from triptych.tools.conformance.faults import InjectedFault, with_early_callback, with_fault
from triptych.tools.conformance.upstream import Callback, CallbackTiming, FakeUpstream
from triptych.tools.runtime.effect_ledger import PostgresEffectLedger
from triptych.tools.runtime.process import load_tool
from triptych.tools.sdk.call import Resources
from triptych.tools.sdk.tool import Tool
from triptych.tools.testing import worker_of

INSTANCE = "conformance"
LEASE_MS = 600_000
"""The next process has the same name, so it may take over immediately."""
TAKE_OVER_MAX = 10
_LOCK = 7_309
"""The advisory lock of a life that takes over, in the database of its check."""


@dataclass(frozen=True, slots=True)
class CallProcess:
    """What one process is to do."""

    reference: str
    path: str | None
    environment: dict[str, str]
    dsn: str
    request: bytes
    folder: Path
    """Where the answer goes, and where fail points are armed."""
    fault: InjectedFault | None = None
    die_at: str | None = None
    callback: Callback | None = None
    """What the upstream of the call says, where a callback completes it."""
    instance: str = field(default=INSTANCE)

    @property
    def answer(self) -> Path:
        return self.folder / "answer"


def run_call(life: CallProcess) -> None:
    """Live it. This is a process's main function."""
    os.environ.update(life.environment)
    if life.path is not None:
        sys.path.insert(0, life.path)
    configure_logging("critical", "console", instance=life.instance)
    if life.die_at is not None:
        failpoints.enable(life.folder)
        (life.folder / life.die_at).write_text("kill:1")
    asyncio.run(_live(life))


async def _live(life: CallProcess) -> None:
    tool = load_tool(life.reference)
    request = codec.read(CallRequest, life.request)
    own_settings = load_settings(tool.settings) if tool.settings is not None else None
    pool = await database.connect(life.dsn, life.instance)
    async with pool, tool.lifespan(Resources(own_settings, pool)) as state:
        jobs = Jobs(pool, life.instance, LEASE_MS)
        ledger = PostgresEffectLedger(pool, _writes(tool))
        async with _no_other_takes_over(pool):
            await jobs.open()
            attempt = await _taken(jobs, request)
        if isinstance(attempt, bytes):
            _write(life, attempt, 0.0)
            return
        if life.fault is not None:
            tool.operations[request.operation] = with_fault(tool.operations[request.operation], life.fault)
        upstream = None
        if life.callback is not None:
            upstream = FakeUpstream(tool, pool, life.dsn, jobs, ledger)
            await _before(upstream, life.callback, tool, request)
        await jobs.start(_key(request))
        began = time.monotonic()
        callbacks = upstream.callbacks if upstream is not None else None
        answer = await worker_of(tool, state, own_settings, ledger, callbacks).execute(request, attempt)
        took_s = time.monotonic() - began
        if answer is not None:
            await _settle(jobs, ledger, Finished(request, answer, None, answer.to_bytes()))
        else:
            assert upstream is not None and life.callback is not None  # noqa: S101, PT018 - else nothing is parked
            await upstream.call_back(request, life.callback)
            answer = await upstream.answer(request)
        _write(life, answer.to_bytes(), took_s)


async def _before(upstream: FakeUpstream, callback: Callback, tool: Tool, request: CallRequest) -> None:
    """Play what the upstream does before or during the call."""
    if callback.telling is CallbackTiming.LATE:
        await upstream.give_up(request.run_id)
        await upstream.call_back(request, callback)
    if callback.telling is CallbackTiming.EARLY:
        operation = tool.operations[request.operation]
        tool.operations[request.operation] = with_early_callback(
            operation, lambda: upstream.call_back(request, callback)
        )


@asynccontextmanager
async def _no_other_takes_over(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """Keep the lives of other cases from taking over what an earlier life of this one held."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
        yield


def _writes(tool: Tool) -> set[str]:
    return {name for name, each in tool.operations.items() if each.contract.effect.writes}


async def _taken(jobs: Jobs, request: CallRequest) -> JobAttempt | bytes:
    """Return the attempt that this life may make, or the answer that an earlier one has stored."""
    inbound = InboundRequest(
        run_id=request.run_id,
        request_id=request.request_id,
        tenant=request.tenant,
        partition=request.partition,
        request=request.to_bytes(),
        traceparent=None,
        deadline_at=request.deadline_at,
    )
    intake = await jobs.take_in([inbound], [])
    if inbound.key in intake.fresh:
        return JobAttempt(lease=jobs.lease)
    if (answer := intake.answered.get(inbound.key)) is not None:
        return answer
    (taken,) = [each for each in await jobs.take_over(TAKE_OVER_MAX) if each.key == inbound.key]
    return JobAttempt(lease=jobs.lease, deliveries=taken.deliveries, taken_over=True)


async def _settle(jobs: Jobs, ledger: PostgresEffectLedger, finished: Finished) -> None:
    async def receipts(conn: Connection, accepted: frozenset[JobKey]) -> None:
        if finished.key in accepted and ledger.applies_to(finished):
            await ledger.write(conn, [finished])

    await jobs.commit_answers([(finished.key, finished.answer.to_bytes())], [], [], receipts)


def _key(request: CallRequest) -> JobKey:
    return request.run_id, request.request_id


def _write(life: CallProcess, answer: bytes, took_s: float) -> None:
    life.answer.write_bytes(f"{took_s}\n".encode() + answer)


def read_answer(life: CallProcess) -> tuple[Result, float]:
    """Return what a life has left: the result, and how many seconds it took."""
    took_s, _, answer = life.answer.read_bytes().partition(b"\n")
    return codec.read(CallAnswer, answer).result, float(took_s)
