"""Make operations of endpoints: one client for the process, one request for an attempt, a lookup for a lost answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Self
from urllib.parse import unquote

import httpx
from pydantic import AfterValidator, Field, SecretStr, model_validator

from triptych.kernel.errors import ConfigurationError
from triptych.playbook import expressions
from triptych.playbook.expressions import ExpressionError
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest.address import problem_of_base_url
from triptych.tools.adapters.rest.auth import CREDENTIAL_HEADERS, Auth, ClientCredentials, Variable, authentication
from triptych.tools.adapters.rest.endpoint import Endpoint
from triptych.tools.adapters.rest.request import build_request
from triptych.tools.adapters.rest.response import read_result
from triptych.tools.http.client import exchange, open_client, origin_of, session_cookies
from triptych.tools.sdk.call import Accepted, Call, Resources
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.operation import Completion, Operation, Reconcile
from triptych.tools.sdk.source import Options, Source

LOOKUP_ARGUMENTS = frozenset({"arguments", "key"})
"""The variables in the arguments of a lookup: the arguments of the write, and its idempotency key."""
LOOKUP_FOUND = LOOKUP_ARGUMENTS | {"result"}


@dataclass(frozen=True, slots=True)
class Lookup:
    """How to find the result of a write whose answer was lost."""

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
    hosts: frozenset[str]
    """The origins that the credential may go to."""


def _is_base_url(url: str) -> str:
    if problem := problem_of_base_url(url):
        raise ValueError(problem)
    if httpx.URL(url).userinfo:
        raise ValueError("it holds a user, and files must not hold secrets: use `auth`, or base_url_env")
    return url


def _is_origin(stated: str) -> str:
    url = httpx.URL(_is_base_url(stated))
    if url.path not in {"", "/"}:
        raise ValueError("only scheme, host and port: https://api.example.com")
    return origin_of(url)


def _without_secrets(headers: dict[str, str]) -> dict[str, str]:
    for name in headers:
        if name.lower() in CREDENTIAL_HEADERS:
            raise ValueError(f"{name} holds a secret, and files must not hold secrets: use `auth`")
    return headers


class UpstreamOptions(Options):
    """How an upstream is reached; the same keys for every adapter that calls declared endpoints."""

    base_url: Annotated[str, AfterValidator(_is_base_url)] | None = None
    base_url_env: Variable | None = None
    """The variable that holds the base URL, where it is known only when the stack has started."""
    auth: Auth | None = None
    headers: Annotated[dict[str, str], AfterValidator(_without_secrets)] = Field(default_factory=dict)
    """These go with every request. A secret does not belong here: see `auth`."""
    hosts: Annotated[tuple[Annotated[str, AfterValidator(_is_origin)], ...], Field(min_length=1)] | None = None
    """Where the credential may go: `https://api.example.com`, each with its port if it has one of its own. Without it,
    to where the tool went when it was started."""
    concurrency: Annotated[int, Field(ge=1, le=1_000)] = 16

    @model_validator(mode="after")
    def _token_comes_from_a_host(self) -> Self:
        if isinstance(self.auth, ClientCredentials) and self.hosts is not None:
            origin = origin_of(httpx.URL(self.auth.token_url))
            if origin not in self.hosts:
                raise ValueError(
                    f"auth.token_url is at {origin}, which is not in `hosts`; add it if it may have the secret"
                )
        return self

    @property
    def variables(self) -> tuple[str, ...]:
        """Return the environment variables that must be set where the tool runs."""
        named = [] if self.auth is None else [key for key in type(self.auth).model_fields if key.endswith("_env")]
        auth = tuple(str(getattr(self.auth, key)) for key in named)
        return auth if self.base_url_env is None else (self.base_url_env, *auth)

    def base(self, source: Source) -> str:
        """Return the base URL, or nothing where endpoints have addresses of their own.

        Raises:
            ConfigurationError: the variable that should hold it is not set.
        """
        if self.base_url_env is None:
            return (self.base_url or "").rstrip("/")
        url = source.variable(self.base_url_env)
        if problem := problem_of_base_url(url):
            raise ConfigurationError(f"tool {source.name}: {self.base_url_env} holds no base URL: {problem}")
        userinfo = httpx.URL(url).userinfo.decode()
        for secret in {userinfo, *userinfo.split(":", 1), *map(unquote, userinfo.split(":", 1))} - {""}:
            source.secrets.append(SecretStr(secret))
        return url.rstrip("/")

    @property
    def shown_base(self) -> str:
        """Return what stands for the base URL where nothing is called."""
        return f"${self.base_url_env}" if self.base_url_env is not None else (self.base_url or "").rstrip("/")


class HttpOperations:
    """Turns endpoints into operations of one upstream."""

    def __init__(self, source: Source, connection: UpstreamOptions) -> None:
        self._source, self._connection = source, connection
        self._origins: set[str] = set()
        """Where the operations are that were offered when the tool was built."""

    @asynccontextmanager
    async def lifespan(self, _resources: Resources) -> AsyncIterator[Upstream]:
        """Open the client that all calls share. Secrets are read here, so that contracts can be shown without them.

        Raises:
            ConfigurationError: a variable that an option names is not set.
        """
        chosen = self._connection
        base_url = chosen.base(self._source)
        async with open_client(headers=chosen.headers) as client:
            auth = None if chosen.auth is None else authentication(chosen.auth, self._source, client)
            yield Upstream(client, auth, base_url, self._hosts(base_url))

    def _hosts(self, base_url: str) -> frozenset[str]:
        """Return the origins that the credential may go to."""
        if self._connection.hosts is not None:
            return frozenset(self._connection.hosts)
        return frozenset({origin_of(httpx.URL(base_url))} if base_url else self._origins)

    def operation(
        self, endpoint: Endpoint, lookup: Lookup | None = None, completion: Completion | None = None
    ) -> Operation:
        """Return the operation that makes this call. With `completion`, status 202 means that a callback follows."""
        if not endpoint.url.startswith("/"):
            self._origins.add(origin_of(httpx.URL(endpoint.url.partition("{")[0])))

        async def perform(arguments: dict[str, Json], call: Call[Upstream]) -> Json:
            return await self._send(endpoint, arguments, call, is_completed_later=completion is not None)

        return Operation(
            endpoint.contract,
            perform,
            reconcile=None if lookup is None else self._reconcile(lookup),
            completion=completion,
            may_be_empty=not endpoint.contract.effect.writes,
            facts=endpoint.facts(self._connection.shown_base),
        )

    async def _send(
        self, endpoint: Endpoint, arguments: dict[str, Json], call: Call[Upstream], *, is_completed_later: bool = False
    ) -> Json:
        upstream = call.state
        known = {"callback_url": call.callback_url} if is_completed_later else {}
        templates = endpoint.templates
        values = arguments if templates is None else _rendered(endpoint, templates, arguments, known)
        asked = build_request(upstream.client, endpoint, upstream.base_url, values, call.idempotency_key)
        auth = upstream.auth if endpoint.authenticated else None
        if auth is not None:
            _check_host(endpoint, asked, upstream.hosts)
        is_read = not endpoint.contract.effect.writes
        response = await exchange(upstream.client, asked, auth=auth, is_read=is_read)
        for secret in session_cookies(response):
            self._source.learn(secret, "cookie")
        try:
            if is_completed_later and response.status_code == HTTPStatus.ACCEPTED:
                raise Accepted
            return await read_result(endpoint, response)
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


def _check_host(endpoint: Endpoint, asked: httpx.Request, hosts: frozenset[str]) -> None:
    """Raise ToolFailure where a request would take the credential to a host that the options do not name."""
    if (origin := origin_of(asked.url)) not in hosts:
        raise ToolFailure(
            ErrorCode.FORBIDDEN,
            f"{endpoint.contract.operation} is at {origin}, and the credential may go to {', '.join(sorted(hosts))} "
            f"alone; nothing was called. If it may have the credential, add it to "
            f"tools.{endpoint.contract.tool}.options.hosts",
            undone=True,
        )


def _rendered(
    endpoint: Endpoint, templates: dict[str, Json], arguments: dict[str, Json], known: dict[str, Json]
) -> dict[str, Json]:
    """Render the templates with these arguments and `known`. A parameter that is null is not sent."""
    try:
        values = expressions.render(templates, {"arguments": {**endpoint.defaults, **arguments}, **known})
    except ExpressionError as error:
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{endpoint.contract.operation}: {error}", undone=True) from None
    return {name: value for name, value in values.items() if value is not None}
