"""One JSON: what is accepted survives, what is refused is named with its place, and nothing else happens."""

from __future__ import annotations

import json
import math
import sys
import time
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from triptych.models.prompts import user_message
from triptych.schemas import Effect, Reason, Result, Task
from triptych.schemas.codec import (
    MAX_DEPTH,
    MAX_DIGITS,
    InvalidJson,
    JsonLimits,
    check,
    decode,
    encode,
    encode_text,
    for_jsonb,
    read,
)
from triptych.tools import Tool
from triptych.tools.runtime.effect_ledger import arguments_hash
from triptych.tools.testing import request_for

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
TRAILING_COMMA = (  # the standard library's words
    ("illegal trailing comma before end of object", "byte 7")
    if sys.version_info >= (3, 13)
    else ("expecting property name enclosed in double quotes", "byte 8")
)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def same(one: object, other: object) -> bool:
    """Equal, and of the same types: 1 is not 1.0, and 0.0 is not -0.0."""
    return repr(one) == repr(other)


@given(JSON)
def test_what_is_written_is_read_again_as_it_was(value):
    assert same(decode(encode(value)), value)
    assert same(decode(encode(value, indent=True)), value)
    assert decode(encode_text(value, sort_keys=True)) == value


@given(JSON, st.booleans())
def test_what_any_client_writes_is_read_as_it_meant_it(value, ascii_only):
    assert same(decode(json.dumps(value, ensure_ascii=ascii_only)), value)


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789.eE+-\\u d8nulltruefalse\ufeff', max_size=40).map(str.encode))
@example(b"[1e400]")
@example(b'{"a":1,"a":1}')
def test_bytes_are_read_as_another_parser_reads_them_or_are_refused(raw):
    try:
        value = decode(raw)
    except InvalidJson:
        return
    assert same(value, json.loads(raw.decode("utf-8-sig")))
    assert same(decode(encode(value)), value)


@given(st.integers(-(10**MAX_DIGITS) + 1, 10**MAX_DIGITS - 1) | st.integers(2**63 - 3, 2**64 + 3))
def test_an_integer_is_exact_however_long_it_is(number):
    assert decode(str(number)) == number
    assert encode([number]) == f"[{number}]".encode()


@given(
    st.decimals(allow_nan=False, allow_infinity=False).map(str)
    | st.from_regex(r"[1-9]\d{14,20}\.\d{1,3}", fullmatch=True)
)
def test_a_decimal_never_changes_before_its_point(text):
    try:
        value = decode(text)
    except InvalidJson:
        return
    if isinstance(value, int):
        assert value == Decimal(text)
    elif abs(value) >= 2**53 and "E" not in text:
        assert Decimal(text) in {Decimal(value), Decimal(repr(value))}
    else:
        assert value == float(text)


@pytest.mark.parametrize(
    ("raw", "reason", "place"),
    [
        (b'{"a": [1, NaN]}', "NaN is not a JSON number", "/a/1"),
        (b"-Infinity", "-Infinity is not a JSON number", ""),
        (b'{"a": 1e400}', "a number is too large for a double", "/a"),
        (b"[" + b"9" * 400 + b".5]", "a number is too large for a double", "/0"),
        (b"[1.5E-400]", "a number is too small for a double", "/0"),
        (b"[9007199254740993.0]", "a number has more digits than a double holds; send an integer, or text", "/0"),
        (b"[1234567890123456789.5]", "a number has more digits than a double holds; send an integer, or text", "/0"),
        (b"[" + b"1" * 1_001 + b"]", "a number has more than 1,000 digits", "/0"),
        (b"[-" + b"1" * 5_000 + b"]", "a number has more than 1,000 digits", "/0"),
        (b"[0." + b"1" * 5_000 + b"]", "a number has more than 1,000 digits", "/0"),
        (rb'{"a": "\ud83d"}', "the text holds half of a surrogate pair; send the whole character", "/a"),
        (rb'["\ude00\ud83d"]', "the text holds half of a surrogate pair; send the whole character", "/0"),
        (rb'{"a": {"\ud83d": 1}}', "the text holds half of a surrogate pair; send the whole character", "/a/?"),
        (b'"\xed\xa0\xbd"', "the text is not UTF-8", "byte 1"),
        (b"\xff\xfe1\x00", "the text is not UTF-8", "byte 0"),
        (nested(MAX_DEPTH + 1), "lists and objects are nested deeper than 100 levels", "byte 100"),
        (b'["\\"[",' + nested(MAX_DEPTH) + b"]", "lists and objects are nested deeper than 100 levels", "byte 106"),
        (nested(100_000), "lists and objects are nested deeper than 100 levels", "byte 100"),
        (b'{"[":' * 300_000, "lists and objects are nested deeper than 100 levels", "byte 500"),
        (b'{"a": [{"b/c": 1, "b/c": 2}]}', "the name b/c stands twice in an object", "/a/0"),
        (rb'{"a": 1, "\u0061": 2}', "the name a stands twice in an object", ""),
        (rb'{":": 1, "\u003a": 1}', "the name : stands twice in an object", ""),
        (b'{"a": 1,}', f"the text is not JSON: {TRAILING_COMMA[0]}", TRAILING_COMMA[1]),
        (b"", "the text is not JSON: expecting value", "byte 0"),
        (b"{} {}", "the text is not JSON: extra data", "byte 3"),
        (b"00", "the text is not JSON: extra data", "byte 1"),
        (b'"a\tb"', "the text is not JSON: invalid control character", "byte 2"),
        ("é\ud83d", "the text holds half of a surrogate pair; send the whole character", "character 1"),
    ],
)
def test_what_is_refused_is_named_with_its_place(raw, reason, place):
    with pytest.raises(InvalidJson) as refused:
        decode(raw)
    assert (refused.value.reason, refused.value.place) == (reason, place)


