"""Test a tool without Kafka or a database: one call through the real runtime, validation included."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import structlog
from pydantic_settings import BaseSettings

from triptych.kernel.cloudevents import utc_now
from triptych.kernel.worker import JobAttempt
from triptych.schemas.base import Grant
from triptych.schemas.result import Result
from triptych.schemas.work import CallRequest
from triptych.tools.call import Resources
from triptych.tools.failure import ToolDefinitionError
from triptych.tools.ledger import Entry, Standing
from triptych.tools.redaction import Redactor, secrets_in
from triptych.tools.runtime import ToolWorker
from triptych.tools.tool import Tool


class _FreshLedger:
    """Every effect is new: a call in a test is its only attempt."""

    async def begin(self, _request: CallRequest, _attempt: JobAttempt) -> Entry:
        return Entry(Standing.NEW)


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
    name = f"{tool.name}.{operation}"
    if name not in tool.operations:
        raise ToolDefinitionError(
            tool.name, operation, f"there is no such operation, only {', '.join(tool.operations)}"
        )
    contract = tool.operations[name].contract
    request = CallRequest(
        request_id="test",
        run_id=uuid4(),
        tenant="test",
        partition=0,
        deadline_at=utc_now() + timedelta(milliseconds=contract.timeout_ms),
        grant=grant or Grant(tokens=contract.cost.tokens, usd_micros=contract.cost.usd_micros),
        principal="user:test",
        step="test",
        operation=name,
        arguments=arguments,
        attempt=1,
        idempotency_key=idempotency_key or str(uuid4()),
        contract_hash=contract.hash,
        timeout_ms=contract.timeout_ms,
    )
    async with tool.lifespan(Resources(settings, pool)) as state:
        redactor = Redactor((*tool.secrets, *secrets_in(settings)))
        worker = ToolWorker(tool, state, _FreshLedger(), structlog.get_logger(), redactor)
        return (await worker.execute(request, JobAttempt(lease=0))).result
