"""Serialize the body of a request: JSON, a form, multipart, text or bytes."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest.endpoint import BodyForm, RequestBody, Style
from triptych.tools.adapters.rest.parameter_serialization import (
    AmbiguousValueError,
    deep_pairs,
    flat_texts,
    has_nested,
    text_of,
    unambiguous,
    without_nulls,
)
from triptych.tools.http.errors import is_json
from triptych.tools.sdk.failure import ToolFailure

_MEDIA_TYPE = "^[A-Za-z0-9_.+-]{1,100}/[A-Za-z0-9_.+-]{1,100}(?:; ?[A-Za-z0-9_-]{1,40}=[A-Za-z0-9_.+:-]{1,100}){0,5}$"
_FORM_DELIMITERS = {Style.FORM: ",", Style.SPACE_DELIMITED: " ", Style.PIPE_DELIMITED: "|", Style.DEEP_OBJECT: ","}

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


def encode_body(body: RequestBody | None, value: Json) -> dict[str, Any]:
    """Return what httpx is told of the body."""
    if body is None or value is None:
        return {}
    match body.form:
        case BodyForm.JSON:
            return {"content": codec.encode(value)}
        case BodyForm.FORM:
            try:
                fields = form_fields(body, value)
            except AmbiguousValueError as error:
                raise error.failure(body.argument) from None
            return {"data": _grouped(fields)} if fields else {"content": b""}
        case BodyForm.MULTIPART:
            return {"files": _parts(body, value)}
        case BodyForm.TEXT:
            return {"content": text_of(value).encode()}
        case BodyForm.BINARY:
            return {"content": _decoded(f"arguments.{body.argument}", value)}


def form_fields(body: RequestBody, value: dict[str, Json]) -> list[tuple[str, str]]:
    """Return the fields of a form, as `encoding` says, else as most servers read them.

    A list of plain values repeats its name. Objects are written as `name[key]`, and lists of them as `name[0][key]`.
    """
    fields: list[tuple[str, str]] = []
    for name, item in value.items():
        writing = body.writing_of(name)
        if writing.content_type is not None and is_json(writing.content_type):
            fields.append((name, codec.encode_text(item)))
            continue
        match without_nulls(item):
            case None:
                pass
            case list() as items if writing.style is Style.DEEP_OBJECT or has_nested(items):
                fields.extend(deep_pairs(name, items))
            case list() as items if writing.style is None or writing.explode:
                fields.extend((name, text_of(each)) for each in items)
            case dict() as parts if writing.style is None or writing.style is Style.DEEP_OBJECT:
                fields.extend(deep_pairs(name, parts))
            case dict() as parts if writing.explode:
                fields.extend((key, text_of(part)) for key, part in parts.items())
            case list() | dict() as whole:
                delimiter = _FORM_DELIMITERS[writing.style or Style.FORM]
                fields.append((name, delimiter.join(unambiguous(flat_texts(whole), delimiter))))
            case plain:
                fields.append((name, text_of(plain)))
    return fields


def _grouped(fields: list[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, text in fields:
        grouped.setdefault(name, []).append(text)
    return grouped


def _parts(body: RequestBody, value: dict[str, Json]) -> list[tuple[str, Any]]:
    """Make a part of each field, and of each item of a list.

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
                text = text_of(each).encode()
                parts.append((name, (None, text) if stated is None else (None, text, stated)))
    return parts


def _media_type(where: str, file: dict[str, Json], usual: str | None) -> str:
    stated = str(file.get("content_type", usual or "application/octet-stream"))
    if not re.fullmatch(_MEDIA_TYPE, stated) or "\n" in stated:
        message = f"{where}.content_type: not a media type, such as text/plain"
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, message, undone=True)
    return stated


def is_file(value: dict[str, Json]) -> bool:
    """Return whether an object is a file as FILE_SCHEMA has it."""
    return ("text" in value) != ("base64" in value) and value.keys() <= {"filename", "content_type", "text", "base64"}


def _decoded(where: str, text: Json) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{where}: not base64 ({error})", undone=True) from None
