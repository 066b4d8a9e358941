"""Map HTTP answers and failures to error codes.

People and models read the messages. So a message has no secret and no web page: of an answer that reports a failure,
only the stated reason is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx

from triptych.playbook.expressions import ExpressionError, holds
from triptych.schemas import codec
from triptych.schemas.base import Expression, Json
from triptych.schemas.result import ErrorCode
from triptych.tools.http.client import body_text, charset_of, location_of, states_unknown_charset
from triptych.tools.sdk import refusals
from triptych.tools.sdk.failure import ToolFailure

STATUS_CODES: dict[int, ErrorCode] = {
    400: ErrorCode.INVALID_ARGUMENTS,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.INVALID_ARGUMENTS,
    408: ErrorCode.TIMEOUT,
    409: ErrorCode.CONFLICT,
    407: ErrorCode.UNAUTHENTICATED,
    410: ErrorCode.NOT_FOUND,
    412: ErrorCode.CONFLICT,
    413: ErrorCode.INVALID_ARGUMENTS,
    415: ErrorCode.INVALID_ARGUMENTS,
    421: ErrorCode.UNAVAILABLE,
    422: ErrorCode.INVALID_ARGUMENTS,
    423: ErrorCode.CONFLICT,
    425: ErrorCode.UNAVAILABLE,
    429: ErrorCode.RATE_LIMITED,
    451: ErrorCode.FORBIDDEN,
    499: ErrorCode.TIMEOUT,
}
"""The error code of each status. refusals.py says whether the server has done nothing."""
PROBLEM = "application/problem+json"
"""RFC 9457: an error, with any status."""
_EXCERPT_MAX_CHARS = 300
_SERVER_ERROR = 500
_CLIENT_ERROR = 400
REDIRECTS = range(300, 400)
LOCATION = "location"
"""The detail of a failure that says where a redirect leads."""
_LOCATION_MAX_CHARS = 300

_STATED = ("detail", "message", "error_description", "title", "error", "errors", "code", "type")
"""Where APIs say what went wrong, the most telling first."""
_PAGE = re.compile(r"<!doctype|<html|<body|<head", re.IGNORECASE)
_TRACE = re.compile(
    r"Traceback \(most recent|^[ \t]{1,40}at [^\n]{1,300}[:(]|File \"[^\"\n]{1,300}\", line \d|\.\w{1,100}:\d{1,9}\)"
    r"|goroutine \d",
    re.MULTILINE,
)
_LOOKED_AT_MAX_CHARS = 4_000
"""Of what somebody else says went wrong, so much is looked at: others choose the text."""
_NESTED_MAX = 5
_RETRY_AFTER_MAX_MS = 24 * 3_600_000
_EPOCH_S = 1_000_000_000
"""The year 2001, in seconds since 1970."""


def check_status(response: httpx.Response) -> httpx.Response:
    """Return the response itself, or ToolFailure when its status is none of a whole success.

    What the server has done is known for the statuses in `refusals.HTTP_STATUSES` alone.
    """
    status = response.status_code
    if response.is_success and status != HTTPStatus.PARTIAL_CONTENT:
        return response
    where = f"{_target(response.request)} answered {status} {_phrase(status)}"
    if status in REDIRECTS:
        raise _redirected(response, where)
    code = _code_of(status)
    is_undone = refusals.is_refusal_by_status(status)
    if code is ErrorCode.NOT_FOUND and is_page(response):
        # An API that misses a thing says so in its own form. A page comes from another program at this address.
        code, is_undone = ErrorCode.CONTRACT_VIOLATION, False
    raise ToolFailure(
        code,
        f"{where}: {stated_reason(response)}",
        retry_after_ms=retry_after_ms(response.headers.get("retry-after")),
        undone=is_undone,
        http_status=status,
    )


def _redirected(response: httpx.Response, where: str) -> ToolFailure:
    """Return the failure of a redirect that is not followed. A server may send it after the work: 303 for a form."""
    location = shown_location(response)
    leads = f"and leads to {location}" if location else "and names no other place"
    details: dict[str, Json] = {"http_status": response.status_code}
    if location is not None:
        details[LOCATION] = location
    return ToolFailure(
        ErrorCode.CONTRACT_VIOLATION,
        f"{where} {leads}; it is not followed. If the operation is there, change the tool's base URL or its document",
        retry_after_ms=None,
        undone=False,
        **details,
    )


def shown_location(response: httpx.Response) -> str | None:
    """Return the target of a redirect for messages: without user part, query and fragment, which can hold secrets."""
    stated_location = location_of(response)
    if stated_location is None:
        return None
    try:
        url = response.request.url.join(stated_location)
        told = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return "an address that is not a URL"
    return " ".join(told.split())[:_LOCATION_MAX_CHARS]


def json_content(response: httpx.Response, success: Expression | None = None) -> Json:
    """Return the JSON that a response holds; None when it holds nothing.

    `success` is CEL over `body`: true when the call worked, for APIs that answer 200 to failures too.

    Raises:
        ToolFailure: it failed, by its status, by its own account, or because it is not JSON.
    """
    check_status(response)
    if response.status_code in {HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT} or not response.content.strip():
        return None
    where = f"{_target(response.request)} answered {response.status_code}"
    if not is_json(_media_type(response)):
        kind = _media_type(response) or "no content type"
        raise ToolFailure(ErrorCode.CONTRACT_VIOLATION, f"{where} with {kind} where JSON belongs")
    try:
        body = _json_of(response)
    except codec.InvalidJson as error:
        raise ToolFailure(
            ErrorCode.CONTRACT_VIOLATION,
            f"{where} with JSON that cannot be read: {error}",
            done=not isinstance(error, codec.NotJson),
        ) from None
    if _media_type(response) == PROBLEM:
        status = body.get("status") if isinstance(body, dict) else None
        code = _code_of(status) if isinstance(status, int) and status >= _CLIENT_ERROR else ErrorCode.INTERNAL
        # The status says that it was done, and the body that it was not.
        raise ToolFailure(code, f"{where}, but its body is an error: {stated_reason(response)}", undone=False)
    if success is not None:
        _check_success(success, body, response, where)
    return body


def stated_reason(response: httpx.Response) -> str:
    """Return the reason that a failed response states, in one line: never a page, never a stack trace."""
    if is_json(_media_type(response)):
        try:
            reason = " · ".join(dict.fromkeys(_reasons(_json_of(response))))
        except codec.InvalidJson:
            reason = ""
    else:
        reason = "" if is_page(response) else body_text(response)
    return one_line(reason)


def one_line(reason: str) -> str:
    """Return what somebody else says went wrong, short, and nothing of it when it is a page or a stack trace."""
    reason = reason[:_LOOKED_AT_MAX_CHARS]
    if _TRACE.search(reason) or _PAGE.search(reason):
        reason = ""
    line = " ".join(reason.split())
    return line[:_EXCERPT_MAX_CHARS] or "it states no reason"


def failure_of_request(error: httpx.HTTPError | httpx.InvalidURL) -> ToolFailure:
    """Return what a request that got no answer means."""
    target = _target(error.request) if isinstance(error, httpx.HTTPError) and error._request else "the upstream"  # noqa: SLF001 - `.request` raises when it is not set
    undone = refusals.was_not_sent(error)
    kind = type(error).__name__
    match error:
        case httpx.HTTPStatusError():
            try:
                check_status(error.response)
            except ToolFailure as failure:
                return failure
        case httpx.InvalidURL() | httpx.UnsupportedProtocol():
            return ToolFailure(
                ErrorCode.INTERNAL, "the tool is configured with an address that is not a URL", undone=undone
            )
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout() | httpx.ProxyError():
            return ToolFailure(ErrorCode.UNAVAILABLE, f"{target} cannot be reached ({kind})", undone=undone)
        case httpx.TimeoutException():
            return ToolFailure(ErrorCode.TIMEOUT, f"{target} did not answer in time ({kind})", undone=undone)
        case _:
            pass
    return ToolFailure(ErrorCode.UNAVAILABLE, f"the connection to {target} broke ({kind})", undone=undone)


def _check_success(success: Expression, body: Json, response: httpx.Response, where: str) -> None:
    try:
        worked = holds(success, {"body": body})
    except ExpressionError as error:
        message = f"{where}, and whether it worked cannot be told by `{success}`: {error}"
        raise ToolFailure(ErrorCode.CONTRACT_VIOLATION, message) from None
    if not worked:
        raise ToolFailure(ErrorCode.INTERNAL, f"{where}, but by `{success}` it failed: {stated_reason(response)}")


def _reasons(body: Json, depth: int = 0) -> Iterator[str]:
    """Yield what a body says went wrong, looked for where APIs put it."""
    match body:
        case str():
            yield body
        case Mapping():
            for name in _STATED:
                match body.get(name):
                    case None | "":
                        pass
                    case str() as reason:
                        yield reason
                    case Mapping() as nested if name == "error" and depth < _NESTED_MAX:
                        yield from _reasons(nested, depth + 1)
                    case found:
                        yield codec.encode_text(found)


def _code_of(status: int) -> ErrorCode:
    if status >= _SERVER_ERROR:
        fallback = ErrorCode.UNAVAILABLE
    else:
        fallback = ErrorCode.INVALID_ARGUMENTS if status >= _CLIENT_ERROR else ErrorCode.CONTRACT_VIOLATION
    return STATUS_CODES.get(status, fallback)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"


def _media_type(response: httpx.Response) -> str:
    return essence(response.headers.get("content-type", ""))


def essence(media_type: str) -> str:
    """Return a media type without its parameters, in small letters."""
    return media_type.partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Return whether this media type is JSON, such as `application/problem+json; charset=utf-8`."""
    kind = essence(media_type)
    return kind in {"application/json", "text/json"} or kind.endswith("+json")


