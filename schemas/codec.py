"""The one definition of the JSON that Triptych accepts and writes.

What `decode` accepts is the same value when `encode` has written it and another service has read it. What either of
them refuses, it names with its place. Integers are exact, floats are finite, text is Unicode, and depth, number of
values and bytes are bounded. Nothing else in Triptych calls a JSON library (decision 12; ruff forbids it).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from typing import Any, Protocol, TypeVar, overload

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, SchemaSerializer, to_json

Json = Any
"""A JSON value: null, bool, number, string, list or object. Checked where a schema is known."""

_BOM = b"\xef\xbb\xbf"

MAX_DEPTH = 100
"""Of a value from outside. Our messages wrap it, and pydantic reads no more than 200 levels."""

MAX_DIGITS = 1_000
MAX_VALUES = 250_000
MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """What a JSON text may be. `max_depth` counts lists and objects around each other."""

    max_bytes: int = MAX_BYTES
    max_depth: int = MAX_DEPTH
    max_values: int = MAX_VALUES
    max_digits: int = MAX_DIGITS
    """Of a number."""


VALUE = JsonLimits()
"""What comes from outside: a task, arguments, an answer, an output."""

TASK = JsonLimits(max_depth=MAX_DEPTH + 1)
"""A task, whose input may be as deep as any value."""

ANSWER = JsonLimits(max_bytes=2**28, max_depth=MAX_DEPTH + 10, max_values=2**28)
"""What a worker answers: a value, a few levels within a message."""

MESSAGE = JsonLimits(max_bytes=2**28, max_depth=160, max_values=2**28)
"""What services send to each other and keep: values, and answers with many of them, in their envelopes."""

STORED = JsonLimits(max_bytes=2**30, max_depth=254, max_values=2**30, max_digits=4_300)
"""What is in a table already: all that an older version could write."""

DOCUMENT = JsonLimits(max_bytes=2**28, max_values=5_000_000)
"""A file that an operator names, such as an OpenAPI document. The code that fetches one bounds its bytes."""

_T_co = TypeVar("_T_co", covariant=True)
_ModelT = TypeVar("_ModelT", bound=BaseModel)

_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_MANY = b"0" * 16
"""A number with fewer digits needs no closer look, unless it has an exponent."""

_LONG = b"0" * 19
"""So many digits can be too many for 64 bits."""

_LONG_FRACTION = b"." + _LONG
_LONG_WHOLE = _MANY + b"."
"""So many digits before a point can be too many for a double."""

_EXTREME = re.compile(rb"0e[+-]?0{3,}\s*(?:[,\]}]|$)")
"""The end of a number that may be too large or too small for a double."""

_DOUBLE_EXACT = 2**53
_NOT_ZERO = re.compile(r"-?[0.]*[1-9]")
_STRING = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+\\?"?')
_STRING_OR_BRACKET = re.compile(_STRING.pattern + rb"|[\[\]{}]")
_STRING_OR_LARGE = re.compile(_STRING.pattern + rb"|-?[0-9][0-9.]*e\+?[0-9]+")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_LARGE_BYTES = 1_048_576
"""In a text above this, depth is counted only as far as it is allowed, which is slower where nothing is wrong."""
_MAX_NAME_CHARS = 40
_MAX_PLACE_CHARS = 120


class InvalidJson(ValueError):
    """A text or a value is not the JSON that Triptych accepts.

    `reason` says what is wrong and `place` where: a JSON pointer such as `/input/items/3`, `byte 17` of a text, or
    nothing where the whole value is meant.
    """

    def __init__(self, reason: str, place: str = "", path: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"{reason} (at {place})" if place else reason)
        self.reason = reason
        self.place = place
        self.path = path
        """The names and indexes of the pointer; empty where the place is not one."""

    def within(self, part: str | int) -> InvalidJson:
        """Say the same of what contains it."""
        return InvalidJson(self.reason, _shortened(f"/{_escaped(part)}{self.place}"), (part, *self.path))


class NotJson(InvalidJson):
    """A text is not JSON for any reader."""


class Readable(Protocol[_T_co]):
    """A pydantic model's class."""

    def model_validate_json(self, json_data: bytes) -> _T_co:
        """Read one from its JSON."""
        ...


def decode(raw: bytes | str, *, limits: JsonLimits = VALUE, unique_names: bool = True) -> Json:
    """Read a JSON text in UTF-8, with or without a byte order mark.

    Args:
        raw: the text.
        limits: how large, how deep and how many.
        unique_names: whether an object that has a name twice is refused. Otherwise the last one is taken.

    Raises:
        InvalidJson: it is not JSON, holds what no value can hold exactly, or is beyond the limits.
    """
    body = _body(raw, limits)
    if _is_plain(body, limits):
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            pass  # the exact way says why
        else:
            if not unique_names or _has_unique_names(body, value):
                return value
    return _decoded(body, limits, unique_names=unique_names)


