"""The helpdesk adapter: reads and writes tickets over HTTP, each write once for its idempotency key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from pydantic import Field, HttpUrl, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from typing_extensions import TypedDict

from triptych import Call, Effect, ErrorCode, Resources, Tool, ToolFailure
from triptych.tools.adapters.rest.address import problem_of_value
from triptych.tools.http.client import exchange, open_client, read_response
from triptych.tools.http.errors import json_content


class HelpdeskSettings(BaseSettings):
    """Where the helpdesk is. Environment prefix `TRIPTYCH_HELPDESK_`."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_HELPDESK_", frozen=True, extra="ignore")

    url: Annotated[HttpUrl, Field(description="Base URL of the helpdesk's API.")]
    token: Annotated[SecretStr, Field(description="Bearer token of the helpdesk's API.")]


@asynccontextmanager
async def _client(resources: Resources) -> AsyncIterator[httpx.AsyncClient]:
    settings: HelpdeskSettings = resources.settings
    headers = {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
    async with open_client(base_url=str(settings.url), headers=headers) as client:
        yield client


tool = Tool("helpdesk", settings=HelpdeskSettings, lifespan=_client, concurrency=16)

ANSWER_MAX_BYTES = 4 * 1_048_576

HelpdeskCall = Call[httpx.AsyncClient]
TicketId = Annotated[str, Field(min_length=1, max_length=100, description="The ticket's id in the helpdesk.")]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class Written(TypedDict):
    """What a write is answered with."""

    ticket_id: str
    id: str
    created_at: str


class Ticket(TypedDict):
    """A ticket with everything that happened to it."""

    ticket_id: str
    tags: list[str]
    replies: list[dict[str, Any]]
    acknowledgements: list[dict[str, Any]]
    assignments: list[dict[str, Any]]


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=5_000)
async def acknowledge(call: HelpdeskCall, ticket_id: TicketId, text: Text) -> Written:
    """Tell the customer that the ticket has arrived."""
    return await _write(call, ticket_id, "acknowledgements", {"text": text})


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=5_000)
async def reply(
    call: HelpdeskCall, ticket_id: TicketId, subject: Annotated[str, Field(min_length=1, max_length=300)], body: Text
) -> Written:
    """Send the customer a reply."""
    return await _write(call, ticket_id, "replies", {"subject": subject, "body": body})


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=5_000)
async def tag(
    call: HelpdeskCall, ticket_id: TicketId, tags: Annotated[list[Name], Field(min_length=1, max_length=20)]
) -> Written:
    """Put tags on a ticket; one that is there already stays as it is."""
    return await _write(call, ticket_id, "tags", {"tags": tags})


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=5_000)
async def assign(
    call: HelpdeskCall, ticket_id: TicketId, team: Name, note: Annotated[str, Field(max_length=20_000)] = ""
) -> Written:
    """Hand a ticket to a team, with a note for the people there."""
    return await _write(call, ticket_id, "assignments", {"team": team, "note": note})


@tool.operation(effect=Effect.READ, timeout_ms=5_000)
async def lookup(call: HelpdeskCall, ticket_id: TicketId) -> Ticket | None:
    """A ticket with its tags, replies, acknowledgements and assignments. Empty when there is none."""
    client = call.state
    ticket: Ticket = await _data(client, client.build_request("GET", _path(ticket_id)), is_read=True)
    return ticket


async def _write(call: HelpdeskCall, ticket_id: str, collection: str, body: dict[str, Any]) -> Written:
    client, headers = call.state, {"Idempotency-Key": call.idempotency_key}
    request = client.build_request("POST", f"{_path(ticket_id)}/{collection}", json=body, headers=headers)
    written: Written = await _data(client, request, is_read=False)
    return written


async def _data(client: httpx.AsyncClient, request: httpx.Request, *, is_read: bool) -> Any:
    response = await exchange(client, request, is_read=is_read)
    try:
        return json_content(await read_response(response, ANSWER_MAX_BYTES))
    finally:
        await response.aclose()


def _path(ticket_id: str) -> str:
    if problem := problem_of_value(ticket_id):
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"arguments.ticket_id: {problem}", undone=True)
    return f"/tickets/{quote(ticket_id, safe='')}"
