"""Serialize parameters into the path, the query, a header or a cookie, in the styles of OpenAPI 3 (RFC 6570).

Values are percent-encoded, so that no argument can leave its place in the request.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote

from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest.endpoint import Parameter, Style
from triptych.tools.sdk.failure import ToolFailure

_RESERVED = ":/?[]@!$'()*,"
"""The reserved characters that end no value of a query. `&`, `;`, `#`, `=` and `+` would say something else."""
_DELIMITERS = {Style.FORM: ",", Style.SPACE_DELIMITED: "%20", Style.PIPE_DELIMITED: "%7C"}


class AmbiguousValueError(ValueError):
    """A value of a list holds what separates the values, so that the other side would read two of them."""

    def __init__(self, text: str, delimiter: str) -> None:
        super().__init__(f"{text[:50]!r} holds {delimiter!r}, which separates the values of the list")

    def failure(self, argument: str) -> ToolFailure:
        """Name the argument that has this value."""
        return ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"arguments.{argument}: {self}", undone=True)


def text_of(value: Json) -> str:
    """Return a value as text: strings as they are, nothing for null, and everything else as JSON."""
    return "" if value is None else codec.plain_text(value)


def path_value(parameter: Parameter, value: Json) -> str:
    """Return the text of this value in the path."""
    if parameter.as_json:
        return _encoded(codec.encode_text(value))
    name = _encoded(parameter.name)
    match parameter.style:
        case Style.LABEL:
            return "." + _joined(value, "." if parameter.explode else ",", explode=parameter.explode)
        case Style.MATRIX if parameter.explode and isinstance(value, list):
            return "".join(f";{name}={_encoded(text_of(item))}" for item in value)
        case Style.MATRIX if parameter.explode and isinstance(value, dict):
            return "".join(f";{_encoded(key)}={_encoded(text_of(item))}" for key, item in value.items())
        case Style.MATRIX:
            return f";{name}={_joined(value, ',', explode=False)}"
        case _:
            return _joined(value, ",", explode=parameter.explode)


def without_nulls(value: Json) -> Json:
    """Return a value without the nulls in it, which no style has a form for: null means that nothing is sent."""
    match value:
        case dict():
            return {name: without_nulls(item) for name, item in value.items() if item is not None}
        case list():
            return [without_nulls(item) for item in value if item is not None]
        case _:
            return value


def query_pairs(parameter: Parameter, value: Json) -> Iterable[str]:
    """Yield the `name=value` pairs of the query, encoded."""
    name, safe = _encoded(parameter.name), _RESERVED if parameter.allow_reserved else ""
    if parameter.as_json:
        return [f"{name}={_encoded(codec.encode_text(value))}"]
    if not isinstance(value, (list, dict)):
        return [f"{name}={_encoded(text_of(value), safe)}"]
    if parameter.style is Style.DEEP_OBJECT:
        return [f"{_encoded(key)}={_encoded(text, safe)}" for key, text in deep_pairs(parameter.name, value)]
    if parameter.explode:
        pairs = value.items() if isinstance(value, dict) else ((parameter.name, item) for item in value)
        return [f"{_encoded(key)}={_encoded(text_of(item), safe)}" for key, item in pairs]
    delimiter = _DELIMITERS.get(parameter.style, ",")
    # A comma in a value is encoded and the delimiter is not; of the others both are encoded.
    texts = flat_texts(value) if delimiter == "," else unambiguous(flat_texts(value), unquote(delimiter))
    return [f"{name}={delimiter.join(_encoded(text, safe) for text in texts)}"]


def header_value(parameter: Parameter, value: Json) -> str:
    """Return the value of a header. It is not percent-encoded: headers are read as they are."""
    if parameter.as_json:
        return codec.encode_text(value)
    if isinstance(value, dict) and parameter.explode:
        return ",".join(unambiguous([f"{key}={text_of(item)}" for key, item in value.items()], ","))
    return ",".join(unambiguous(flat_texts(value), ",")) if isinstance(value, (list, dict)) else text_of(value)


def cookie_pair(parameter: Parameter, value: Json) -> str:
    """Return one `name=value` of the header Cookie."""
    if isinstance(value, (list, dict)) and not parameter.as_json:
        return f"{parameter.name}={','.join(map(_encoded, flat_texts(value)))}"
    return f"{parameter.name}={_encoded(text_of(value), ',')}"


def has_nested(items: list[Json]) -> bool:
    return any(isinstance(item, (dict, list)) for item in items)


def _encoded(text: str, safe: str = "") -> str:
    return quote(text, safe=safe)


def flat_texts(value: list[Json] | dict[str, Json]) -> list[str]:
    if isinstance(value, list):
        return [text_of(item) for item in value]
    return [text for key, item in value.items() for text in (key, text_of(item))]


def unambiguous(texts: list[str], delimiter: str) -> list[str]:
    """Return the texts, where none of them holds what will stand between them. Raises AmbiguousValueError."""
    for text in texts:
        if delimiter in text:
            raise AmbiguousValueError(text, delimiter)
    return texts


def _joined(value: Json, delimiter: str, *, explode: bool) -> str:
    match value:
        case dict() if explode:
            texts = [f"{_encoded(key)}={_encoded(text_of(item))}" for key, item in value.items()]
        case list() | dict():
            texts = [_encoded(text) for text in flat_texts(value)]
        case _:
            return _encoded(text_of(value))
    # Of the delimiters, a dot alone is left as it is by the encoding.
    return delimiter.join(unambiguous(texts, delimiter))


def deep_pairs(name: str, value: Json) -> list[tuple[str, str]]:
    """`name[key][key]=value`, as deepObject is understood where objects are nested: lists of objects are numbered."""
    match value:
        case dict():
            return [pair for key, item in value.items() for pair in deep_pairs(f"{name}[{key}]", item)]
        case list() if has_nested(value):
            return [pair for place, item in enumerate(value) for pair in deep_pairs(f"{name}[{place}]", item)]
        case list():
            return [(f"{name}[]", text_of(item)) for item in value]
        case _:
            return [(name, text_of(value))]
