"""No secret leaves a tool: what it knows to be one, and what looks like one, is masked in everything it answers.

Errors are masked by pattern too; data only by the values that this process holds, since data may well look like a key.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from string import ascii_letters, digits
from typing import Final
from urllib.parse import quote, quote_plus

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from triptych.kernel.process.log import MASK
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import Result

SHORTEST_CHARS = 6
"""A shorter value would be found by chance in the middle of words."""

_HEX = re.compile(r"%[0-9A-F]{2}")
_UNRESERVED_FORM: Final = "*"
_BASE64: Final = frozenset(ascii_letters + digits + "+/-_")
_BASE64_END: Final = _BASE64 | {"="}
_BASE64_AROUND_MAX_CHARS: Final = 4_096
"""So much of what stands around a secret in base64 is masked with it: enough for any header."""

_LOOKS_SECRET = re.compile(
    r"(?P<scheme>\b(?:Bearer|Basic|Token)\s+)[\w.~+/=-]{8,}"
    r"|(?P<name>\b(?:api[_-]?key|access[_-]?token|token|secret|password|passwd|authorization|client[_-]?secret)"
    r"[\"']?\s*[=:]\s*[\"']?(?:(?:Bearer|Basic|Token)\s+)?)[^\s\"'&,;}]{4,}"
    r"|(?P<user>\b\w+://[^\s:/@]+:)[^\s@/]+(?=@)"
    r"|\b(?:sk|pk|rk|ghp|gho|xox[abp]|glpat)[-_][\w-]{8,}"
    r"|\beyJ[\w-]{1,1000}\.[\w-]+\.[\w-]+"
    r"|\bAKIA[0-9A-Z]{16}\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Needle:
    """One form of a secret, as it may occur in a text."""

    text: str
    in_json: str
    """The same form in a text that is written as JSON."""
    is_base64: bool = False


def needles_of(values: Iterable[str]) -> tuple[Needle, ...]:
    """Return every form of these secrets that is searched for."""
    found: dict[str, Needle] = {}
    for value in values:
        if len(value) < SHORTEST_CHARS:
            continue
        if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
            # The variable held bytes that are not text: it has no other form.
            found[value] = Needle(value, value)
            continue
        for form in _written(value):
            found.setdefault(form, Needle(form, codec.encode_text(form)[1:-1]))
        for form in _in_base64(value.encode()):
            found.setdefault(form, Needle(form, form, is_base64=True))
    return tuple(found.values())


def _written(value: str) -> Iterator[str]:
    """Yield it as it is, and as JSON, URLs, forms, HTML and hexadecimal digits have it."""
    yield value
    if len(value.strip()) >= SHORTEST_CHARS:
        yield value.strip()
    for in_json in (codec.encode_text(value)[1:-1], json.dumps(value)[1:-1]):
        yield in_json
        yield in_json.replace("/", "\\/")
        yield codec.encode_text(in_json)[1:-1]
    for safe in ("", "/", "~()*!.'", _UNRESERVED_FORM):
        for encoded in (quote(value, safe=safe), quote_plus(value, safe=safe)):
            yield encoded
            yield _HEX.sub(lambda found: found[0].lower(), encoded)
            yield quote(encoded, safe="")
    for escaped in (html.escape(value), html.escape(value, quote=False)):
        yield escaped
        yield escaped.replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
        yield escaped.replace("&#x27;", "&apos;")
    yield value.encode().hex()
    yield value.encode().hex().upper()


def _in_base64(value: bytes) -> Iterator[str]:
    """Yield the base64 digits of a value within a longer text, such as `user:secret`, at each offset."""
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(value)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + value + bytes(2)).decode()[first:last]


def secrets_in(settings: BaseSettings | None) -> list[SecretStr]:
    """Return the secret fields of a tool's own settings."""
    if settings is None:
        return []
    return [value for name in type(settings).model_fields if isinstance(value := getattr(settings, name), SecretStr)]


class Redactor:
    """Masks secrets in results, in every form in which they leave."""

    def __init__(self, secrets: Iterable[SecretStr] = (), *, learnt: Sequence[SecretStr] = ()) -> None:
        """`learnt` may grow: what is in it when something is masked counts."""
        self._fixed, self._learnt = tuple(secrets), learnt
        self._seen: list[SecretStr] = []
        self._needles: tuple[Needle, ...] = ()
        self._refresh()

    def clean(self, result: Result) -> Result:
        """Return the result without secrets; the very same where it holds none."""
        self._refresh()
        if result.error is not None:
            error = result.error
            details = _walk(error.details, self.masked)
            return result.model_copy(
                update={"error": error.model_copy(update={"message": self.masked(error.message), "details": details})}
            )
        if result.warnings:
            # They quote what was answered.
            masked = tuple(
                each.model_copy(update={"place": self.masked(each.place), "message": self.masked(each.message)})
                for each in result.warnings
            )
            result = result.model_copy(update={"warnings": masked})
        if not self._may_hold_known(result.data):
            return result
        return result.model_copy(update={"data": _walk(result.data, self._without_known)})

    def masked(self, text: str) -> str:
        """Return a text for people, such as an error or a traceback, without secrets and what looks like one."""
        self._refresh()
        return _LOOKS_SECRET.sub(_mask_after_name, self._without_known(text))

    def _refresh(self) -> None:
        """Take up what was learnt since."""
        if self._needles and len(self._learnt) == len(self._seen) and all(map(is_, self._learnt, self._seen)):
            return
        self._seen = list(self._learnt)
        values = {each.get_secret_value() for each in (*self._fixed, *self._learnt)}
        self._needles = needles_of(values)

    def _may_hold_known(self, data: Json) -> bool:
        """Return whether data may have a known secret. To search it as one text is quick, and most data has none."""
        if not self._needles:
            return False
        try:
            whole = codec.encode_text(data)
        except codec.InvalidJson:
            return True  # the sender reports this later; it may still hold a secret
        return any(needle.in_json in whole for needle in self._needles)

    def _without_known(self, text: str) -> str:
        found = [needle for needle in self._needles if needle.text in text]
        if not found:
            return text
        return _without_spans(text, sorted(span for needle in found for span in _spans(text, needle)))


def _spans(text: str, needle: Needle) -> Iterator[tuple[int, int]]:
    """Yield what is masked: each place of a needle. Of base64 all of it, since its edges belong to the secret too."""
    at = text.find(needle.text)
    while at >= 0:
        start, end = at, at + len(needle.text)
        if needle.is_base64:
            while start > max(0, at - _BASE64_AROUND_MAX_CHARS) and text[start - 1] in _BASE64:
                start -= 1
            last = min(len(text), end + _BASE64_AROUND_MAX_CHARS)
            while end < last and text[end] in _BASE64_END:
                end += 1
        yield start, end
        at = text.find(needle.text, end)


def _without_spans(text: str, spans: list[tuple[int, int]]) -> str:
    """Return the text with each span masked; those that overlap or touch are one."""
    parts: list[str] = []
    at = 0
    for start, end in spans:
        if start > at or not parts:
            parts += [text[at:start], MASK]
        at = max(at, end)
    return "".join((*parts, text[at:]))


def _mask_after_name(found: re.Match[str]) -> str:
    """Return what was found, masked; the word that says what it is stays readable."""
    return f"{found['scheme'] or found['name'] or found['user'] or ''}{MASK}"


def _walk(value: Json, masked: Callable[[str], str]) -> Json:
    match value:
        case str():
            return masked(value)
        case dict():
            return {masked(name): _walk(item, masked) for name, item in value.items()}
        case list():
            return [_walk(item, masked) for item in value]
        case _:
            return value
