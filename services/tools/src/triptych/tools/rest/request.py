"""From arguments that fit the contract to the request that is sent.

No argument can change where a request goes: what a value would do to the path, a header's end or the
host is encoded or refused. Credentials are not its business.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.failure import ToolFailure
from triptych.tools.rest import styles
from triptych.tools.rest.endpoint import Body, BodyForm, Endpoint, KeyCarrier, KeyPlace, Parameter, Place

_TEMPLATE = re.compile(r"\{([^{}]+)\}")
_UNSAFE_IN_HEADER = re.compile(r"[^\t -~]")


@dataclass(slots=True)
class _Draft:
    """The parts of a request while they are put together."""

    headers: dict[str, str]
    body: Json
    in_path: dict[str, str] = field(default_factory=dict)
    query: list[str] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)

    def put(self, parameter: Parameter, value: Json) -> None:
        match parameter.place:
            case Place.PATH:
                self.in_path[parameter.name] = _safe_in_path(parameter, styles.in_path(parameter, value))
            case Place.QUERY:
                self.query.extend(styles.in_query(parameter, value))
            case Place.HEADER:
                self.headers[parameter.name] = _safe_in_header(parameter, styles.in_header(parameter, value))
            case Place.COOKIE:
                self.cookies.append(styles.in_cookie(parameter, value))

    def carry(self, key: str, carrier: KeyCarrier) -> None:
        match carrier.place:
            case KeyPlace.HEADER:
                self.headers[carrier.name] = key
            case KeyPlace.QUERY:
                self.query.append(f"{carrier.name}={key}")
            case KeyPlace.FIELD:
                self.body = {**(self.body or {}), carrier.name: key}
            case KeyPlace.NATURAL:
                pass


def build(
    client: httpx.AsyncClient, endpoint: Endpoint, base_url: str, arguments: dict[str, Json], key: str
) -> httpx.Request:
    """The request of one call.

    Raises:
        ToolFailure: `invalid_arguments`, where a value cannot stand where it belongs.
    """
    draft = _Draft({"accept": endpoint.accept}, _body_value(endpoint, arguments))
    for parameter, value in _values(endpoint, arguments):
        draft.put(parameter, value)
    if endpoint.key is not None:
        draft.carry(key, endpoint.key)
    if draft.cookies:
        draft.headers["cookie"] = "; ".join(draft.cookies)
    url = base_url + _TEMPLATE.sub(lambda found: draft.in_path.get(found[1], found[0]), endpoint.url)
    if draft.query:
        url += ("&" if "?" in url else "?") + "&".join(draft.query)
    encoded = _encode(endpoint.body, draft.body)
    if "content" in encoded and endpoint.body is not None:
        draft.headers.setdefault("content-type", endpoint.body.media_type)
    return client.build_request(endpoint.method, url, headers=draft.headers, **encoded)


def _values(endpoint: Endpoint, arguments: dict[str, Json]) -> list[tuple[Parameter, Json]]:
    given = [
        (parameter, arguments[parameter.argument])
        for parameter in endpoint.parameters
        if parameter.argument in arguments
    ]
    return [*endpoint.fixed, *given]


def _safe_in_path(parameter: Parameter, text: str) -> str:
    # `quote` leaves dots alone, and servers resolve `/customers/..` to `/`.
    if text.strip(".") == "":
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            f"arguments.{parameter.argument}: {text!r} cannot stand in a path; give the thing's id",
            undone=True,
        )
    return text


def _safe_in_header(parameter: Parameter, text: str) -> str:
    if _UNSAFE_IN_HEADER.search(text):
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            f"arguments.{parameter.argument}: only ASCII without line breaks can stand in a header",
            undone=True,
        )
    return text


def _body_value(endpoint: Endpoint, arguments: dict[str, Json]) -> Json:
    return None if endpoint.body is None else arguments.get(endpoint.body.argument)


def _encode(body: Body | None, value: Json) -> dict[str, Any]:
    """What httpx is told of the body."""
    if body is None or value is None:
        return {} if body is None or body.form is not BodyForm.JSON or value is None else {"content": b"null"}
    match body.form:
        case BodyForm.JSON:
            return {"content": orjson.dumps(value)}
        case BodyForm.FORM:
            return {"data": _grouped(styles.form_fields(value))}
        case BodyForm.MULTIPART:
            return {"files": _parts(body, value)}
        case BodyForm.TEXT:
            return {"content": styles.text_of(value).encode()}
        case BodyForm.BINARY:
            return {"content": _decoded(f"arguments.{body.argument}", value)}


def _grouped(fields: list[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, text in fields:
        grouped.setdefault(name, []).append(text)
    return grouped


def _parts(body: Body, value: dict[str, Json]) -> list[tuple[str, Any]]:
    """Each field becomes a part; a file is an object with its content as `text` or `base64`."""
    parts: list[tuple[str, Any]] = []
    for name, item in value.items():
        for each in item if isinstance(item, list) else [item]:
            if isinstance(each, dict) and is_file(each):
                content = (
                    each["text"].encode()
                    if "text" in each
                    else _decoded(f"arguments.{body.argument}.{name}", each["base64"])
                )
                media_type = each.get("content_type", "application/octet-stream")
                parts.append((name, (each.get("filename", name), content, media_type)))
            elif isinstance(each, dict):
                parts.append((name, (None, orjson.dumps(each), "application/json")))
            else:
                parts.append((name, (None, styles.text_of(each).encode())))
    return parts


FILE_SCHEMA: dict[str, Json] = {
    "type": "object",
    "description": "A file: its content as text, or as base64.",
    "properties": {
        "filename": {"type": "string"},
        "content_type": {"type": "string"},
        "text": {"type": "string"},
        "base64": {"type": "string", "contentEncoding": "base64"},
    },
    "oneOf": [{"required": ["text"]}, {"required": ["base64"]}],
    "additionalProperties": False,
}
"""What the argument of a file looks like in a contract."""


def is_file(value: dict[str, Json]) -> bool:
    """Whether an object is a file as FILE_SCHEMA has it."""
    return ("text" in value) != ("base64" in value) and value.keys() <= {"filename", "content_type", "text", "base64"}


def _decoded(where: str, text: Json) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{where}: not base64 ({error})", undone=True) from None
