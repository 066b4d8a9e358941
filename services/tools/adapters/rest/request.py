"""From arguments that fit the contract to the request that is sent.

No argument can change where a request goes: what a value would do to the path, a header's end or the
host is encoded or refused. Credentials are not its business.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest import address, styles
from triptych.tools.adapters.rest.endpoint import Body, BodyForm, Endpoint, KeyCarrier, KeyPlace, Parameter, Place
from triptych.tools.http.errors import is_json
from triptych.tools.sdk.failure import ToolFailure

_TEMPLATE = re.compile(r"\{([^{}]+)\}")
_MEDIA_TYPE = "^[A-Za-z0-9_.+-]{1,100}/[A-Za-z0-9_.+-]{1,100}(?:; ?[A-Za-z0-9_-]{1,40}=[A-Za-z0-9_.+:-]{1,100}){0,5}$"
_UNSAFE_IN_HEADER = re.compile(r"[^\t -~]|^[\t ]|[\t ]\Z")


@dataclass(slots=True)
class _Draft:
    """The parts of a request while they are put together."""

    headers: dict[str, str]
    body: Json
    in_path: dict[str, str] = field(default_factory=dict)
    query: list[str] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)

    def put(self, parameter: Parameter, value: Json) -> None:
        if parameter.place is not Place.PATH:
            value = value if parameter.as_json else styles.given(value)
            if value is None or (value in ([], {}) and not parameter.as_json):
                return  # null means that nothing is sent, and an empty list or object has nothing to send
        match parameter.place:
            case Place.PATH:
                _check_in_path(parameter, value)
                self.in_path[parameter.name] = styles.in_path(parameter, value)
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
                self.query.append(f"{quote(carrier.name, safe='')}={quote(key, safe='')}")
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
        try:
            draft.put(parameter, value)
        except styles.AmbiguousValueError as error:
            raise _ambiguous(parameter.argument, error) from None
    if endpoint.key is not None:
        draft.carry(key, endpoint.key)
    if draft.cookies:
        draft.headers["cookie"] = "; ".join(draft.cookies)
    url = base_url + _filled(endpoint, draft.in_path)
    if draft.query:
        url += ("&" if "?" in url else "?") + "&".join(draft.query)
    encoded = _encode(endpoint.body, draft.body)
    if "content" in encoded and endpoint.body is not None:
        draft.headers.setdefault("content-type", endpoint.body.media_type)
    return client.build_request(endpoint.method, url, headers=draft.headers, **encoded)


def _values(endpoint: Endpoint, arguments: dict[str, Json]) -> list[tuple[Parameter, Json]]:
    known = arguments if endpoint.templates is not None else {**endpoint.defaults, **arguments}
    given = [(parameter, known[parameter.argument]) for parameter in endpoint.parameters if parameter.argument in known]
    return [*endpoint.fixed, *given]


def _filled(endpoint: Endpoint, in_path: dict[str, str]) -> str:
    """The address, with the values in their places."""
    missing = [name for name in _TEMPLATE.findall(endpoint.url) if name not in in_path]
    if missing:
        raise _cannot_stand(missing[0], "it is missing")
    filled = _TEMPLATE.sub(lambda found: in_path[found[1]], endpoint.url)
    if filled != endpoint.url and (problem := address.problem_of_path(filled.partition("?")[0])):
        raise _cannot_stand(", ".join(in_path), problem)
    return filled


def _check_in_path(parameter: Parameter, value: Json) -> None:
    # Of an empty list nothing would stand there, and the address would be that of the whole collection.
    for text in list(_texts(value)) or [""]:
        if problem := address.problem_of_value(text):
            raise _cannot_stand(parameter.argument, problem)


def _texts(value: Json) -> Iterator[str]:
    """Every text that a value puts into the path."""
    match value:
        case dict():
            for name, item in value.items():
                yield from (name, *_texts(item))
        case list():
            for item in value:
                yield from _texts(item)
        case _:
            yield styles.text_of(value)


def _cannot_stand(argument: str, problem: str) -> ToolFailure:
    message = f"arguments.{argument}: this cannot stand in a path: {problem}; give the thing's id"
    return ToolFailure(ErrorCode.INVALID_ARGUMENTS, message, undone=True)


def _ambiguous(argument: str, error: styles.AmbiguousValueError) -> ToolFailure:
    return ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"arguments.{argument}: {error}", undone=True)


def _safe_in_header(parameter: Parameter, text: str) -> str:
    if _UNSAFE_IN_HEADER.search(text):
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            f"arguments.{parameter.argument}: a header takes only ASCII, no line breaks, no space at the ends",
            undone=True,
        )
    return text


def _body_value(endpoint: Endpoint, arguments: dict[str, Json]) -> Json:
    return None if endpoint.body is None else arguments.get(endpoint.body.argument)


def _encode(body: Body | None, value: Json) -> dict[str, Any]:
    """What httpx is told of the body."""
    if body is None or value is None:
        return {}
    match body.form:
        case BodyForm.JSON:
            return {"content": codec.encode(value)}
        case BodyForm.FORM:
            try:
                fields = styles.form_fields(body, value)
            except styles.AmbiguousValueError as error:
                raise _ambiguous(body.argument, error) from None
            return {"data": _grouped(fields)} if fields else {"content": b""}
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
    """Each field becomes a part, and each item of a list one of its own.

    A file is an object with its content as `text` or `base64`. Other objects and lists are written as JSON.
    """
    parts: list[tuple[str, Any]] = []
    for name, item in value.items():
        stated = body.writing_of(name).content_type
        where = f"arguments.{body.argument}.{name}"
        for each in item if isinstance(item, list) else [item]:
            if isinstance(each, dict) and is_file(each):
                content = each["text"].encode() if "text" in each else _decoded(where, each["base64"])
                media_type = _media_type(where, each, stated)
                parts.append((name, (each.get("filename", name), content, media_type)))
            elif isinstance(each, (dict, list)) or (stated is not None and is_json(stated) and each is not None):
                parts.append((name, (None, codec.encode(each), stated or "application/json")))
            elif each is not None:
                text = styles.text_of(each).encode()
                parts.append((name, (None, text) if stated is None else (None, text, stated)))
    return parts


def _media_type(where: str, file: dict[str, Json], usual: str | None) -> str:
    stated = str(file.get("content_type", usual or "application/octet-stream"))
    if not re.fullmatch(_MEDIA_TYPE, stated) or "\n" in stated:
        message = f"{where}.content_type: not a media type, such as text/plain"
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, message, undone=True)
    return stated


FILE_SCHEMA: dict[str, Json] = {
    "type": "object",
    "description": "A file: its content as text, or as base64.",
    "properties": {
        "filename": {"type": "string"},
        "content_type": {"type": "string", "pattern": _MEDIA_TYPE},
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
