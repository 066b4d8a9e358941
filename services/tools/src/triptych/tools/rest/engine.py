"""Makes declared calls: one client for the process, one request for an attempt, one lookup where an answer was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

import httpx
from pydantic import AfterValidator, Field, StringConstraints

from triptych.kernel import expressions
from triptych.kernel.expressions import ExpressionError
from triptych.schemas.base import Json
from triptych.schemas.contract import Effect
from triptych.schemas.result import ErrorCode
from triptych.tools.call import Accepted, Call, Resources
from triptych.tools.failure import ToolFailure
from triptych.tools.operation import Completion, Operation, Reconcile
from triptych.tools.rest import answer, request
from triptych.tools.rest.auth import CREDENTIAL_HEADERS, Auth, Variable, authentication
from triptych.tools.rest.endpoint import Endpoint
from triptych.tools.source import Options, Source

KEEPALIVE_S = 1.0
"""Servers drop idle connections after some seconds; a write on one that is being dropped has an unknown outcome."""

LOOKUP_ARGUMENTS = frozenset({"arguments", "key"})
"""The variables in the arguments of a lookup: the arguments of the write, and its idempotency key."""
LOOKUP_FOUND = LOOKUP_ARGUMENTS | {"result"}


@dataclass(frozen=True, slots=True)
class Lookup:
    """How to find out what became of a write whose answer was lost."""

    endpoint: Endpoint
    """A read of the same upstream."""
    arguments: dict[str, Json]
    """Its arguments; templates see `arguments` (of the write) and `key`."""
    found: str
    """An expression over `result` (of the read), `arguments` and `key`: the write's result, or null."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What all calls of a process share."""

    client: httpx.AsyncClient
    auth: httpx.Auth | None
    base_url: str


def _without_secrets(headers: dict[str, str]) -> dict[str, str]:
    for name in headers:
        if name.lower() in CREDENTIAL_HEADERS:
            raise ValueError(f"{name} holds a secret, and no secret stands in a file: say `auth`")
    return headers


class Connection(Options):
    """How an upstream is reached; the same keys for every adapter that calls declared endpoints."""

    base_url: Annotated[str, StringConstraints(pattern=r"^https?://[^?#]+$")] | None = None
    base_url_env: Variable | None = None
    """The variable that holds the base URL, where it is known only when the stack has started."""
    auth: Auth | None = None
    headers: Annotated[dict[str, str], AfterValidator(_without_secrets)] = Field(default_factory=dict)
    """These go with every request. A secret does not belong here: see `auth`."""
    concurrency: Annotated[int, Field(ge=1, le=1_000)] = 16

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that must be set where the tool runs."""
        named = [] if self.auth is None else [key for key in type(self.auth).model_fields if key.endswith("_env")]
        auth = tuple(str(getattr(self.auth, key)) for key in named)
        return auth if self.base_url_env is None else (self.base_url_env, *auth)

    def base(self, source: Source) -> str:
        """The base URL, or nothing where endpoints have addresses of their own.

        Raises:
            ConfigurationError: the variable that should hold it is not set.
        """
        if self.base_url_env is not None:
            return source.variable(self.base_url_env).rstrip("/")
        return (self.base_url or "").rstrip("/")


class Engine:
    """Turns endpoints into operations of one upstream."""

    def __init__(self, source: Source, connection: Connection) -> None:
        self._source, self._connection = source, connection

    @asynccontextmanager
    async def lifespan(self, _resources: Resources) -> AsyncIterator[Upstream]:
        """The client that all calls share. Secrets are read here, so that contracts can be told without them.

        Raises:
            ConfigurationError: a variable that an option names is not set.
        """
        chosen = self._connection
        auth = None if chosen.auth is None else authentication(chosen.auth, self._source)
        base_url = chosen.base(self._source)
        limits = httpx.Limits(keepalive_expiry=KEEPALIVE_S)
        # The runtime sets the time limit of each call; the client's own would only hide it.
        async with httpx.AsyncClient(headers=chosen.headers, limits=limits, timeout=None) as client:  # noqa: S113
            yield Upstream(client, auth, base_url)

    def operation(
        self, endpoint: Endpoint, lookup: Lookup | None = None, completion: Completion | None = None
    ) -> Operation:
        """The operation that makes this call; with `completion` an answer of 202 means that a callback follows."""

        async def perform(arguments: dict[str, Json], call: Call[Upstream]) -> Json:
            return await self._send(endpoint, arguments, call, is_completed_later=completion is not None)

        return Operation(
            endpoint.contract,
            perform,
            reconcile=None if lookup is None else self._reconcile(lookup),
            completion=completion,
            may_be_empty=endpoint.contract.effect is Effect.READ,
        )

    async def _send(
        self, endpoint: Endpoint, arguments: dict[str, Json], call: Call[Upstream], *, is_completed_later: bool = False
    ) -> Json:
        upstream = call.state
        known = {"callback_url": call.callback_url} if is_completed_later else {}
        templates = endpoint.templates
        values = arguments if templates is None else _rendered(endpoint, templates, arguments, known)
        asked = request.build(upstream.client, endpoint, upstream.base_url, values, call.idempotency_key)
        auth = upstream.auth if endpoint.authenticated else None
        response = await upstream.client.send(asked, stream=True, auth=auth)
        try:
            if is_completed_later and response.status_code == HTTPStatus.ACCEPTED:
                raise Accepted
            return await answer.read(endpoint, response)
        except ToolFailure as failure:
            if failure.code is ErrorCode.NOT_FOUND and call.attempt > 1 and endpoint.is_done_when_gone:
                return None
            raise
        finally:
            await response.aclose()

    def _reconcile(self, lookup: Lookup) -> Reconcile:
        async def what_happened(call: Call[Upstream]) -> Json:
            known = {"arguments": call.arguments, "key": call.idempotency_key}
            arguments = expressions.render(lookup.arguments, known)
            result = await self._send(lookup.endpoint, arguments, call)
            return None if result is None else expressions.evaluate(lookup.found, {**known, "result": result})

        return what_happened


def _rendered(
    endpoint: Endpoint, templates: dict[str, Json], arguments: dict[str, Json], known: dict[str, Json]
) -> dict[str, Json]:
    """What the templates give for these arguments and what else is known; a parameter that gives null is not sent."""
    try:
        values = expressions.render(templates, {"arguments": {**endpoint.defaults, **arguments}, **known})
    except ExpressionError as error:
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{endpoint.contract.operation}: {error}", undone=True) from None
    return {name: value for name, value in values.items() if value is not None}
