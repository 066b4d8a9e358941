"""Map the answers of an MCP server to data or to an error code. Pure.

A server's words never decide whether something was done: a write that failed may have happened, unless
the protocol says that the request itself was refused.
"""

from __future__ import annotations

import re
from typing import Any

from mcp import MCPError, types

from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.mcp.contracts import McpOperation
from triptych.tools.adapters.mcp.tasks import TaskFailedError
from triptych.tools.adapters.mcp.wire import NOT_SENT, UNREADABLE
from triptych.tools.http.errors import STATUS_CODES, one_line
from triptych.tools.sdk import refusals
from triptych.tools.sdk.failure import ToolFailure

HTTP_STATUS, RETRY_AFTER_MS = "http_status", "retry_after_ms"
"""What our own transport puts into the `data` of a JSON-RPC error."""

ASKS = "asks"
"""A detail of what is refused because the server wants an answer in the middle of a call: no attempt gets one."""
_ASKS = re.compile(
    r"\b(elicitation|sampling|roots)\b( \w+)? (is |are )?not supported"
    r"|\bnot support (\w+ )?(elicitation|sampling|roots)\b",
    re.IGNORECASE,
)
"""What servers say when our answer, or our list of capabilities, tells them that we do not support it."""

_SERVER_ERROR = 500
_LOOKED_AT_MAX_CHARS = 4_000
"""Of what a server says went wrong, so much is looked at."""
_TRACE = "Traceback (most recent"

_PROTOCOL: dict[int, ErrorCode] = {
    UNREADABLE: ErrorCode.CONTRACT_VIOLATION,
    NOT_SENT: ErrorCode.INVALID_ARGUMENTS,
    types.PARSE_ERROR: ErrorCode.CONTRACT_VIOLATION,
    types.CONNECTION_CLOSED: ErrorCode.UNAVAILABLE,
    types.REQUEST_TIMEOUT: ErrorCode.TIMEOUT,
    types.INVALID_PARAMS: ErrorCode.INVALID_ARGUMENTS,
    types.METHOD_NOT_FOUND: ErrorCode.CONTRACT_VIOLATION,
    types.URL_ELICITATION_REQUIRED: ErrorCode.UNAUTHENTICATED,
    types.HEADER_MISMATCH: ErrorCode.CONTRACT_VIOLATION,
    types.UNSUPPORTED_PROTOCOL_VERSION: ErrorCode.CONTRACT_VIOLATION,
}
"""JSON-RPC codes; any other is `internal`. `refusals` says which of them mean that nothing was done."""

_SAID: tuple[tuple[ErrorCode, re.Pattern[str]], ...] = tuple(
    (code, re.compile(words, re.IGNORECASE))
    for code, words in (
        (ErrorCode.RATE_LIMITED, r"rate.?limit|too many requests|quota|\b429\b"),
        (ErrorCode.UNAUTHENTICATED, r"unauthori[sz]ed|unauthenticated|authenticat|invalid (api )?(key|token)|\b401\b"),
        (
            ErrorCode.FORBIDDEN,
            r"forbidden|permission|not (allowed|permitted)|access denied|outside the allowed|\b403\b",
        ),
        (ErrorCode.TIMEOUT, r"timed? ?out|deadline exceeded|\b504\b"),
        (ErrorCode.UNAVAILABLE, r"unavailable|connection \w+|fail\w{0,20} to connect|unreachable|\b50[23]\b"),
        (
            ErrorCode.INVALID_ARGUMENTS,
            (
                "invalid|validation error|required|missing|must (be|have|not)|expected|malformed|not found|no such|"
                r"does(n't| not) exist|unknown|already exists|\b4(00|04|09|22)\b"
            ),
        ),
    )
)
"""What a tool's own error text most likely means, the first that fits. The protocol has no codes for it.

None of them is `not_found`: that would make a read that failed look like one that found nothing.
"""


def data_of(result: types.CallToolResult, offer: McpOperation) -> Json:
    """Return the data of a successful result, or None without data. The runtime checks the contract."""
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    if offer.is_structured:
        structured = _written_out(texts) if result.structured_content is None else result.structured_content
        if structured is None:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{offer.contract.operation} promises a structured result and the server sent none",
            )
        return structured
    others = [block for block in result.content if not isinstance(block, types.TextContent)]
    if not result.content:
        return None
    attachments: list[Any] = [_attachment(block) for block in others]
    return {"text": "\n".join(texts), "attachments": attachments}