@overload
def read(model: type[_ModelT], raw: bytes | str, *, limits: JsonLimits = ..., unique_names: bool = ...) -> _ModelT: ...
@overload
def read(model: Readable[_T_co], raw: bytes | str, *, limits: JsonLimits = ..., unique_names: bool = ...) -> _T_co: ...
def read(model: Any, raw: bytes | str, *, limits: JsonLimits = MESSAGE, unique_names: bool = False) -> Any:
    """Read a message, as `decode` and then the model would.

    Raises:
        InvalidJson: as in `decode`.
        ValidationError: it is JSON, but not the model's.
    """
    body = _body(raw, limits)
    if unique_names or b"NaN" in body or b"Infinity" in body or not _is_plain(body, limits):
        decode(body, limits=limits, unique_names=unique_names)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if any(each["type"] == "json_invalid" for each in error.errors(include_url=False, include_input=False)):
            decode(body, limits=limits, unique_names=unique_names)
        raise


def encode(
    value: Json,
    *,
    sort_keys: bool = False,
    indent: bool = False,
    limits: JsonLimits = MESSAGE,
    default: Callable[[object], bytes] | None = None,
) -> bytes:
    """Write a value as JSON in UTF-8. Sorted, equal values give equal bytes. Times in UTC end in Z.

    Args:
        value: null, a boolean, a number, text, a list, a tuple, or a mapping. Dates, UUIDs and enums become text.
        sort_keys: whether the names of objects are in order.
        indent: whether people will read it. It then ends in a line break.
        limits: how deep, and how many digits.
        default: what gives the JSON of any other type.

    Raises:
        InvalidJson: it holds what JSON cannot say, or is beyond the limits.
    """
    option = orjson.OPT_UTC_Z
    if sort_keys:
        option |= orjson.OPT_SORT_KEYS
    if indent:
        option |= orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    fragments = None if default is None else lambda other: orjson.Fragment(default(other))
    try:
        written = orjson.dumps(value, default=fragments, option=option)
    except orjson.JSONEncodeError:
        pass  # the exact way says why, or can
    else:
        if (b"null" not in written or _holds_no_infinity(value)) and _is_shallow(written, limits):
            return _small(written, limits)
    plain = _plain(value, limits, limits.max_depth, default)
    separators = None if indent else (",", ":")
    text = json.dumps(
        plain,
        ensure_ascii=False,
        allow_nan=False,
        sort_keys=sort_keys,
        separators=separators,
        indent=2 if indent else None,
    )
    return _small(f"{text}\n".encode() if indent else text.encode(), limits)


def encode_text(value: Json, *, sort_keys: bool = False, limits: JsonLimits = MESSAGE) -> str:
    """Write a value as JSON, as text.

    Raises:
        InvalidJson: as in `encode`.
    """
    return encode(value, sort_keys=sort_keys, limits=limits).decode()


def plain_text(value: Json) -> str:
    """Write a value as one reads it in an address or a form: text as it is, numbers in full without an exponent.

    Raises:
        InvalidJson: as in `encode`.
    """
    match value:
        case str():
            return value
        case float() if math.isfinite(value):
            return f"{Decimal(repr(value)):f}"
        case _:
            return encode_text(value)


def check(value: Json, *, limits: JsonLimits = VALUE) -> None:
    """Make sure that a value can be written, sent and read again unchanged.

    Raises:
        InvalidJson: as in `encode`.
    """
    encode(value, limits=limits)


def check_text(text: bytes, *, limits: JsonLimits) -> None:
    """Make sure that JSON that was written within this process is within what its reader takes.

    Raises:
        InvalidJson: as in `decode`.
    """
    if len(text) > limits.max_bytes or not _is_plain(text, limits):
        decode(text, limits=limits, unique_names=False)


def written(serializer: SchemaSerializer, message: BaseModel) -> bytes:
    """Write a message as its model says, without fields that are None.

    Raises:
        InvalidJson: it holds what JSON cannot say, or is nested too deep.
    """
    try:
        text = serializer.to_json(message, exclude_none=True)
    except PydanticSerializationError:
        return encode(message.model_dump(exclude_none=True), limits=STORED)  # which says why
    if b"NaN" in text or b"Infinity" in text:
        decode(text, limits=STORED, unique_names=False)
    return text


def for_jsonb(written: bytes) -> bytes:
    """Return the same JSON with large doubles in full, as `1e22` becomes an integer in a jsonb column of Postgres."""
    if b"e+" not in written:
        return written
    return _STRING_OR_LARGE.sub(lambda found: _in_full(found.group()), written)


