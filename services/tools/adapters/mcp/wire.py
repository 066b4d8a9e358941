"""What an MCP server puts on the wire, read by our codec and within our limits before the SDK sees it.

The SDK loses an answer that it cannot read, and the caller waits until the time limit. Here an unreadable answer
becomes an error of its own request, and one odd tool of a list costs no other tool. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mcp import types
from mcp.types import JSONRPCMessage, JSONRPCResponse, jsonrpc_message_adapter
from pydantic import ValidationError
from typing_extensions import TypeIs

from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.codec import InvalidJson
from triptych.tools.adapters.mcp.pins import PinnedTool
from triptych.tools.adapters.rest.response import ANSWER_MAX_BYTES

__all__ = ["ANSWER_MAX_BYTES", "UnreadableError", "error_of", "id_in", "is_answer", "looks_like_answer", "read"]

LIST_TOOLS = "tools/list"
TOOLS, LEFT_OUT = "triptych.dev/tools", "triptych.dev/left-out"
"""The keys of a page's `_meta`: its tools as they are pinned, and the skipped names with the reason."""

UNREADABLE, NOT_SENT = -32_950, -32_951
"""Codes of our own: an answer came that cannot be read; a request was not sent."""

_HEADER = "x-mcp-header"
_ENVELOPE_DEPTH = 6
_LIMITS = replace(codec.VALUE, max_bytes=ANSWER_MAX_BYTES, max_depth=codec.MAX_DEPTH + _ENVELOPE_DEPTH)
_NAME_MAX_CHARS = 200
_LOOK_BYTES = 4_096
_ID = rb'("[^"\\]{0,64}"|-?\d{1,18})'
_ID_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*' + _ID)
_ID_LAST = re.compile(rb',\s*"id"\s*:\s*' + _ID + rb'\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+\\?"?|[\[\]{},]', re.DOTALL)
"""A string, also one without an end, so that nothing is looked at twice; or what stands between values."""
_TOOLS_BEGIN = re.compile(rb'"tools"\s*:\s*\[')
_NAME = re.compile(rb'"name"\s*:\s*("[^"\\\x00-\x1f]{1,200}")')


class UnreadableError(Exception):
    """Something came from a server that is not a message. `why` says what is wrong with it."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


def read(raw: bytes, method: str | None) -> JSONRPCMessage:
    """Return a message of the server, as the SDK may see it. `method` is that of the request that it answers.

    Raises:
        UnreadableError: it is not a message, or beyond a limit.
    """
    odd: list[dict[str, Json]] = []
    try:
        value = codec.decode(raw, limits=_LIMITS)
    except InvalidJson as error:
        if method != LIST_TOOLS:
            raise UnreadableError(str(error)) from None
        value, odd = _piece_by_piece(raw, error)
    if isinstance(value, dict) and method == LIST_TOOLS and isinstance(value.get("result"), dict):
        value = {**value, "result": _listed(value["result"], odd)}
    try:
        return jsonrpc_message_adapter.validate_python(value, by_name=False)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UnreadableError(
            f"it is not a message of JSON-RPC ({where}: {problem['msg']})"[:_NAME_MAX_CHARS]
        ) from None


def id_in(raw: bytes) -> str | int | None:
    """Return the id of an answer that cannot be read as a whole, from its first bytes or its last."""
    found = _ID_FIRST.match(raw[:_LOOK_BYTES]) or _ID_LAST.search(raw[-_LOOK_BYTES:])
    if found is None:
        return None
    text = found[1].decode("utf-8", "replace")
    return text[1:-1] if text.startswith('"') else int(text)


def looks_like_answer(raw: bytes) -> bool:
    """Return whether this looks like an answer, although its request is not known."""
    try:
        value = codec.decode(raw, limits=_LIMITS)
    except InvalidJson:
        pass
    else:
        if not isinstance(value, dict):
            return False
        return not value.keys().isdisjoint({"result", "error"}) or ("jsonrpc" in value and "method" not in value)
    ends = raw[:_LOOK_BYTES] + raw[-_LOOK_BYTES:]
    return raw.lstrip().startswith(b"{") and any(word in ends for word in (b'"result"', b'"error"', b'"jsonrpc"'))


def error_of(request_id: str | int, code: int, message: str, data: Mapping[str, Any] | None = None) -> Any:
    """Return the answer that a request gets from us in the place of its server."""
    error = types.ErrorData(code=code, message=message, data=data and dict(data))
    return types.JSONRPCError(jsonrpc="2.0", id=request_id, error=error)


def is_answer(message: JSONRPCMessage) -> TypeIs[JSONRPCResponse | types.JSONRPCError]:
    """Return whether it answers a request."""
    return isinstance(message, JSONRPCResponse | types.JSONRPCError)


def _listed(result: dict[str, Any], odd: list[dict[str, Json]]) -> dict[str, Any]:
    """Return a page of tools: for the SDK their names and arguments alone, and all that is pinned beside it.

    The SDK would hold results against their schemas itself, with a library that runs the server's regular expressions.
    """
    tools, left_out = [], list(odd)
    offered = result.get("tools")
    for number, each in enumerate(offered if isinstance(offered, list) else ()):
        try:
            tools.append(_tool(each))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "it"
            left_out.append({"name": _name(each, number), "why": f"{where}: {problem['msg']}"})
    stubs = [{"name": tool["name"], "inputSchema": _headers(tool["inputSchema"])} for tool in tools]
    kept = {key: value for key, value in result.items() if key not in {"tools", "_meta", "nextCursor"}}
    if isinstance(cursor := result.get("nextCursor"), str):
        kept["nextCursor"] = cursor
    return {**kept, "tools": stubs, "_meta": {TOOLS: tools, LEFT_OUT: left_out}}


def _headers(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a tool that the SDK needs: those with a header of their own."""
    properties = schema.get("properties")
    marked = {
        name: each
        for name, each in (properties.items() if isinstance(properties, dict) else ())
        if isinstance(each, dict) and _HEADER in each
    }
    return {"type": "object", "properties": marked}


