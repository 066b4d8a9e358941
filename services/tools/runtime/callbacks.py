"""Complete calls by callbacks: the job is parked, and a signed callback answers it. There is no polling.

A callback counts once, whenever it comes: before the job is parked, twice, or after its deadline. Signatures follow
Standard Webhooks 1.0 (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Protocol

import asyncpg
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from triptych.kernel import failpoints
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.claim_check import Claim
from triptych.kernel.postgres.database import Queries
from triptych.kernel.process.health import serve_app
from triptych.kernel.process.outage import POSTGRES_GONE
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker import CommitHook, Connection, Finished, JobAttempt, Jobs, Outbox
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode, Result
from triptych.schemas.work import CallAnswer, CallRequest
from triptych.tools.runtime.callback_endpoint import BODY_MAX_BYTES, BoundedProtocol, endpoint, reply
from triptych.tools.runtime.webhooks import Signed, Verifier
from triptych.tools.sdk.failure import EFFECT, NO_EFFECT, ToolFailure
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.redaction import Redactor

__all__ = ["BODY_MAX_BYTES", "CallbackSettings", "Callbacks", "ExpectedCallback", "PostgresCallbacks", "Verifier"]

TOKEN_BYTES = 24
NOT_EXPECTED = "no call waits for this"
_TOKEN = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


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
class ExpectedCallback:
    """A callback that was registered: where it is to come, and what it has said if it came already."""

    url: str
    result: Result | None = None


class Callbacks(Protocol):
    """Where callbacks are expected."""

    async def expect(self, request: CallRequest, attempt: JobAttempt) -> ExpectedCallback:
        """Make the address under which the upstream calls back. This comes before the call.

        Raises:
            ToolFailure: `cancelled`, since the job belongs to another process now.
        """
        ...

    async def park(self, request: CallRequest, attempt: JobAttempt) -> Result | None:
        """Let the job wait, after the call. Return the result if the callback was quicker, and None while it waits.

        Raises:
            ToolFailure: `cancelled`, as above.
        """
        ...


class _UnreadableError(Exception):
    """The code of an operation failed at the body of a callback."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"{operation} cannot read this body; the log of the tool has the cause")


