"""Authenticate requests. Secrets are read from variables that the options name, and stay here.

What this adds to a request never reaches a log, a message or an error: those tell method, host and path only.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Generator
from http import HTTPStatus
from typing import Annotated, Literal

import httpx
from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from triptych.schemas import codec
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest.address import problem_of_base_url
from triptych.tools.http.client import ENCODINGS, read_body
from triptych.tools.http.errors import shown_location
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.source import Options, Source

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable that holds a secret."""

CREDENTIAL_HEADERS = frozenset(
    {"api-key", "apikey", "authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token"}
)
"""Headers that hold a secret wherever they are used; a secret is neither an argument nor an option."""

ROUTING_HEADERS = frozenset(
    {
        "connection", "content-length", "expect", "forwarded", "host", "http-host", "keep-alive", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port",
        "x-forwarded-prefix", "x-forwarded-proto", "x-forwarded-server", "x-host", "x-http-method",
        "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url",
    }
)  # fmt: skip
"""Headers that say where a request ends or goes, or as what it counts; no argument decides that."""
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
"""The name of a header or a cookie (RFC 9110, 5.6.2)."""

_RENEW_BEFORE_S = 30.0
_LIFETIME_S = 300.0
"""How long a token counts as good when its issuer does not say."""
_LIFETIME_MAX_S = 86_400.0
TOKEN_MAX_BYTES = 65_536
_GIVEN_OUT = re.compile(r"[!-~]{1,16384}")
"""The characters that a header can hold."""


def _is_token_url(url: str) -> str:
    if problem := problem_of_base_url(url.partition("?")[0]):
        raise ValueError(problem)
    if httpx.URL(url).userinfo:
        raise ValueError("it holds a user, and files must not hold secrets")
    return url


class BearerOptions(Options):
    """`Authorization: Bearer ...`"""

    kind: Literal["bearer"]
    token_env: Variable


class BasicOptions(Options):
    """`Authorization: Basic ...`"""

    kind: Literal["basic"]
    username_env: Variable
    password_env: Variable


class ApiKeyOptions(Options):
    """A key in a header, the query or a cookie."""

    kind: Literal["api_key"]
    place: Literal["header", "query", "cookie"] = "header"
    name: Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x20\x7f:;,=\"]+$")]
    key_env: Variable


class ClientCredentials(Options):
    """OAuth2 client credentials: a token that is fetched, kept for as long as it is good, and fetched again."""

    kind: Literal["client_credentials"]
    token_url: Annotated[str, AfterValidator(_is_token_url)]
    client_id_env: Variable
    client_secret_env: Variable
    scopes: tuple[str, ...] = ()


Auth = Annotated[BearerOptions | BasicOptions | ApiKeyOptions | ClientCredentials, Field(discriminator="kind")]


def authentication(auth: Auth, source: Source, client: httpx.AsyncClient) -> httpx.Auth:
    """Return what httpx applies to each request. With `client` tokens are fetched.

    Raises:
        ConfigurationError: a variable is not set.
    """
    match auth:
        case BearerOptions():
            return _Header("authorization", "Bearer ", source.secret(auth.token_env))
        case BasicOptions():
            username, password = source.secret(auth.username_env), source.secret(auth.password_env)
            return httpx.BasicAuth(username.get_secret_value(), password.get_secret_value())
        case ApiKeyOptions(place="query"):
            return _Query(auth.name, source.secret(auth.key_env))
        case ApiKeyOptions(place="cookie"):
            return _Cookie(auth.name, source.secret(auth.key_env))
        case ApiKeyOptions():
            return _Header(auth.name, "", source.secret(auth.key_env))
        case ClientCredentials():
            return _ClientCredentials(auth, source, client)


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

    def __init__(self, options: ClientCredentials, source: Source, client: httpx.AsyncClient) -> None:
        self._options, self._source, self._client = options, source, client
        self._client_id = source.secret(options.client_id_env)
        self._client_secret = source.secret(options.client_secret_env)
        self._token = ""
        self._good_until_s = 0.0
        self._fetching = asyncio.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        for is_last in (False, True):
            async with self._fetching:
                if time.monotonic() >= self._good_until_s:
                    await self._fetch()
                used = self._token
            request.headers["authorization"] = f"Bearer {used}"
            response = yield request
            if response.status_code != HTTPStatus.UNAUTHORIZED or is_last:
                return
            if used == self._token:
                self._good_until_s = 0.0

    async def _fetch(self) -> None:
        """Ask for a token. When this fails, the call itself has not been made, or was refused with a 401.

        Raises:
            ToolFailure: no token was given.
        """
        form = {"grant_type": "client_credentials"}
        if self._options.scopes:
            form["scope"] = " ".join(self._options.scopes)
        headers = {"accept": "application/json", "accept-encoding": ENCODINGS}
        who = httpx.BasicAuth(self._client_id.get_secret_value(), self._client_secret.get_secret_value())
        # Not made by the client: that would add the headers which go to the upstream.
        request = httpx.Request("POST", self._options.token_url, data=form, headers=headers)
        host = request.url.host
        try:
            response = await self._client.send(request, stream=True, auth=who)
            try:
                content = await read_body(response, TOKEN_MAX_BYTES)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            message = f"{host} gave no token ({type(error).__name__}); the call was not made"
            raise ToolFailure(ErrorCode.UNAVAILABLE, message, undone=True) from error
        except ToolFailure as failure:
            message = f"{host} gave no token: {failure.message}; the call was not made"
            raise ToolFailure(ErrorCode.UNAVAILABLE, message, undone=True) from failure
        self._store_token(response, content)

    def _store_token(self, response: httpx.Response, content: bytes) -> None:
        host, status = response.request.url.host, response.status_code
        if not response.is_success:
            leads = shown_location(response)
            cure = (
                f"it leads to {leads}, and credentials go nowhere else: change auth.token_url if that is right"
                if leads
                else "check the client id, its secret and the scopes"
            )
            code = ErrorCode.UNAVAILABLE if response.is_server_error else ErrorCode.UNAUTHENTICATED
            raise ToolFailure(code, f"{host} gave no token ({status}); {cure}", undone=True, http_status=status)
        try:
            answered = codec.decode(content)
            token = answered["access_token"]
            lifetime_s = float(answered.get("expires_in") or _LIFETIME_S)
        except (KeyError, TypeError, ValueError):
            token, lifetime_s = None, _LIFETIME_S
        if not isinstance(token, str) or not _GIVEN_OUT.fullmatch(token):
            message = f"{host} answered the request for a token with something that is none"
            raise ToolFailure(ErrorCode.UNAUTHENTICATED, message, undone=True) from None
        self._token = token
        self._source.learn(token)
        if isinstance(refresh := answered.get("refresh_token"), str):
            self._source.learn(refresh)
        lifetime_s = min(max(0.0, lifetime_s), _LIFETIME_MAX_S)
        self._good_until_s = time.monotonic() + lifetime_s - min(_RENEW_BEFORE_S, lifetime_s / 2)