def _tool(each: Any) -> dict[str, Any]:
    return PinnedTool.model_validate(each).model_dump(mode="json", by_alias=True, exclude_none=True)


def _name(each: Any, number: int) -> str:
    name = each.get("name") if isinstance(each, dict) else None
    return name[:_NAME_MAX_CHARS] if isinstance(name, str) and name else f"tool {number + 1} of the page"


def _piece_by_piece(raw: bytes, error: InvalidJson) -> tuple[Any, list[dict[str, Json]]]:
    """Read a page of tools piece by piece, since one of them is not valid JSON: the page without it, and its name.

    Raises:
        UnreadableError: the fault lies elsewhere.
    """
    if len(raw) > ANSWER_MAX_BYTES or (begin := _TOOLS_BEGIN.search(raw)) is None:
        raise UnreadableError(str(error))
    pieces = list(_pieces(raw, begin.end()))
    end = pieces[-1][1]
    tools, odd = [], []
    for number, (first, last) in enumerate(pieces):
        piece = raw[first:last].strip()
        if not piece:
            continue
        try:
            tools.append(codec.decode(piece, limits=_LIMITS))
        except InvalidJson as wrong:
            named = _NAME.search(piece)
            name = named[1].decode("utf-8", "replace").strip('"') if named else f"tool {number + 1} of the page"
            odd.append({"name": name, "why": str(wrong)})
    try:
        whole: Any = codec.decode(raw[: begin.end()] + raw[end:], limits=_LIMITS)
    except InvalidJson:
        raise UnreadableError(str(error)) from None
    if not isinstance(whole, dict) or not isinstance(whole.get("result"), dict):
        raise UnreadableError(str(error))
    whole["result"]["tools"] = tools
    return whole, odd


def _pieces(raw: bytes, begin: int) -> Iterator[tuple[int, int]]:
    """Yield where the elements of a list lie whose `[` ends at `begin`; the last ends before its `]`."""
    depth, first = 0, begin
    for token in _TOKEN.finditer(raw, begin):
        match token[0]:
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]" if depth:
                depth -= 1
            case b"]" | b"}":
                yield first, token.start()
                return
            case b"," if not depth:
                yield first, token.start()
                first = token.end()
            case _:
                pass
    raise UnreadableError("its list of tools does not end")
