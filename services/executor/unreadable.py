"""Find the sender of a task that cannot be read, and a hint for that client.

Refusing a task needs its id, tenant and playbook. They are texts near the beginning of the record, so they are looked
for in its bytes, even if these are not JSON. Pure; the time is linear, and bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from triptych.schemas import codec
from triptych.schemas.codec import InvalidJson

_MAX_CHARS = 200
_MAX_TOKEN_BYTES = 12 * _MAX_CHARS
_TOKEN = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+\\?"?|[\[\]{}:]')
_TOKENS_MAX_COUNT = 100_000
"""So many are looked at: about 50 ms. A list of numbers has none between its brackets."""
_REGISTRY_BYTES = 5
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_ENVELOPE = (
    "the record is a CloudEvent in structured mode without the header that says so; send it with the header "
    "`content-type: application/cloudevents+json`, or send its `data` alone"
)


@dataclass(frozen=True, slots=True)
class Sender:
    """What a record says of itself; empty where it says nothing."""

    task_id: str = ""
    tenant: str = ""
    playbook: str = ""
    hint: str = ""
    """What helps, where the whole record has another form than a task."""


def sender_of(body: bytes) -> Sender | None:
    """Return who sent a record that is not a task; None where it is not an object at all."""
    text, hint = _as_object(body)
    if not text.lstrip().startswith(b"{"):
        return None
    outer, inner = _texts(text)
    if not hint and "specversion" in outer and ("playbook" in inner or "task_id" in inner):
        outer, hint = inner, _ENVELOPE
    return Sender(outer.get("task_id", ""), outer.get("tenant", ""), outer.get("playbook", ""), hint)


def _as_object(body: bytes) -> tuple[bytes, str]:
    """Return the text in which a task may be found, and a hint on how it was sent wrongly."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    if body.startswith(_UTF_16):
        return body.decode("utf-16", "replace").encode(), "the record is UTF-16; send JSON in UTF-8"
    if body.startswith(b"\x00") and body[_REGISTRY_BYTES:].lstrip().startswith(b"{"):
        hint = "the record begins with the five bytes of a schema registry; send JSON without them"
        return body[_REGISTRY_BYTES:], hint
    if body.lstrip().startswith(b'"'):
        try:
            text = codec.decode(body)
        except InvalidJson:
            return body, ""
        return text.encode(), "the record is a text that holds JSON; encode the task once, not twice"
    return body, ""


def _texts(text: bytes) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the texts in an object by their names, and those in the object that it calls `data`."""
    outer: dict[str, str] = {}
    inner: dict[str, str] = {}
    for names, value in _members(text):
        match names:
            case (name,):
                outer[name] = value
            case ("data", name):
                inner[name] = value
    return outer, inner


def _members(text: bytes) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the texts at most two objects deep, with the names on the way to them."""
    around: list[str] = []
    depth, name, last, ended = 0, "", b"", 0
    for found in islice(_TOKEN.finditer(text), _TOKENS_MAX_COUNT):
        token = found.group()
        if token == b":" and last.startswith(b'"') and depth <= 2:  # noqa: PLR2004
            name = _text(last)
        elif token in (b"{", b"["):
            depth += 1
            around.append(name) if depth <= 2 else None  # noqa: PLR2004
        elif token in (b"}", b"]"):
            depth -= 1
            del around[max(0, depth) :]
        elif token.startswith(b'"') and last == b":" and 1 <= depth <= 2 and not text[ended : found.start()].strip():  # noqa: PLR2004
            yield (*around[1:], name), _text(token)
        last, ended = token, found.end()


def _text(token: bytes) -> str:
    """Decode a JSON text, shortened, with U+FFFD for what is not a character."""
    if len(token) < 2 or not token.endswith(b'"'):  # noqa: PLR2004 - the record ends within it
        return ""
    is_long = len(token) > _MAX_TOKEN_BYTES
    text = token[1:_MAX_TOKEN_BYTES].decode(errors="replace") if is_long else codec.repaired_text(token)
    return text[:_MAX_CHARS]
