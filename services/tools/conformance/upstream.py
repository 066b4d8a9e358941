"""The upstream of a call that a callback completes, played by the check itself: it calls back as it is told to.

The address is the one that the tool was given; the request goes to the endpoint of the tool without a network.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import structlog
from pydantic import SecretStr

from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker.jobs import Jobs
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode, Result, ResultStatus, ToolError
from triptych.schemas.work import CallAnswer, CallRequest
from triptych.tools.runtime.callbacks import CallbackSettings, PostgresCallbacks
from triptych.tools.runtime.effect_ledger import PostgresEffectLedger
from triptych.tools.sdk.redaction import Redactor
from triptych.tools.sdk.tool import Tool

KEY = secrets.token_bytes(32)
URL = "http://conformance.invalid"


class CallbackTiming(StrEnum):
    """When and how the upstream calls back."""

    ONCE = "once"
    """As soon as the call is parked."""
    EARLY = "early"
    """While the call is still made."""
    TWICE = "twice"
    FORGED = "forged"
    """First without a signature, then with one of another key, and then as it should."""
    LATE = "late"
    """When the call has been given up, before its next attempt."""
    NEVER = "never"
    """Not in this life."""


@dataclass(frozen=True, slots=True)
class Callback:
    """What the upstream says, and how."""

    body: Json
    telling: CallbackTiming = CallbackTiming.ONCE


class FakeUpstream:
    """Calls a tool back, in the process of the tool."""

    def __init__(self, tool: Tool, pool: asyncpg.Pool, dsn: str, jobs: Jobs, ledger: PostgresEffectLedger) -> None:
        settings = CallbackSettings(url=URL, secret=SecretStr(f"whsec_{base64.b64encode(KEY).decode()}"))
        service_settings = ServiceSettings(kafka="none:9092", postgres=SecretStr(dsn))
        self.callbacks = PostgresCallbacks(
            pool, settings, service_settings, operations=tool.operations, ledger=ledger, redactor=Redactor(())
        )
        self._pool = pool
        service: Any = SimpleNamespace(
            health=SimpleNamespace(count=lambda _name: None), log=structlog.get_logger("conformance")
        )
        outbox: Any = SimpleNamespace(publish_stored=lambda *_sent: None)
        self._app = self.callbacks.app(service, jobs, outbox)
        self.statuses: list[int] = []
        self.believed_forgery = False

    async def call_back(self, request: CallRequest, callback: Callback) -> None:
        """Call the tool back: late, twice or forged, as the callback says."""
        address = await self._address(request)
        match callback.telling:
            case CallbackTiming.NEVER:
                return
            case CallbackTiming.TWICE:
                signers: Sequence[bytes | None] = (KEY, KEY)
            case CallbackTiming.FORGED:
                signers = (None, secrets.token_bytes(32), KEY)
            case _:
                signers = (KEY,)
        self.statuses = [await self._post(address, callback.body, key) for key in signers]
        self.believed_forgery = any(status != HTTPStatus.UNAUTHORIZED for status in self.statuses[:-1]) and (
            callback.telling is CallbackTiming.FORGED
        )

    async def answer(self, request: CallRequest) -> CallAnswer:
        """Return what the call was answered with; an error when no callback has completed it."""
        row = "select answer from jobs where run_id = $1 and request_id = $2 and state = 'answered'"
        stored = await self._pool.fetchval(row, request.run_id, request.request_id)
        if stored is not None and not self.believed_forgery:
            return codec.read(CallAnswer, stored)
        said = ", ".join(map(str, self.statuses)) or "nothing"
        what = "a forged callback was believed" if self.believed_forgery else "it waits"
        error = ToolError(code=ErrorCode.UNAVAILABLE, message=f"{what}: its callbacks were answered {said}")
        return CallAnswer(
            request_id=request.request_id,
            run_id=request.run_id,
            tenant=request.tenant,
            result=Result(status=ResultStatus.ERROR, error=error),
        )

    async def give_up(self, run_id: UUID) -> None:
        """Let the deadline of what waits be over, as the worker does when it is."""
        over = "update jobs set state = 'answered', answer = $2, answered_at = now()"
        await self._pool.execute(f"{over} where run_id = $1 and state = 'parked'", run_id, b"{}")

    async def _address(self, request: CallRequest) -> str:
        token = await self._pool.fetchval(
            "select token from callbacks where run_id = $1 and idempotency_key = $2",
            request.run_id,
            request.idempotency_key,
        )
        return f"{URL}/callbacks/{token}"

    async def _post(self, address: str, body: Json, key: bytes | None) -> int:
        encoded = codec.encode(body)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app)) as client:
            response = await client.post(
                address, content=encoded, headers=_signed(key, address, encoded) if key else {}
            )
        return response.status_code


def _signed(key: bytes, address: str, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks, over the address too."""
    message_id, at = f"msg_{secrets.token_hex(8)}", str(int(time.time()))
    told = b".".join((message_id.encode(), at.encode(), address.encode(), body))
    signature = base64.b64encode(hmac.digest(key, told, hashlib.sha256)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}
