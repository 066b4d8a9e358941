"""From the answer of an upstream to data, with a limit on how much of it is read.

What comes back is only given a form here; whether it keeps the contract is checked by the runtime.
"""

from __future__ import annotations

import base64
from http import HTTPStatus

import httpx
import orjson

from triptych.schemas.base import Json
from triptych.schemas.contract import Effect
from triptych.schemas.result import ErrorCode
from triptych.tools.failure import ToolFailure
from triptych.tools.http import check
from triptych.tools.rest.endpoint import Endpoint

ANSWER_MAX_BYTES = 4 * 1_048_576
"""More is not read: an answer has to fit into a message of a run, or be stored as one claim."""
ERROR_MAX_BYTES = 65_536
_TEXTUAL = ("text/", "application/xml", "application/x-ndjson", "application/x-jsonl", "application/jsonl")
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

BINARY_SCHEMA: dict[str, Json] = {
    "type": "object",
    "description": "Bytes, as base64.",
    "properties": {"content_type": {"type": "string"}, "base64": {"type": "string"}, "bytes": {"type": "integer"}},
    "required": ["content_type", "base64", "bytes"],
}
"""What an answer that is neither JSON nor text is in the contract."""


async def read(endpoint: Endpoint, response: httpx.Response) -> Json:
    """The data of a successful answer; None where a read found nothing.

    Raises:
        ToolFailure: the status says that it failed, or the answer is too large or not what it says it is.
    """
    effect = endpoint.contract.effect
    if effect is Effect.READ and response.status_code in _GONE:
        return None
    if not response.is_success:
        content = await _content(response, ERROR_MAX_BYTES, cut=True)
        kept = {name: response.headers[name] for name in ("content-type", "retry-after") if name in response.headers}
        check(httpx.Response(response.status_code, headers=kept, content=content, request=response.request))
    content = await _content(response, ANSWER_MAX_BYTES, cut=False)
    if not content:
        return None
    return _nothing_found(endpoint, _decoded(response, content))


def is_json(media_type: str) -> bool:
    """Whether this media type is JSON, such as `application/problem+json; charset=utf-8`."""
    essence = media_type.partition(";")[0].strip().lower()
    return essence in {"application/json", "text/json"} or essence.endswith("+json")


def is_text(media_type: str) -> bool:
    """Whether this media type is text that can be handed on as it is."""
    return media_type.strip().lower().startswith(_TEXTUAL)


async def _content(response: httpx.Response, max_bytes: int, *, cut: bool) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            if cut:
                break
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{_target(response)} answered more than {max_bytes} bytes; ask for less at once",
            )
    return b"".join(parts)[:max_bytes]


def _decoded(response: httpx.Response, content: bytes) -> Json:
    media_type = response.headers.get("content-type", "")
    if is_json(media_type):
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{_target(response)} says that it answers JSON, and it is not: {error}",
            ) from None
    if is_text(media_type) or not media_type:
        return content.decode(response.charset_encoding or "utf-8", errors="replace")
    return {
        "content_type": media_type.partition(";")[0].strip(),
        "base64": base64.b64encode(content).decode(),
        "bytes": len(content),
    }


def _target(response: httpx.Response) -> str:
    """Method, host and path. The query can hold secrets."""
    request = response.request
    return f"{request.method} {request.url.host}{request.url.path}"


def _nothing_found(endpoint: Endpoint, data: Json) -> Json:
    """None where a read answered a list with nothing in it, at the place where the list stands."""
    if endpoint.contract.effect is not Effect.READ:
        return data
    found = data
    for part in endpoint.empty_at.split(".") if endpoint.empty_at else ():
        if not isinstance(found, dict) or part not in found:
            return data
        found = found[part]
    return None if found == [] else data
