"""A tool whose upstream honours no key: what is posted twice is there twice. It stands for the class `once`.

`stamp` can be asked for the result of an attempt, `post` cannot. Both write to a ticket of the run's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from uuid import uuid4

import httpx
from pydantic import BaseModel

from triptych.examples.helpdesk.tool import HelpdeskSettings
from triptych.tools import Call, Effect, Resources, Tool
from triptych.tools.http.errors import check_status


@asynccontextmanager
async def _client(resources: Resources) -> AsyncIterator[httpx.AsyncClient]:
    settings: HelpdeskSettings = resources.settings
    headers = {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
    # A server that closes an idle connection just as the next request goes out would leave a needless doubt.
    limits = httpx.Limits(keepalive_expiry=1.0)
    async with httpx.AsyncClient(base_url=str(settings.url), headers=headers, timeout=10, limits=limits) as client:
        yield client


tool = Tool("inbox", settings=HelpdeskSettings, lifespan=_client)


class Done(BaseModel):
    ticket_id: str


@tool.operation(effect=Effect.ONCE, timeout_ms=10_000)
async def stamp(call: Call[httpx.AsyncClient]) -> Done:
    """Stamp the run. Whether it was done can be found out."""
    return await _write(call, "tags", {"tags": ["stamped"]})


@tool.reconcile(stamp)
async def stamped(call: Call[httpx.AsyncClient]) -> Done | None:
    """Look whether the stamp is there."""
    response = await call.state.get(f"/tickets/{call.run_id}")
    if response.status_code == HTTPStatus.NOT_FOUND or not check_status(response).json()["tags"]:
        return None
    return Done(ticket_id=str(call.run_id))


@tool.operation(effect=Effect.ONCE, timeout_ms=10_000)
async def post(call: Call[httpx.AsyncClient]) -> Done:
    """Post a letter about the run. Nothing shows later whether it was done."""
    return await _write(call, "assignments", {"team": "post-room", "note": ""})


async def _write(call: Call[httpx.AsyncClient], collection: str, body: dict[str, object]) -> Done:
    # A key of its own for every request: the upstream does again what it is asked again.
    headers = {"Idempotency-Key": str(uuid4())}
    check_status(await call.state.post(f"/tickets/{call.run_id}/{collection}", json=body, headers=headers))
    return Done(ticket_id=str(call.run_id))