def _json_of(response: httpx.Response) -> Json:
    """Return the JSON of a body, in the charset that it states, else in UTF-8. Raises codec.InvalidJson.

    In an unknown charset, characters beyond ASCII are replaced: the answer of a write that has happened is not lost.
    """
    charset = charset_of(response)
    if charset is None:
        is_unknown = states_unknown_charset(response)
        return codec.decode(body_text(response).encode() if is_unknown else response.content)
    try:
        return codec.decode(response.content.decode(charset).encode())
    except UnicodeError:
        raise codec.NotJson(f"the text is not {charset}, which its content type states") from None


def is_page(response: httpx.Response) -> bool:
    """Return whether a response is a web page, which people read and no program."""
    kind = _media_type(response)
    return "html" in kind or (not is_json(kind) and bool(_PAGE.search(body_text(response))))


def _target(request: httpx.Request) -> str:
    """Method, host and path. The query and the user part can hold secrets."""
    return f"{request.method} {request.url.host}{request.url.path}"


def retry_after_ms(stated: str | None) -> int | None:
    """Return what a `Retry-After` asks for (RFC 9110, 10.2.3: seconds, or a date), at most a day."""
    if not stated:
        return None
    try:
        wait_s = float(stated)
    except ValueError:
        try:
            at = parsedate_to_datetime(stated)
        except (ValueError, OverflowError):
            return None
        wait_s = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    if not math.isfinite(wait_s):
        return None
    if wait_s >= _EPOCH_S:
        # A wait of decades is meant as a time, in seconds or in milliseconds.
        at_s = wait_s / 1_000 if wait_s >= _EPOCH_S * 1_000 else wait_s
        wait_s = at_s - datetime.now(UTC).timestamp()
    return int(min(max(0.0, wait_s * 1_000), _RETRY_AFTER_MAX_MS))