def _written_out(texts: list[str]) -> dict[str, Json] | None:
    """Return the structured result of a server that only writes it out as text, which the protocol asks for as well."""
    if len(texts) != 1:
        return None
    try:
        written = codec.decode(texts[0].encode())
    except (codec.InvalidJson, UnicodeError):
        return None
    return written if isinstance(written, dict) else None


def failure_of_result(result: types.CallToolResult, offer: McpOperation) -> ToolFailure:
    """Return what a result with `isError` means."""
    said = " ".join(block.text for block in result.content if isinstance(block, types.TextContent))
    code = next((code for code, words in _SAID if words.search(said[:_LOOKED_AT_MAX_CHARS])), ErrorCode.INTERNAL)
    told = one_line(said.partition(_TRACE)[0])
    if _ASKS.search(said[:_LOOKED_AT_MAX_CHARS]):
        return _wants_an_answer(offer, told)
    return ToolFailure(code, f"{offer.contract.operation} failed: {told}", undone=False)


def failure_of_error(error: MCPError, offer: McpOperation, *, is_listed: bool) -> ToolFailure:
    """Return what a JSON-RPC error means. `is_listed`: the server still offers the tool."""
    operation, told = offer.contract.operation, one_line(error.message)
    data = error.data if isinstance(error.data, dict) else {}
    if (status := data.get(HTTP_STATUS)) is not None:
        return ToolFailure(
            _code_of_status(status),
            f"{operation}: {told}",
            retry_after_ms=data.get(RETRY_AFTER_MS),
            undone=refusals.is_refusal_by_status(status),
            http_status=status,
        )
    is_lacking = error.code == types.MISSING_REQUIRED_CLIENT_CAPABILITY
    if is_lacking or _ASKS.search(error.message[:_LOOKED_AT_MAX_CHARS]):
        needed = one_line(codec.encode_text(data.get("requiredCapabilities", error.message)))
        return _wants_an_answer(offer, needed if is_lacking else told)
    code = _PROTOCOL.get(error.code, ErrorCode.INTERNAL)
    undone = error.code == NOT_SENT or refusals.is_refusal_by_json_rpc(error.code)
    if error.code == UNREADABLE:
        return ToolFailure(code, f"{operation} was answered, and the answer cannot be read: {told}", undone=False)
    if error.code == types.INVALID_PARAMS and not is_listed:
        return ToolFailure(
            ErrorCode.CONTRACT_VIOLATION,
            f"{operation}: the server does not offer {offer.tool.name} any more: {told}",
            undone=True,
        )
    if code is ErrorCode.CONTRACT_VIOLATION:
        return ToolFailure(code, f"{operation}: the server does not understand the call: {told}", undone=undone)
    return ToolFailure(code, f"{operation}: {told}", undone=undone)


def failure_of_task(error: TaskFailedError, offer: McpOperation) -> ToolFailure:
    """Return the failure of a task without a result. The server took it on, so it may have taken effect."""
    told = f"task {one_line(error.task_id)}: {one_line(error.why)}"
    if error.asks:
        return _wants_an_answer(offer, told)
    return ToolFailure(error.code, f"{offer.contract.operation}: {told}", undone=False)


def _wants_an_answer(offer: McpOperation, told: str) -> ToolFailure:
    return ToolFailure(
        ErrorCode.CONTRACT_VIOLATION,
        f"{offer.contract.operation} wants a model, a person or folders of its caller in the middle of a call; "
        f"no attempt has one ({told})",
        undone=False,
        **{ASKS: True},
    )


def failure_of_shape(error: Exception, offer: McpOperation) -> ToolFailure:
    """Return what the SDK could not read, or what does not fit the schema that the server itself gave."""
    return ToolFailure(
        ErrorCode.CONTRACT_VIOLATION,
        f"{offer.contract.operation} answered something that is not what it promised: {one_line(str(error))}",
        undone=False,
    )


def _code_of_status(status: int) -> ErrorCode:
    """Return a status of the server's endpoint, which says nothing of the tool's own objects."""
    if status >= _SERVER_ERROR:
        return ErrorCode.UNAVAILABLE
    code = STATUS_CODES.get(status, ErrorCode.CONTRACT_VIOLATION)
    about_the_caller = {ErrorCode.UNAUTHENTICATED, ErrorCode.FORBIDDEN, ErrorCode.RATE_LIMITED, ErrorCode.TIMEOUT}
    return code if code in about_the_caller else ErrorCode.CONTRACT_VIOLATION


def _attachment(block: types.ContentBlock) -> dict[str, Json]:
    kept: dict[str, Json] = block.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"meta", "annotations", "icons"}
    )
    return kept
