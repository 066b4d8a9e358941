"""Calls that an upstream completes later: the job is parked, and a signed callback answers it. Nobody polls.

A callback counts once, whenever it comes: before the job is parked, twice, or after its deadline. Signatures follow
Standard Webhooks 1.0 (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Protocol

import asyncpg
import orjson
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from triptych.kernel import claimcheck, failpoints
from triptych.kernel.claimcheck import Claim
from triptych.kernel.cloudevents import utc_now
from triptych.kernel.database import Queries
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.health import serve_app
from triptych.kernel.outage import POSTGRES_GONE
from triptych.kernel.service import Service
from triptych.kernel.settings import ServiceSettings
from triptych.kernel.worker import Connection, Finished, JobAttempt, Jobs, Outbox, Settlement
from triptych.schemas.base import Json
from triptych.schemas.contract import Effect
from triptych.schemas.result import ErrorCode, Result
from triptych.schemas.work import CallAnswer, CallRequest
from triptych.tools.failure import EFFECT, NO_EFFECT, ToolFailure
from triptych.tools.operation import Operation
from triptych.tools.redaction import Redactor

BODY_MAX_BYTES = 1_000_000
TOLERANCE = timedelta(minutes=5)
"""A callback that was signed longer ago, or later than now, is refused: it may be a copy."""
TOKEN_BYTES = 24
_SIGNATURE = "v1,"


class CallbackSettings(BaseSettings):
    """How an upstream calls a tool back. Environment prefix `TRIPTYCH_CALLBACK_`."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_CALLBACK_", frozen=True, extra="ignore")

    url: Annotated[
        str,
        Field(
            pattern=r"^https?://",
            description="Where upstreams reach this tool, `https://host`; they add `/callbacks/...`.",
        ),
    ]
    secret: Annotated[
        SecretStr,
        Field(
            description="The secret of Standard Webhooks that callbacks are signed with, `whsec_...`; two, with a "
            "space between them, while one follows the other."
        ),
    ]
    host: Annotated[str, Field(description="Address that callbacks are listened for on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port of it; 0 takes a free one.")] = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """A callback that was registered: where it is to come, and what it has said if it came already."""

    url: str
    result: Result | None = None


class Callbacks(Protocol):
    """Where callbacks are expected."""

    async def expect(self, request: CallRequest, attempt: JobAttempt) -> Expected:
        """Before the call: make the address under which its upstream calls back.

        Raises:
            ToolFailure: `cancelled`, since the job belongs to another process now.
        """
        ...

    async def park(self, request: CallRequest, attempt: JobAttempt) -> Result | None:
        """After the call: let the job wait. A result when the callback was quicker, None when it waits.

        Raises:
            ToolFailure: `cancelled`, as above.
        """
        ...


class Verifier:
    """Checks the signatures of Standard Webhooks 1.0."""

    def __init__(self, secret: SecretStr) -> None:
        """Raises ConfigurationError when the secret is none."""
        self._keys = [_key(one) for one in secret.get_secret_value().split()]
        if not self._keys:
            raise ConfigurationError("TRIPTYCH_CALLBACK_SECRET: it is empty")

    def problem(self, headers: Mapping[str, str], body: bytes, now: datetime) -> str | None:
        """What is wrong with a request, or None."""
        message_id, stated = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not message_id or not stated.isascii() or not stated.isdigit():
            return "webhook-id or webhook-timestamp is missing or wrong"
        if abs(now.timestamp() - int(stated)) > TOLERANCE.total_seconds():
            return "webhook-timestamp is too far from now"
        content = b".".join((message_id.encode(), stated.encode(), body))
        wanted = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)) for key in self._keys]
        given = [one.removeprefix(_SIGNATURE).encode() for one in headers.get("webhook-signature", "").split()]
        fits = any(hmac.compare_digest(one, other) for one in given for other in wanted)
        return None if fits else "no signature fits"


def _key(secret: str) -> bytes:
    text = secret.removeprefix("whsec_").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ConfigurationError("TRIPTYCH_CALLBACK_SECRET: it is not base64; write whsec_...") from error


