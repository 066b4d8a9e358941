"""The upstream of the fault tests: the example helpdesk behind a tool with an operation of every effect class.

Each run has a ticket of its own, and faults are armed for a ticket, so that runs fail side by side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
from pydantic import BaseModel

from triptych.examples.helpdesk.tool import HelpdeskSettings
from triptych.tools import Call, Effect, Resources, Tool
from triptych.tools.http.errors import json_content
from triptych.tools.sdk.guard import BreakerPolicy

TIMEOUT_MS = 10_000
NO_ERROR = "!has(body.error)"


@asynccontextmanager
async def _client(resources: Resources) -> AsyncIterator[httpx.AsyncClient]:
    settings: HelpdeskSettings = resources.settings
    headers = {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
    limits = httpx.Limits(keepalive_expiry=1.0)
    async with httpx.AsyncClient(base_url=str(settings.url), headers=headers, limits=limits, timeout=10) as client:
        yield client


# So many runs fail at once that a breaker would hide what each of them shows.
tool = Tool(
    "helpdesk", settings=HelpdeskSettings, lifespan=_client, concurrency=64, breaker=BreakerPolicy(failures=100_000)
)

DeskCall = Call[httpx.AsyncClient]


class Written(BaseModel):
    ticket_id: str
    id: str


class Ticket(BaseModel):
    ticket_id: str
    tags: list[str]


@tool.operation(effect=Effect.READ, timeout_ms=TIMEOUT_MS)
async def lookup(call: DeskCall, ticket_id: str) -> Ticket:
    """A ticket."""
    return json_content(await call.state.get(f"/tickets/{ticket_id}"), NO_ERROR)  # type: ignore[no-any-return]


class Overview(BaseModel):
    total: int


@tool.operation(effect=Effect.READ, timeout_ms=TIMEOUT_MS)
async def peek(call: DeskCall, tag: str) -> Overview:
    """How many tickets there are; it does not fail when a ticket does."""
    return json_content(await call.state.get("/tickets", params={"tag": tag}))  # type: ignore[no-any-return]


@tool.operation(effect=Effect.READ, timeout_ms=TIMEOUT_MS)
async def aged(ticket_id: str) -> Overview:
    """Its source has changed; what a comparison finds is shown in test_tools_drift.py."""
    raise AssertionError(f"nothing is called of what has drifted, not even for {ticket_id}")


tool.quarantined["helpdesk.aged"] = "result: total: `string` is not accepted any more"


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=TIMEOUT_MS)
async def reply(call: DeskCall, ticket_id: str) -> Written:
    """Reply. The desk honours the key, and can be asked what became of it."""
    return await _write(call, f"/tickets/{ticket_id}/replies", {"subject": "Re", "body": "Done."}, call.idempotency_key)


@tool.reconcile(reply)
async def was_replied(call: DeskCall) -> Written | None:
    """What the desk has under the key."""
    response = await call.state.get("/effects", params={"key": call.idempotency_key})
    return None if response.status_code == 404 else Written(**json_content(response)["answer"])


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=TIMEOUT_MS)
async def assign(call: DeskCall, ticket_id: str, team: str, note: str) -> Written:
    """Assign. The desk honours the key, and cannot be asked."""
    return await _write(call, f"/tickets/{ticket_id}/assignments", {"team": team, "note": note}, call.idempotency_key)


@tool.operation(effect=Effect.ONCE, timeout_ms=TIMEOUT_MS)
async def stamp(call: DeskCall, ticket_id: str) -> Written:
    """Stamp. The desk honours no key, but a stamp can be seen."""
    return await _write(call, f"/tickets/{ticket_id}/tags", {"tags": [call.run_id.hex]}, _another_key(call))


@tool.reconcile(stamp)
async def was_stamped(call: DeskCall) -> Written | None:
    """Whether a ticket bears the run's stamp."""
    found = json_content(await call.state.get("/tickets", params={"tag": call.run_id.hex}))["tickets"]
    return Written(ticket_id=found[0]["ticket_id"], id="seen") if found else None


@tool.operation(effect=Effect.ONCE, timeout_ms=TIMEOUT_MS)
async def post(call: DeskCall, ticket_id: str) -> Written:
    """Acknowledge. The desk honours no key, and nobody can say later whether it was done."""
    return await _write(call, f"/tickets/{ticket_id}/acknowledgements", {"text": "Here."}, _another_key(call))


async def _write(call: DeskCall, path: str, body: dict[str, Any], key: str) -> Written:
    response = await call.state.post(path, json=body, headers={"Idempotency-Key": key})
    return json_content(response, NO_ERROR)  # type: ignore[no-any-return]


def _another_key(call: DeskCall) -> str:
    return f"{call.idempotency_key}#{uuid4().hex}"