def repaired_text(token: bytes) -> str:
    """Decode a refused JSON text for people, with U+FFFD for what is not a character."""
    written = token.decode(errors="replace")
    try:
        text = str(json.loads(written, strict=False))
    except json.JSONDecodeError:
        return written
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def fits_64_bits(value: Json) -> bool:
    """Return whether every integer in a value fits into 64 bits, for libraries that make doubles of larger ones."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


def _small(text: bytes, limits: JsonLimits) -> bytes:
    if len(text) > limits.max_bytes:
        raise InvalidJson(_too_large(text, limits))
    if not _is_small(text, limits):
        raise InvalidJson(_too_many(limits))
    return text


def _body(raw: bytes | str, limits: JsonLimits) -> bytes:
    """Return the text's bytes, without a byte order mark."""
    if isinstance(raw, str):
        try:
            raw = raw.encode()
        except UnicodeEncodeError as error:
            raise InvalidJson(_HALF_A_PAIR, f"character {error.start}") from None
    raw = raw.removeprefix(_BOM)
    if len(raw) > limits.max_bytes:
        raise InvalidJson(_too_large(raw, limits))
    return raw


def _is_plain(body: bytes, limits: JsonLimits) -> bool:
    """Return whether orjson and pydantic read it exactly, as far as bytes tell. False where a closer look is needed."""
    digits = body.translate(_DIGITS)
    if _MANY in digits and (_LONG_WHOLE in digits or digits.count(_LONG) != digits.count(_LONG_FRACTION)):
        return False
    if b"0e" in digits and _EXTREME.search(digits):
        return False
    return _is_shallow(body, limits) and _is_small(body, limits)


def _is_shallow(text: bytes, limits: JsonLimits) -> bool:
    if text.count(b"[") + text.count(b"{") <= limits.max_depth:
        return True
    if len(text) > _LARGE_BYTES:
        return _first_too_deep(text, limits) is None
    brackets = _STRING.sub(b"", text).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) <= limits.max_depth


def _is_small(text: bytes, limits: JsonLimits) -> bool:
    """Return whether it has at most as many values as it may. Each after the first follows a comma, `[` or `{`."""
    if len(text) <= limits.max_values or _marks(text) < limits.max_values:
        return True
    return _marks(_STRING.sub(b"", text)) < limits.max_values