class PostgresCallbacks:
    """The callbacks of a tool, in its own schema, and the endpoint to which they come."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: CallbackSettings,
        service_settings: ServiceSettings,
        *,
        operations: Mapping[str, Operation],
        ledger: CommitHook,
        redactor: Redactor,
    ) -> None:
        """Raises ConfigurationError when the secret is none."""
        self._pool, self._settings, self._service_settings = pool, settings, service_settings
        self._operations, self._ledger, self._redactor = operations, ledger, redactor
        self._verifier = Verifier(settings.secret)
        self._sql = Queries.load("triptych.tools.runtime", "callbacks.sql")

    async def expect(self, request: CallRequest, attempt: JobAttempt) -> ExpectedCallback:
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
        known = codec.read(Result, row["result"], limits=codec.STORED) if row["result"] else None
        return ExpectedCallback(self._url(row["token"]), known)

    async def park(self, request: CallRequest, attempt: JobAttempt) -> Result | None:
        failpoints.hit("callbacks.before_park")
        async with self._pool.acquire() as connection, connection.transaction():
            # The row of the callback is locked first here and where it is answered: one of the two sees the other.
            stored = await connection.fetchval(self._sql["lock"], request.run_id, request.idempotency_key)
            if stored is not None:
                return codec.read(Result, stored, limits=codec.STORED)
            key = (request.run_id, request.request_id)
            if not await connection.fetchval(self._sql["park"], *key, attempt.lease, request.timeout_ms):
                raise _lost()
        failpoints.hit("callbacks.after_park")
        return None

    async def listen(self, service: Service, jobs: Jobs, outbox: Outbox) -> None:
        """Serve the endpoint until cancelled."""
        app = self.app(service, jobs, outbox)
        async with serve_app(app, self._settings.host, self._settings.port, "callbacks", BoundedProtocol):
            await asyncio.Event().wait()

    def app(self, service: Service, jobs: Jobs, outbox: Outbox) -> Starlette:
        """Return the endpoint."""

        def refuse(request: Request) -> str | None:
            problem = self._verifier.problem_of_headers(request.headers, utc_now())
            if problem is not None:
                service.health.count("callbacks_refused")
            return problem

        async def called(token: str, body: bytes, request: Request) -> Response:
            signed = self._verifier.check(request.headers, body, utc_now(), self._url(token))
            if not isinstance(signed, Signed):
                service.health.count("callbacks_refused")
                return reply(HTTPStatus.UNAUTHORIZED, signed)
            if not _TOKEN.fullmatch(token):
                return reply(HTTPStatus.NOT_FOUND, NOT_EXPECTED)
            try:
                return await self._take(token, codec.decode(body), signed, jobs, outbox)
            except codec.InvalidJson as error:
                return reply(HTTPStatus.BAD_REQUEST, f"this JSON cannot be taken: {error}")
            except POSTGRES_GONE:
                return reply(HTTPStatus.SERVICE_UNAVAILABLE, "try again")
            except _UnreadableError as error:
                service.log.exception("a callback cannot be read", operation=error.operation)
                return reply(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

        return endpoint(refuse, called)

    def _url(self, token: str) -> str:
        return f"{self._settings.url.rstrip('/')}/callbacks/{token}"

    async def _take(self, token: str, body: Json, signed: Signed, jobs: Jobs, outbox: Outbox) -> Response:
        failpoints.hit("callbacks.before_answer")
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(self._sql["find"], token)
            operation = self._operations.get(row["operation"]) if row else None
            if row is None or operation is None:
                return reply(HTTPStatus.NOT_FOUND, NOT_EXPECTED)
            if row["result"] is not None:
                return reply(HTTPStatus.OK, "known")
            request = codec.read(CallRequest, row["request"], limits=codec.STORED)
            result = await self._result(operation, body)
            if result is None:
                return reply(HTTPStatus.ACCEPTED, "not finished yet")
            if not signed.names_address and not await connection.fetchval(self._sql["hear"], signed.digest, token):
                return reply(HTTPStatus.UNAUTHORIZED, "this message was for another address")
            await connection.execute(self._sql["say"], token, result.to_bytes(), result.error is not None)
            answer = await self._answer(connection, request, result, jobs)
        failpoints.hit("callbacks.after_answer")
        key = (request.run_id, request.request_id)
        if answer is not None:
            jobs.hold(key)
            outbox.publish_stored(key, request.partition, request.tenant, row["traceparent"], answer)
        return reply(HTTPStatus.OK, "taken" if answer is not None else "kept")

    async def _result(self, operation: Operation, body: Json) -> Result | None:
        try:
            result = await operation.read_callback(body)
        except ToolFailure as failure:
            is_undone = failure.undone and operation.contract.effect.writes
            # The upstream knew the tool when it took the work on. Later it says no to the work itself.
            declined = {"declined": True} if failure.code is ErrorCode.FORBIDDEN else {}
            result = failure.result(**({EFFECT: NO_EFFECT} if is_undone else {}), **declined)
        except Exception as error:
            # The tool's own code reads the body, and senders are not bound to any form.
            raise _UnreadableError(operation.contract.operation) from error
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
        encoded = answer.to_bytes()
        finished = Finished(request, answer, None, encoded)
        if self._ledger.applies_to(finished):
            await self._ledger.write(connection, [finished])
        key = (request.run_id, request.request_id)
        if not await connection.fetchval(self._sql["answer"], *key, jobs.lease, encoded):
            return None
        if claim_check.needs_claim(encoded, self._service_settings.inline_max_bytes):
            await claim_check.store(connection, [Claim(request.run_id, request.tenant, encoded)])
        return encoded


def _lost() -> ToolFailure:
    return ToolFailure(ErrorCode.CANCELLED, "the job belongs to another process now")