def test_too_many_values_are_refused_and_commas_in_a_text_are_none():
    limits = JsonLimits(max_values=100)
    assert decode(b"[" + b"1," * 98 + b"1]", limits=limits) == [1] * 99
    assert decode(b'["' + b"," * 1_000 + b'"]', limits=limits) == ["," * 1_000]
    with pytest.raises(InvalidJson, match="more than 100 values"):
        decode(b"[" + b"1," * 99 + b"1]", limits=limits)


def test_what_is_written_is_held_to_the_same_limits_as_what_is_read():
    check([1] * 249_999)
    with pytest.raises(InvalidJson, match="more than 250,000 values"):
        check([1] * 250_000)
    with pytest.raises(InvalidJson, match="more than 250,000 values"):
        check([10**30] * 250_000)
    with pytest.raises(InvalidJson, match="33,554,434 bytes and may have 33,554,432"):
        check("a" * 2**25)


def test_too_many_bytes_are_refused_before_they_are_read():
    with pytest.raises(InvalidJson, match="11 bytes and may have 10"):
        decode(b'"123456789"', limits=JsonLimits(max_bytes=10))


def test_brackets_in_a_text_are_not_levels():
    text = '"[{' * 500
    assert decode(encode([text, "]" * 500])) == [text, "]" * 500]
    assert len(decode(b"[" + b",".join([nested(MAX_DEPTH - 1)] * 50) + b"]")) == 50


def test_a_byte_order_mark_is_no_part_of_the_value():
    assert decode(b'\xef\xbb\xbf{"ok": true}') == decode('\ufeff{"ok": true}') == {"ok": True}


@pytest.mark.parametrize("text", ["0.30000000000000004", "1e22", "1e23", "1E5", "5e-324", "0e-999", "-0.0", "1" * 17])
def test_a_number_that_a_double_holds_is_the_number_that_everybody_reads(text):
    assert same(decode(text), json.loads(text))


