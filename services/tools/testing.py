"""Test a tool without Kafka or a database: calls through the real runtime, validation included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import structlog
from pydantic_settings import BaseSettings

from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.worker import JobAttempt
from triptych.schemas.base import Grant
from triptych.schemas.result import Result
from triptych.schemas.work import CallRequest
from triptych.tools.runtime.attempt import ToolWorker
from triptych.tools.runtime.callbacks import Callbacks
from triptych.tools.runtime.effect_ledger import EffectEntry, EffectLedger, EffectState
from triptych.tools.sdk.call import Resources
from triptych.tools.sdk.failure import ToolDefinitionError
from triptych.tools.sdk.redaction import Redactor, secrets_in
from triptych.tools.sdk.tool import Tool


class FreshLedger:
    """Every effect is new: a call in a test is its only attempt."""

    async def begin(self, _request: CallRequest, _attempt: JobAttempt) -> EffectEntry:
        return EffectEntry(EffectState.NEW)


class Calls:
    """Makes calls to one running tool."""

    def __init__(self, tool: Tool, worker: ToolWorker) -> None:
        self._tool, self._worker = tool, worker

    async def __call__(
        self,
        operation: str,
        arguments: dict[str, Any],
        *,
        idempotency_key: str | None = None,
        grant: Grant | None = None,
        timeout_ms: int | None = None,
    ) -> Result:
        """Make one call as the pipeline would and give back its result. `operation` is the name without the tool's."""
        request = request_for(self._tool, operation, arguments, grant=grant, timeout_ms=timeout_ms)
        if idempotency_key is not None:
            request = request.model_copy(update={"idempotency_key": idempotency_key})
        answer = await self._worker.execute(request, JobAttempt(lease=0))
        assert answer is not None  # noqa: S101 - without callbacks nothing is parked
        return answer.result


@asynccontextmanager
async def running(
    tool: Tool, *, settings: BaseSettings | None = None, pool: asyncpg.Pool | None = None
) -> AsyncIterator[Calls]:
    """Run the tool's lifespan around the calls that the body makes."""
    async with tool.lifespan(Resources(settings, pool)) as state:
        yield Calls(tool, worker_of(tool, state, settings, FreshLedger()))


def worker_of(
    tool: Tool, state: Any, settings: BaseSettings | None, ledger: EffectLedger, callbacks: Callbacks | None = None
) -> ToolWorker:
    """Return the worker of the tool's process, with a ledger of your own."""
    redactor = Redactor(secrets_in(settings), learnt=tool.secrets)
    return ToolWorker(tool, state, ledger, structlog.get_logger(), redactor=redactor, callbacks=callbacks)


async def call(
    tool: Tool,
    operation: str,
    arguments: dict[str, Any],
    *,
    settings: BaseSettings | None = None,
    pool: asyncpg.Pool | None = None,
    idempotency_key: str | None = None,
    grant: Grant | None = None,
) -> Result:
    """Make one call as the pipeline would and give back its result.

    `operation` is the function's name. The tool's lifespan runs around the call.
    """
    async with running(tool, settings=settings, pool=pool) as calls:
        return await calls(operation, arguments, idempotency_key=idempotency_key, grant=grant)


def request_for(
    tool: Tool,
    operation: str,
    arguments: dict[str, Any],
    *,
    grant: Grant | None = None,
    timeout_ms: int | None = None,
) -> CallRequest:
    """Return a first attempt at a call, under the contract that the tool offers now.

    Raises:
        ToolDefinitionError: there is no such operation.
    """
    name = f"{tool.name}.{operation}"
    if name not in tool.operations:
        raise ToolDefinitionError(
            tool.name, operation, f"there is no such operation, only {', '.join(tool.operations)}"
        )
    contract = tool.operations[name].contract
    timeout_ms = timeout_ms or contract.timeout_ms
    return CallRequest(
        request_id=str(uuid4()),
        run_id=uuid4(),
        tenant="test",
        partition=0,
        deadline_at=utc_now() + timedelta(milliseconds=timeout_ms),
        grant=grant or Grant(tokens=contract.cost.tokens, usd_micros=contract.cost.usd_micros),
        principal="user:test",
        step="test",
        operation=name,
        arguments=arguments,
        attempt=1,
        idempotency_key=str(uuid4()),
        contract_hash=contract.hash,
        timeout_ms=timeout_ms,
    )
