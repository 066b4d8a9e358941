"""Read the result of a call from the response of an upstream, with a limit on its size.

What comes back is only given a form here; whether it keeps the contract is checked by the runtime.
"""

from __future__ import annotations

import base64
from http import HTTPStatus

import httpx

from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest.endpoint import Endpoint
from triptych.tools.http.client import body_text, read_response
from triptych.tools.http.errors import check_status, is_json, is_page, json_content
from triptych.tools.sdk.failure import ToolFailure

ANSWER_MAX_BYTES = 4 * 1_048_576
"""More is not read: an answer has to fit into a message of a run, or be stored as one claim."""
ERROR_MAX_BYTES = 65_536
_TEXTUAL = ("text/", "application/xml", "application/x-ndjson", "application/x-jsonl", "application/jsonl")
NOTHING = "*/*"
"""The value of Accept where the upstream promises no content: an answer is never data."""

BINARY_SCHEMA: dict[str, Json] = {
    "type": "object",
    "description": "Bytes, as base64.",
    "properties": {"content_type": {"type": "string"}, "base64": {"type": "string"}, "bytes": {"type": "integer"}},
    "required": ["content_type", "base64", "bytes"],
}
"""What an answer that is neither JSON nor text is in the contract."""


async def read_result(endpoint: Endpoint, response: httpx.Response) -> Json:
    """Return the data of a successful answer; None where a read found nothing.

    Raises:
        ToolFailure: it failed, by its status or by its own account, or it is too large or not what it says it is.
    """
    is_read = not endpoint.contract.effect.writes
    if not response.is_success:
        try:
            check_status(await read_response(response, ERROR_MAX_BYTES, cut=True))
        except ToolFailure as failure:
            if is_read and failure.code is ErrorCode.NOT_FOUND:
                return None
            raise
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        check_status(await read_response(response, ERROR_MAX_BYTES, cut=True))
    if endpoint.accept == NOTHING:
        if "html" in response.headers.get("content-type", "").lower():
            _refuse_page(await read_response(response, ERROR_MAX_BYTES, cut=True))
        return None
    whole = await read_response(response, ANSWER_MAX_BYTES)
    kind = whole.headers.get("content-type", "").lower()
    # A web page that was not asked for is not data, even where text is accepted.
    is_stray = "html" in kind and "html" not in endpoint.accept
    if is_json(kind) or is_stray or all(map(is_json, endpoint.accept.split(","))):
        data = json_content(whole, endpoint.success)
    else:
        data = _other(whole)
    return _without_nothing(endpoint, data) if is_read else data


def is_text(media_type: str) -> bool:
    """Return whether this media type is text that can be handed on as it is."""
    return media_type.strip().lower().startswith(_TEXTUAL)


def _refuse_page(response: httpx.Response) -> None:
    """Raise ToolFailure where a web page comes instead of nothing: a login or an error that says 200."""
    if response.is_success and is_page(response):
        where = f"{response.request.method} {response.request.url.host}{response.request.url.path}"
        message = f"{where} answered {response.status_code} with a web page where nothing belongs"
        raise ToolFailure(ErrorCode.CONTRACT_VIOLATION, message, undone=False)


def _other(response: httpx.Response) -> Json:
    """Text as it is, and bytes as base64; None where there is nothing."""
    media_type = response.headers.get("content-type", "")
    if not response.content:
        return None
    if is_text(media_type) or not media_type:
        return body_text(response)
    return {
        "content_type": media_type.partition(";")[0].strip(),
        "base64": base64.b64encode(response.content).decode(),
        "bytes": len(response.content),
    }


def _without_nothing(endpoint: Endpoint, data: Json) -> Json:
    """Return none where a read answered a list with nothing in it, at the place where the list stands."""
    found = data
    for part in endpoint.empty_at.split(".") if endpoint.empty_at else ():
        if not isinstance(found, dict) or part not in found:
            return data
        found = found[part]
    return None if found == [] else data