LOOP: list[object] = []
LOOP.append(LOOP)


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "reason", "place"),
    [
        ({"a": [None, math.nan]}, "NaN is not a JSON number", "/a/1"),
        ((math.inf,), "Infinity is not a JSON number", "/0"),
        ({"a": "\ud83d"}, "the text holds half of a surrogate pair; send the whole character", "/a"),
        ({"\ud83d": 1}, "the text holds half of a surrogate pair; send the whole character", "/?"),
        ({"a": {1: 2}}, "the name of a field is not text but int", "/a"),
        ([10**MAX_DIGITS], "a number has more than 1,000 digits", "/0"),
        ([10**100_000], "a number has more than 1,000 digits", "/0"),
        ({"a": {1, 2}}, "set is not a type of JSON", "/a"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_place(value, reason, place):
    with pytest.raises(InvalidJson) as refused:
        encode(value)
    assert (refused.value.reason, refused.value.place) == (reason, place)


def test_a_value_that_contains_itself_is_too_deep():
    with pytest.raises(InvalidJson, match="nested deeper than 100 levels"):
        check(LOOP)


def test_what_may_be_read_from_outside_can_be_written_within_a_message():
    deepest = decode(nested(MAX_DEPTH))
    wrapped = {"result": {"data": {"steps": [deepest]}}}
    assert decode(encode(wrapped), limits=JsonLimits(max_depth=MAX_DEPTH + 4)) == wrapped
    with pytest.raises(InvalidJson, match="nested deeper than 100 levels"):
        check(wrapped)


def test_equal_values_are_written_alike_whatever_numbers_they_hold():
    assert encode({"b": 10**30, "a": "é"}, sort_keys=True) == b'{"a":"\xc3\xa9","b":%d}' % 10**30
    assert encode({"b": 1, "a": "é"}, sort_keys=True) == b'{"a":"\xc3\xa9","b":1}'
    assert encode({"colour": Colour.RED, "n": 10**30}) == b'{"colour":"red","n":%d}' % 10**30


def test_a_type_of_its_own_writes_itself_beside_an_integer_of_any_size():
    reason = Reason(code="c", message="m")
    value = {"reason": reason, "n": 2**70}
    assert decode(encode(value, default=lambda other: other.to_bytes())) == {
        "reason": {"code": "c", "message": "m"},
        "n": 2**70,
    }


def test_a_message_is_read_by_its_model_with_exact_numbers():
    task = read(Task, b'\xef\xbb\xbf{"playbook":"x","input":{"order":12345678901234567890123}}')
    assert task.input == {"order": 12345678901234567890123}
    with pytest.raises(ValidationError):
        read(Task, b'{"playbook":1}')


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", "1.5E+0400", r'"\ud83d"', nested(200).decode()])
def test_a_message_with_what_its_model_would_take_for_a_value_is_refused(number):
    raw = f'{{"playbook":"x","input":{{"order":{number} }}}}'
    with pytest.raises(InvalidJson):
        read(Task, raw)


@pytest.mark.parametrize(
    "piece",
    ['"' + '\\"', "[", "[[],", '{"a":', "1", "0.1", '"\\u0061":', "{},", "\\", '"', "1,", '{"a":1,"a":2},'],
)
def test_time_grows_as_the_text_does(piece):
    def seconds(count: int) -> float:
        raw = b"[" + piece.encode() * count
        began = time.process_time()
        with pytest.raises(InvalidJson):
            decode(raw)
        return time.process_time() - began

    short = min(seconds(20_000) for _ in range(3))
    assert seconds(200_000) < 60 * short + 0.5  # ten times the text; a hundred times the time would be its square


HUGE = 10**25


@pytest.mark.parametrize("message", [Result.ok({"x": math.nan}), Task(playbook="p", input={"x": -math.inf})])
def test_a_message_with_what_is_not_a_number_is_not_written_as_null(message):
    with pytest.raises(InvalidJson, match="is not a JSON number"):
        message.to_bytes()


def test_a_message_that_is_nested_too_deep_or_holds_half_a_character_says_where():
    with pytest.raises(InvalidJson, match=r"nested deeper than 254 levels \(at /data/0/0/"):
        Result.ok(json.loads(nested(300))).to_bytes()
    with pytest.raises(InvalidJson, match=r"half of a surrogate pair; .* \(at /data/a\)"):
        Result.ok({"a": "\ud83d"}).to_bytes()


@pytest.mark.parametrize("name", ["NaN", "Infinity", "e+"])
def test_words_that_look_like_numbers_are_words(name):
    task = Task(playbook="p", input={name: [name, 1e22]})
    assert read(Task, task.to_bytes()) == task
    assert decode(for_jsonb(task.to_bytes()))["input"] == {name: [name, 1e22]}


def test_zero_has_one_hash_whatever_its_sign_and_a_text_is_no_number():
    made = Tool("desk")

    @made.operation(effect=Effect.IDEMPOTENT)
    async def pay(amount: Any) -> int:
        """Pays."""
        return amount

    def hashed(amount):
        return arguments_hash(request_for(made, "pay", {"amount": amount}))

    assert hashed([-0.0, {"a": -0.0}]) == hashed([0.0, {"a": 0.0}])
    assert hashed("-0.0") != hashed("0.0")
    assert hashed(-0.05) != hashed(0.05)


def test_a_model_is_told_of_a_task_with_an_integer_beyond_64_bits():
    assert json.loads(user_message({"input": {"order": HUGE}}, ()))["input"] == {"order": HUGE}


def test_a_write_with_an_integer_beyond_64_bits_has_a_hash_of_its_own():
    made = Tool("desk")

    @made.operation(effect=Effect.IDEMPOTENT)
    async def close(order: int) -> int:
        """Closes."""
        return order

    hashes = {arguments_hash(request_for(made, "close", {"order": order})) for order in (HUGE, HUGE, HUGE + 1)}
    assert len(hashes) == 2


ROOT = Path(__file__).parents[2]
READ_BY_PYDANTIC = {
    "schemas/codec.py": "after the bytes were looked at",
    "services/executor/events.py": "its own journal, of any version",
}


def test_no_service_reads_a_message_past_the_codec():
    sources = [file for member in ("schemas", "kernel", "services", "cli") for file in (ROOT / member).rglob("*.py")]
    assert sources
    found = {str(file.relative_to(ROOT)) for file in sources if "validate_json(" in file.read_text("utf-8")}
    assert found == READ_BY_PYDANTIC.keys()
