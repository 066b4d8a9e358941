"""How a request shows who it comes from. Secrets are read from variables that the options name, and kept here.

What this adds to a request never reaches a log, a message or an error: those tell method, host and path only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from http import HTTPStatus
from typing import Annotated, Literal

import httpx
import orjson
from pydantic import Field, SecretStr, StringConstraints

from triptych.schemas.result import ErrorCode
from triptych.tools.failure import ToolFailure
from triptych.tools.source import Options, Source

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable that holds a secret."""

CREDENTIAL_HEADERS = frozenset(
    {"api-key", "apikey", "authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token"}
)
"""Headers that hold a secret wherever they are used; a secret is neither an argument nor an option."""

_RENEW_BEFORE_S = 30.0
_LIFETIME_S = 300.0
"""How long a token counts as good when its issuer does not say."""


class Bearer(Options):
    """`Authorization: Bearer ...`"""

    kind: Literal["bearer"]
    token_env: Variable


class Basic(Options):
    """`Authorization: Basic ...`"""

    kind: Literal["basic"]
    username_env: Variable
    password_env: Variable


class ApiKey(Options):
    """A key in a header, the query or a cookie."""

    kind: Literal["api_key"]
    place: Literal["header", "query", "cookie"] = "header"
    name: Annotated[str, Field(min_length=1)]
    key_env: Variable


class ClientCredentials(Options):
    """OAuth2 client credentials: a token that is fetched, kept for as long as it is good, and fetched again."""

    kind: Literal["client_credentials"]
    token_url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    client_id_env: Variable
    client_secret_env: Variable
    scopes: tuple[str, ...] = ()


Auth = Annotated[Bearer | Basic | ApiKey | ClientCredentials, Field(discriminator="kind")]


def authentication(auth: Auth, source: Source) -> httpx.Auth:
    """What httpx applies to each request.

    Raises:
        ConfigurationError: a variable is not set.
    """
    match auth:
        case Bearer():
            return _Header("authorization", "Bearer ", source.secret(auth.token_env))
        case Basic():
            username, password = source.secret(auth.username_env), source.secret(auth.password_env)
            return httpx.BasicAuth(username.get_secret_value(), password.get_secret_value())
        case ApiKey(place="query"):
            return _Query(auth.name, source.secret(auth.key_env))
        case ApiKey(place="cookie"):
            return _Cookie(auth.name, source.secret(auth.key_env))
        case ApiKey():
            return _Header(auth.name, "", source.secret(auth.key_env))
        case ClientCredentials():
            return _ClientCredentials(auth, source.secret(auth.client_id_env), source.secret(auth.client_secret_env))


class _Header(httpx.Auth):
    def __init__(self, name: str, prefix: str, secret: SecretStr) -> None:
        self._name, self._prefix, self._secret = name, prefix, secret

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers[self._name] = f"{self._prefix}{self._secret.get_secret_value()}"
        yield request


class _Query(httpx.Auth):
    def __init__(self, name: str, secret: SecretStr) -> None:
        self._name, self._secret = name, secret

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.url = request.url.copy_set_param(self._name, self._secret.get_secret_value())
        yield request


class _Cookie(httpx.Auth):
    def __init__(self, name: str, secret: SecretStr) -> None:
        self._name, self._secret = name, secret

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        own = f"{self._name}={self._secret.get_secret_value()}"
        request.headers["cookie"] = f"{request.headers['cookie']}; {own}" if "cookie" in request.headers else own
        yield request


class _ClientCredentials(httpx.Auth):
    """One token for all calls of the process; a 401 makes it stale once, since nothing was done."""

    def __init__(self, options: ClientCredentials, client_id: SecretStr, client_secret: SecretStr) -> None:
        self._options, self._client_id, self._client_secret = options, client_id, client_secret
        self._token = ""
        self._good_until_s = 0.0
        self._fetching = asyncio.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        for is_last in (False, True):
            async with self._fetching:
                if time.monotonic() >= self._good_until_s:
                    token_response = yield self._token_request()
                    await self._keep(token_response)
                used = self._token
            request.headers["authorization"] = f"Bearer {used}"
            response = yield request
            if response.status_code != HTTPStatus.UNAUTHORIZED or is_last:
                return
            if used == self._token:
                self._good_until_s = 0.0

    def _token_request(self) -> httpx.Request:
        form = {"grant_type": "client_credentials"}
        if self._options.scopes:
            form["scope"] = " ".join(self._options.scopes)
        request = httpx.Request("POST", self._options.token_url, data=form, headers={"accept": "application/json"})
        who = httpx.BasicAuth(self._client_id.get_secret_value(), self._client_secret.get_secret_value())
        return next(who.auth_flow(request))

    async def _keep(self, response: httpx.Response) -> None:
        content = await response.aread()
        host = response.request.url.host
        if not response.is_success:
            code = ErrorCode.UNAVAILABLE if response.is_server_error else ErrorCode.UNAUTHENTICATED
            message = f"{host} gave no token ({response.status_code}); check the client id, its secret and the scopes"
            raise ToolFailure(code, message, undone=True, http_status=response.status_code)
        try:
            answered = orjson.loads(content)
            self._token = str(answered["access_token"])
            lifetime_s = float(answered.get("expires_in") or _LIFETIME_S)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            message = f"{host} answered the request for a token with something that is none"
            raise ToolFailure(ErrorCode.UNAUTHENTICATED, message, undone=True) from None
        self._good_until_s = time.monotonic() + max(0.0, lifetime_s - min(_RENEW_BEFORE_S, lifetime_s / 2))
