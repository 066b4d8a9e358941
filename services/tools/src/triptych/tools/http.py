"""What an HTTP answer or failure means in the one list of error codes. Nothing secret gets into a message."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx

from triptych.schemas.result import ErrorCode
from triptych.tools.failure import ToolFailure

STATUS_CODES: dict[int, ErrorCode] = {
    400: ErrorCode.INVALID_ARGUMENTS,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.INVALID_ARGUMENTS,
    408: ErrorCode.TIMEOUT,
    409: ErrorCode.CONFLICT,
    410: ErrorCode.NOT_FOUND,
    413: ErrorCode.INVALID_ARGUMENTS,
    415: ErrorCode.INVALID_ARGUMENTS,
    422: ErrorCode.INVALID_ARGUMENTS,
    425: ErrorCode.UNAVAILABLE,
    429: ErrorCode.RATE_LIMITED,
}
_EXCERPT_MAX_CHARS = 300
_SERVER_ERROR = 500


def check(response: httpx.Response) -> httpx.Response:
    """The response itself, or ToolFailure when its status says that it failed."""
    if response.is_success:
        return response
    status = response.status_code
    fallback = ErrorCode.UNAVAILABLE if status >= _SERVER_ERROR else ErrorCode.INVALID_ARGUMENTS
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "unknown status"
    raise ToolFailure(
        STATUS_CODES.get(status, fallback),
        f"{_target(response.request)} answered {status} {phrase}: {response.text[:_EXCERPT_MAX_CHARS]}",
        retry_after_ms=_retry_after_ms(response.headers.get("retry-after")),
        http_status=status,
    )


def failure_of(error: httpx.HTTPError | httpx.InvalidURL) -> ToolFailure:
    """What a request that got no answer means."""
    target = _target(error.request) if isinstance(error, httpx.HTTPError) and error._request else "the upstream"  # noqa: SLF001 - `.request` raises when there is none
    match error:
        case httpx.HTTPStatusError():
            try:
                check(error.response)
            except ToolFailure as failure:
                return failure
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            # Nothing was sent, so nothing was done.
            return ToolFailure(
                ErrorCode.UNAVAILABLE, f"{target} cannot be reached ({type(error).__name__})", undone=True
            )
        case httpx.TimeoutException():
            return ToolFailure(ErrorCode.TIMEOUT, f"{target} did not answer in time ({type(error).__name__})")
        case httpx.InvalidURL() | httpx.UnsupportedProtocol():
            return ToolFailure(ErrorCode.INTERNAL, "the tool is configured with an address that is no URL", undone=True)
        case _:
            pass
    return ToolFailure(ErrorCode.UNAVAILABLE, f"the connection to {target} broke ({type(error).__name__})")


def _target(request: httpx.Request) -> str:
    """Method, host and path. The query and the user part can hold secrets."""
    return f"{request.method} {request.url.host}{request.url.path}"


def _retry_after_ms(stated: str | None) -> int | None:
    """RFC 9110, 10.2.3: seconds, or a date."""
    if not stated:
        return None
    try:
        return max(0, int(float(stated) * 1_000))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(stated)
    except ValueError:
        return None
    left = at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)
    return max(0, int(left.total_seconds() * 1_000))
