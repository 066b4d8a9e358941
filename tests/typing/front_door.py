"""What a type checker knows of the front door. mypy checks this file in `make check`; nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_type

from pydantic import BaseModel

from triptych import (
    Accepted,
    Address,
    Call,
    Client,
    Cost,
    Effect,
    ErrorCode,
    Feed,
    JournalEntry,
    Operator,
    Outcome,
    OutcomeStatus,
    Receipt,
    Resources,
    RunFilter,
    RunRow,
    StepRow,
    Tool,
    ToolFailure,
    upstream_headers,
)


async def a_client_submits_and_waits(client: Client) -> None:
    task_id = await client.submit("support-ticket", {"subject": "Where is my invoice?"}, tenant="acme")
    assert_type(task_id, str)
    outcome = await client.wait(task_id, tenant="acme", timeout_s=60)
    assert_type(outcome, Outcome)
    assert_type(outcome.status, OutcomeStatus)
    assert_type(outcome.usage.usd, float)
    assert_type(await client.submit_raw([b"{}"]), list[Receipt])
    async for followed in client.follow():
        assert_type(followed, Outcome)


def an_address_is_read_from_a_stack() -> None:
    address = Address.from_stack(Path(".triptych"))
    assert_type(address, Address)
    assert_type(address.kafka, str)
    assert_type(address.postgres, str | None)
    assert_type(address.topic("tasks"), str)


def a_client_gives_a_feed(client: Client) -> None:
    assert_type(client.feed(), Feed)


async def an_operator_reads_rows(operator: Operator) -> None:
    assert_type(await operator.runs(RunFilter(statuses=("escalated",))), list[RunRow])
    run = await operator.run("0190")
    assert_type(await operator.steps(run.run_id), list[StepRow])
    assert_type(await operator.journal(run.run_id), list[JournalEntry])


class Order(BaseModel):
    """What the shop knows of an order."""

    order_id: str


class Shop:
    """A client of the shop."""


@asynccontextmanager
async def lifespan(resources: Resources) -> AsyncIterator[Shop]:
    assert_type(resources.settings, Any)
    yield Shop()


tool = Tool("shop", lifespan=lifespan)


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=2_000, cost=Cost(usd_micros=10))
async def cancel_order(call: Call[Shop], order_id: str) -> Order:
    """Cancel an order."""
    assert_type(call.state, Shop)
    assert_type(call.tenant, str)
    assert_type(call.idempotency_key, str)
    assert_type(upstream_headers(), Mapping[str, str])
    if order_id == "A-3":
        raise Accepted
    if order_id != "A-1":
        raise ToolFailure(ErrorCode.CONFLICT, f"order {order_id} cannot be cancelled", retry_after_ms=1_000)
    return Order(order_id=order_id)


async def a_decorated_operation_keeps_its_type(call: Call[Shop]) -> None:
    assert_type(await cancel_order(call, "A-1"), Order)