def _marks(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _has_unique_names(body: bytes, value: Json) -> bool:
    """Return whether every name is in the value: each has its colon, as has every text that holds one."""
    if b":" not in body:
        return True
    is_escaped = b"\\u003a" in body or b"\\u003A" in body
    return not is_escaped and body.count(b":") == orjson.dumps(value).count(b":")


def _holds_no_infinity(value: Json) -> bool:
    """Return whether orjson wrote null only for null."""
    try:
        written = to_json(value, inf_nan_mode="constants")
    except ValueError:
        return False
    return b"NaN" not in written and b"Infinity" not in written


# The exact way: in Python, for what the quick way cannot do or has refused.


@dataclass(frozen=True, slots=True)
class _Refused:
    """Marks the part of a value that was refused, until its place is known."""

    reason: str


_HALF_A_PAIR = "the text holds half of a surrogate pair; send the whole character"


def _decoded(body: bytes, limits: JsonLimits, *, unique_names: bool) -> Json:
    if not _is_shallow(body, limits):
        raise InvalidJson(_too_deep(limits), f"byte {_first_too_deep(body, limits)}")
    if not _is_small(body, limits):
        raise InvalidJson(_too_many(limits))

    def integer(digits: str) -> object:
        return _Refused(_too_long(limits)) if len(digits.lstrip("-")) > limits.max_digits else int(digits)

    def double(text: str) -> object:
        return _Refused(_too_long(limits)) if len(text) > limits.max_digits else _double(text)

    def named(members: list[tuple[str, object]]) -> object:
        fields = dict(members)
        return _twice(members) if unique_names and len(fields) != len(members) else fields

    try:
        text = body.decode()
        value = json.loads(
            text,
            parse_int=integer,
            parse_float=double,
            parse_constant=lambda name: _Refused(f"{name} is not a JSON number"),
            object_pairs_hook=named,
        )
    except UnicodeDecodeError as error:
        raise NotJson("the text is not UTF-8", f"byte {error.start}") from None
    except json.JSONDecodeError as error:
        place = len(error.doc[: error.pos].encode())
        raise NotJson(f"the text is not JSON: {_syntax(error)}", f"byte {place}") from None
    _refuse_marked(value)
    return value


def _double(text: str) -> object:
    """Return the nearest double. Without an exponent, a number must not have more digits before its point than fit."""
    double = float(text)
    if math.isinf(double):
        return _Refused("a number is too large for a double")
    if not double and _NOT_ZERO.match(text):
        return _Refused("a number is too small for a double")
    if abs(double) < _DOUBLE_EXACT or "e" in text or "E" in text:
        return double
    if Decimal(text) not in {Decimal(double), Decimal(repr(double))}:
        return _Refused("a number has more digits than a double holds; send an integer, or text")
    return double


def _twice(members: list[tuple[str, object]]) -> _Refused:
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            return _Refused(f"the name {_shown(name)} stands twice in an object")
        seen.add(name)
    raise AssertionError


def _refuse_marked(value: object) -> None:
    """Raise InvalidJson for the first thing that was refused, and for text that no UTF-8 can hold."""
    match value:
        case _Refused():
            raise InvalidJson(value.reason)
        case str():
            _refuse_surrogates(value)
        case list():
            for index, each in enumerate(value):
                try:
                    _refuse_marked(each)
                except InvalidJson as error:
                    raise error.within(index) from None
        case dict():
            for name, each in value.items():
                try:
                    _refuse_surrogates(name)
                    _refuse_marked(each)
                except InvalidJson as error:
                    raise error.within(name) from None


def _plain(value: object, limits: JsonLimits, depth_left: int, default: Callable[[object], bytes] | None) -> Json:
    """Return the same value of JSON's types alone. Raises InvalidJson with the place of what cannot be written."""
    match value:
        case None | bool():
            return value
        case str():
            return _refuse_surrogates(value)
        case int():
            return _refuse_long(value, limits)
        case float():
            if not math.isfinite(value):
                raise InvalidJson(f"{_constant(value)} is not a JSON number")
            return value
        case list() | tuple() | Mapping():
            if not depth_left:
                raise InvalidJson(_too_deep(limits))
            return _plain_container(value, limits, depth_left - 1, default)
        case _:
            return _plain_other(value, limits, default)


def _plain_container(
    value: list[object] | tuple[object, ...] | Mapping[object, object],
    limits: JsonLimits,
    depth_left: int,
    default: Callable[[object], bytes] | None,
) -> Json:
    if not isinstance(value, Mapping):
        items = []
        for index, each in enumerate(value):
            try:
                items.append(_plain(each, limits, depth_left, default))
            except InvalidJson as error:
                raise error.within(index) from None
        return items
    fields = {}
    for name, each in value.items():
        if not isinstance(name, str):
            raise InvalidJson(f"the name of a field is not text but {type(name).__name__}")
        try:
            fields[_refuse_surrogates(name)] = _plain(each, limits, depth_left, default)
        except InvalidJson as error:
            raise error.within(name) from None
    return fields


def _plain_other(value: object, limits: JsonLimits, default: Callable[[object], bytes] | None) -> Json:
    if default is not None:
        try:
            return decode(default(value), limits=limits, unique_names=False)
        except TypeError:
            pass  # not one of theirs
    try:
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_UTC_Z))
    except orjson.JSONEncodeError:
        raise InvalidJson(f"{type(value).__name__} is not a type of JSON") from None


def _refuse_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidJson(_HALF_A_PAIR) from None
    return text


def _refuse_long(number: int, limits: JsonLimits) -> int:
    if abs(number) >= 10**limits.max_digits:
        raise InvalidJson(_too_long(limits))
    return number


def _first_too_deep(body: bytes, limits: JsonLimits) -> int | None:
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(body):
        depth += _STEPS.get(body[token.start()], 0)
        if depth > limits.max_depth:
            return token.start()
    return None


def _too_large(text: bytes, limits: JsonLimits) -> str:
    return f"the text has {len(text):,} bytes and may have {limits.max_bytes:,}"


def _too_many(limits: JsonLimits) -> str:
    return f"there are more than {limits.max_values:,} values"


def _too_deep(limits: JsonLimits) -> str:
    return f"lists and objects are nested deeper than {limits.max_depth} levels"


def _too_long(limits: JsonLimits) -> str:
    return f"a number has more than {limits.max_digits:,} digits"


def _constant(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _syntax(error: json.JSONDecodeError) -> str:
    return f"{error.msg[:1].lower()}{error.msg[1:].removesuffix(' at')}"


def _in_full(token: bytes) -> bytes:
    return token if token.startswith(b'"') else b"%d.0" % int(float(token))


def _escaped(part: str | int) -> str:
    return _shown(str(part)).replace("~", "~0").replace("/", "~1")


def _shown(name: str) -> str:
    """Make a name printable, and shorten it."""
    printable = name.encode(errors="replace").decode()
    return printable if len(printable) <= _MAX_NAME_CHARS else f"{printable[:_MAX_NAME_CHARS]}…"


def _shortened(place: str) -> str:
    return place if len(place) <= _MAX_PLACE_CHARS else f"{place[:_MAX_PLACE_CHARS]}…"
