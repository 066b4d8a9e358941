"""Check addresses: a base URL leads to one place, and a value cannot leave its place in a path.

Servers, proxies and frameworks decode a path more than once, and each in its own way. So a value is looked at in every
form that it can be decoded to, and refused where one of them names a segment above or beside its own.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

import httpx

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_USER_PART = re.compile(r"(://)[^/?#\s]{0,500}@")
_SHOWN_MAX_CHARS = 500
_SPLIT = re.compile(r"[/\\]")
_DECODED_MAX = 6
"""So often a value is decoded; one that still changes then is refused."""
_UNICODE_ESCAPE = re.compile(r"%u([0-9a-fA-F]{4})")
_OVERLONG = (
    (b"\xc0\xae", b"."),
    (b"\xe0\x80\xae", b"."),
    (b"\xc0\xaf", b"/"),
    (b"\xe0\x80\xaf", b"/"),
    (b"\xc1\x9c", b"\\"),
)
"""Encodings of one byte as two or three, which UTF-8 forbids and some servers decode."""
_LIKE = str.maketrans({"\u2215": "/", "\u2044": "/", "\u29f8": "/", "\u2216": "\\", "\u29f5": "\\", "\u29f9": "\\"})
"""Characters that are shown, and by some systems taken, as a slash or a backslash; NFKC knows the full-width ones."""


def problem_of_base_url(url: str) -> str | None:
    """Return why a URL cannot be the beginning of every address of an upstream; None where it can."""
    if "{" in url or "}" in url:
        return "a variable in it has no value"
    if "\\" in url or _CONTROL.search(url) or " " in url:
        return "it holds a character that no URL may have"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "it is not a URL"
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        return "it is not a URL of the form https://host/path"
    if parsed.query or parsed.fragment or "?" in url or "#" in url:
        return "it has a query or a fragment"
    return None


def shown(url: str) -> str:
    """Return a URL for messages: without its user part and the values of its query, which can hold secrets."""
    place, mark, query = _USER_PART.sub(r"\1***@", url[:_SHOWN_MAX_CHARS]).partition("?")
    values = (part.partition("=") for part in query.split("&"))
    return place + mark + "&".join(f"{name}=***" if equals else "***" for name, equals, _ in values if mark)


def problem_of_template(path: str) -> str | None:
    """Return why the path of an operation cannot be appended to a base URL; None where it can."""
    if not path.startswith("/"):
        return "it does not begin with a slash"
    if "#" in path or "\\" in path or _CONTROL.search(path):
        return "it holds a character that no path may have"
    return problem_of_path(path.partition("?")[0])


def problem_of_value(text: str) -> str | None:
    """Return why a value cannot be in a path; None if it can."""
    if not text:
        return "it is empty"
    for form in _decoded(text):
        if form is None:
            return "it is encoded too often"
        if _CONTROL.search(form):
            return "it holds a control character"
        for segment in _SPLIT.split(form):
            if not segment:
                return "it has an empty segment"
            if _is_dots(segment):
                return "it has a segment of dots"
    return None


def problem_of_path(path: str) -> str | None:
    """Return why a path with its values put in cannot be sent: together they may be what none of them is."""
    forms = (form for segment in path.split("/") for form in _decoded(segment))
    is_odd = any(form is None or any(_is_dots(part) for part in _SPLIT.split(form)) for form in forms)
    return "it has a segment of dots" if is_odd else None


def _is_dots(segment: str) -> bool:
    """Return whether a segment is `.`, `..` or what some server takes for it, such as `..;x`, `...` or `.. `."""
    name = segment.partition(";")[0].strip()
    return bool(name) and not name.strip(".")


def _decoded(text: str) -> list[str | None]:
    """Return the text and all that it can be decoded to; ends with None where it does not come to an end."""
    forms: list[str | None] = []
    for _ in range(_DECODED_MAX):
        plain = unicodedata.normalize("NFKC", text).translate(_LIKE)
        forms += [text] if plain == text else [text, plain]
        decoded = _decoded_once(plain)
        if decoded == plain:
            return forms
        text = decoded
    return [*forms, None]


def _decoded_once(text: str) -> str:
    raw = unquote_to_bytes(_UNICODE_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).encode(errors="replace"))
    for overlong, meant in _OVERLONG:
        raw = raw.replace(overlong, meant)
    return raw.decode(errors="replace")
