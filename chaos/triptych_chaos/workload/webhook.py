"""A tool whose upstream accepts a delivery and calls back when it is made."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from pydantic import BaseModel

from triptych.tools import Accepted, Call, Effect, Resources, Tool
from triptych.tools.http.errors import check_status


@asynccontextmanager
async def _client(_resources: Resources) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=os.environ["WEBHOOK_SENDER_URL"], timeout=10) as client:
        yield client


tool = Tool("webhook", lifespan=_client)


class Delivered(BaseModel):
    run: str


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=90_000)
async def deliver(call: Call[httpx.AsyncClient]) -> Delivered:
    """Have something delivered for the run."""
    delivery = {"run": str(call.run_id), "key": call.idempotency_key, "callback": call.callback_url}
    check_status(await call.state.post("/deliveries", json=delivery))
    raise Accepted


@tool.completion(deliver, accept_within_ms=10_000)
async def delivered(body: dict[str, Any]) -> Delivered:
    """Read what the webhook says when it is done."""
    return Delivered(run=body["run"])