class PostgresCallbacks:
    """The callbacks of a tool, in its own schema, and the endpoint to which they come."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: CallbackSettings,
        service_settings: ServiceSettings,
        *,
        operations: Mapping[str, Operation],
        ledger: Settlement,
        redactor: Redactor,
    ) -> None:
        """Raises ConfigurationError when the secret is none."""
        self._pool, self._settings, self._service_settings = pool, settings, service_settings
        self._operations, self._ledger, self._redactor = operations, ledger, redactor
        self._verifier = Verifier(settings.secret)
        self._sql = Queries.load("triptych.tools", "callbacks.sql")

    async def expect(self, request: CallRequest, attempt: JobAttempt) -> Expected:
        row = await self._pool.fetchrow(
            self._sql["register"],
            request.run_id,
            request.request_id,
            attempt.lease,
            request.idempotency_key,
            request.tenant,
            request.operation,
            secrets.token_urlsafe(TOKEN_BYTES),
        )
        if row is None:
            raise _lost()
        url = f"{self._settings.url.rstrip('/')}/callbacks/{row['token']}"
        return Expected(url, Result.model_validate_json(row["result"]) if row["result"] else None)

    async def park(self, request: CallRequest, attempt: JobAttempt) -> Result | None:
        failpoints.hit("callbacks.before_park")
        async with self._pool.acquire() as connection, connection.transaction():
            # The row of the callback is locked first here and where it is answered: one of the two sees the other.
            said = await connection.fetchval(self._sql["lock"], request.run_id, request.idempotency_key)
            if said is not None:
                return Result.model_validate_json(said)
            key = (request.run_id, request.request_id)
            if not await connection.fetchval(self._sql["park"], *key, attempt.lease, request.timeout_ms):
                raise _lost()
        failpoints.hit("callbacks.after_park")
        return None

    async def listen(self, service: Service, jobs: Jobs, outbox: Outbox) -> None:
        """Serve the endpoint until cancelled."""

        async def called(request: Request) -> Response:
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > BODY_MAX_BYTES:
                    return _said(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_MAX_BYTES} bytes")
            if problem := self._verifier.problem(request.headers, body, utc_now()):
                service.health.count("callbacks_refused")
                return _said(HTTPStatus.UNAUTHORIZED, problem)
            try:
                return await self._take(request.path_params["token"], orjson.loads(body), jobs, outbox)
            except orjson.JSONDecodeError as error:
                return _said(HTTPStatus.BAD_REQUEST, f"not JSON: {error}")
            except POSTGRES_GONE:
                return _said(HTTPStatus.SERVICE_UNAVAILABLE, "try again")

        app = Starlette(routes=[Route("/callbacks/{token}", called, methods=["POST"])])
        async with serve_app(app, self._settings.host, self._settings.port, "callbacks"):
            await asyncio.Event().wait()

    async def _take(self, token: str, body: Json, jobs: Jobs, outbox: Outbox) -> Response:
        failpoints.hit("callbacks.before_answer")
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(self._sql["find"], token)
            if row is None:
                return _said(HTTPStatus.NOT_FOUND, "nobody waits for this")
            if row["result"] is not None:
                return _said(HTTPStatus.OK, "known")
            request = CallRequest.model_validate_json(row["request"])
            operation = self._operations.get(row["operation"])
            if operation is None:
                return _said(HTTPStatus.NOT_FOUND, f"there is no operation {row['operation']} any more")
            result = await self._result(operation, body)
            if result is None:
                return _said(HTTPStatus.ACCEPTED, "not finished yet")
            await connection.execute(self._sql["say"], token, result.to_bytes(), result.error is not None)
            answer = await self._answer(connection, request, result, jobs)
        failpoints.hit("callbacks.after_answer")
        if answer is None:
            return _said(HTTPStatus.OK, "kept")
        key = (request.run_id, request.request_id)
        jobs.hold(key)
        outbox.publish_stored(key, request.partition, request.tenant, row["traceparent"], answer)
        return _said(HTTPStatus.OK, "taken")

    async def _result(self, operation: Operation, body: Json) -> Result | None:
        try:
            result = await operation.read_callback(body)
        except ToolFailure as failure:
            is_undone = failure.undone and operation.contract.effect is not Effect.READ
            result = failure.result(**({EFFECT: NO_EFFECT} if is_undone else {}))
        return None if result is None else self._redactor.clean(result)

    async def _answer(self, connection: Connection, request: CallRequest, result: Result, jobs: Jobs) -> bytes | None:
        """Answer the job if it is parked; None if it is not, yet or any more. What was done is in the ledger anyway."""
        answer = CallAnswer(
            request_id=request.request_id,
            run_id=request.run_id,
            tenant=request.tenant,
            result=result,
            worker=self._service_settings.instance,
            finished_at=utc_now(),
        )
        finished = Finished(request, answer, None)
        if self._ledger.concerns(finished):
            await self._ledger.settle(connection, [finished])
        encoded = answer.to_bytes()
        key = (request.run_id, request.request_id)
        if not await connection.fetchval(self._sql["answer"], *key, jobs.lease, encoded):
            return None
        if claimcheck.needs_claim(encoded, self._service_settings.inline_max_bytes):
            await claimcheck.store(connection, [Claim(request.run_id, request.tenant, encoded)])
        return encoded


def _lost() -> ToolFailure:
    return ToolFailure(ErrorCode.CANCELLED, "the job belongs to another process now")


def _said(status: HTTPStatus, what: str) -> JSONResponse:
    headers = {"retry-after": "5"} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"status": what}, status_code=status, headers=headers)
