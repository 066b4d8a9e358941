"""The answers which mean that nothing was done: one closed list for each protocol, and the only place that decides it.

Any other reply, status or error may have taken effect. An adapter asks this module and never decides by itself. So an
answer that is not foreseen counts as unknown, and not as a refusal.
"""

from __future__ import annotations

from typing import Final

import httpx

from triptych.schemas.result import ErrorCode

CODES: Final = frozenset(
    {
        ErrorCode.INVALID_ARGUMENTS,
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.FORBIDDEN,
        ErrorCode.NOT_FOUND,
        ErrorCode.CONFLICT,
        ErrorCode.RATE_LIMITED,
        ErrorCode.BUDGET_EXCEEDED,
    }
)
"""What the author of an operation says with a code alone: the upstream refused the call. An adapter that speaks a
protocol says `undone` itself."""

HTTP_STATUSES: Final = frozenset({400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 429})
"""With these statuses a server refuses a request (RFC 9110 and RFC 6585). A redirect, a success that is none, another
4xx and any 5xx can follow after the work."""

HTTP_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
)
"""With these errors no byte of the request has left: there is no connection, or the proxy gave none. InvalidURL and
UnsupportedProtocol are not among them: httpx raises both for the `Location` of an answer as well."""

JSON_RPC_CODES: Final = frozenset({-32_602, -32_601, -32_020, -32_022})
"""With these codes an MCP server refuses a request before it does anything. They mean invalid parameters, an unknown
method, a wrong header or an unsupported version."""

SMTP_REPLIES: Final = range(400, 600)
"""With a well-formed reply of these codes a mail server has not taken a message (RFC 5321, 4.2.1)."""


def is_refusal_by_json_rpc(code: int) -> bool:
    """Return whether a server that answers a request with this error of JSON-RPC has done nothing."""
    return code in JSON_RPC_CODES


def is_refusal_by_smtp(reply: int) -> bool:
    """Return whether a server that answers a message with this reply has not taken it."""
    return reply in SMTP_REPLIES


def is_refusal_by_code(code: ErrorCode) -> bool:
    """Return whether an operation that fails with this code, and says no more, has done nothing."""
    return code in CODES


def is_refusal_by_status(status: int) -> bool:
    """Return whether a server that answers a request with this HTTP status has done nothing."""
    return status in HTTP_STATUSES


def was_not_sent(error: Exception) -> bool:
    """Return whether the HTTP request that ended with this error never left."""
    return isinstance(error, HTTP_NOT_SENT)
