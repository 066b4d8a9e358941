"""What an MCP server writes: read, or refused by name, whatever the bytes are, and in time."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from triptych.tools.adapters.mcp.wire import (
    LEFT_OUT,
    LIST_TOOLS,
    TOOLS,
    UnreadableError,
    id_in,
    looks_like_answer,
    read,
)

PAGE = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[%s],"nextCursor":"n"}}'
GOOD = b'{"name":"good","inputSchema":{"type":"object"}}'

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    ["name", "title", "description", "inputSchema", "outputSchema", "annotations", "_meta", "icons"]
)
tools = st.dictionaries(fields, values | st.just({"type": "object"}) | st.just("odd"), max_size=6)


def listed(raw: bytes) -> dict[str, Any]:
    message: Any = read(raw, LIST_TOOLS)
    result: dict[str, Any] = message.result
    return result


@given(st.binary(max_size=200), st.sampled_from((None, LIST_TOOLS, "tools/call")))
@example(b'{"jsonrpc":"2.0","id":1,"result":{"tools":[', LIST_TOOLS)
@example(b'{"result":{"tools":[{"name":"\\ud800"', LIST_TOOLS)
@example(b'{"jsonrpc":"2.0","id":1,"result":{"tools":[,,]}}', LIST_TOOLS)
@example(b'{"jsonrpc":"2.0","id":1,"result":{"tools":[NaN,],"x":NaN}}', LIST_TOOLS)
@example(b'{"jsonrpc":"2.0","id":1,"result":[{"tools":[NaN]}]}', LIST_TOOLS)
def test_any_bytes_are_a_message_or_are_refused(raw: bytes, method: str | None) -> None:
    id_in(raw)
    looks_like_answer(raw)
    with suppress(UnreadableError):
        read(raw, method)


@pytest.mark.parametrize(
    ("raw", "is_answer"),
    [
        (b'{"jsonrpc":"2.0","method":"notifications/message","params":[1]}', False),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"roots/list","params":0}', False),
        (b'{"level":"info","event":"started"}', False),
        (b'[{"jsonrpc":"2.0"}]', False),
        (b'{"jsonrpc":"2.0","id":null,"error":"no"}', True),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"tools/call","result":{}}', True),
        (b'{"jsonrpc":"2.0"}', True),
        (b'{"jsonrpc":"2.0","id":1,"result":{', True),
    ],
)
def test_what_a_server_asks_or_tells_is_never_taken_for_an_answer(raw: bytes, is_answer: bool) -> None:  # noqa: FBT001
    assert looks_like_answer(raw) is is_answer


@given(values | tools)
def test_one_tool_of_any_form_leaves_the_others_as_they_are(odd: Any) -> None:
    page = listed(PAGE % b",".join((GOOD, json.dumps(odd).encode(), GOOD.replace(b"good", b"other"))))
    names = [tool["name"] for tool in page["_meta"][TOOLS]]
    assert (names[0], names[-1]) == ("good", "other")
    assert len(names) + len(page["_meta"][LEFT_OUT]) == 3
    assert [tool["name"] for tool in page["tools"]] == names
    assert page["nextCursor"] == "n"


@given(
    st.lists(
        st.sampled_from((b'"\\ud800"', b"NaN", b"1" * 5_000, b'{"a":1,"a":2}', b"[" * 200 + b"]" * 200)), max_size=4
    )
)
def test_tools_that_are_no_json_leave_the_others_as_they_are(odd: list[bytes]) -> None:
    wrong = [b'{"name":"odd","x":' + each + b"}" for each in odd]
    page = listed(PAGE % b",".join((GOOD, *wrong, GOOD)))
    assert [tool["name"] for tool in page["_meta"][TOOLS]] == ["good", "good"]
    assert [each["name"] for each in page["_meta"][LEFT_OUT]] == ["odd"] * len(odd)


@pytest.mark.parametrize(
    "hostile",
    [
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":["' + b'\\"' * 1_500_000,
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":["\\ud800",' + b'"' * 3_000_001,
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":[' + b"[" * 3_000_000,
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":[NaN,' + b"1," * 100_000 + b"1]}}",
        b'{"id":' + b" " * 3_000_000,
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":[NaN' + b',{"name":' * 300_000,
    ],
)
def test_hostile_pages_are_read_or_refused_in_time(hostile: bytes) -> None:
    began = time.process_time()
    id_in(hostile)
    with suppress(UnreadableError):
        read(hostile, LIST_TOOLS)
    assert time.process_time() - began < 20, "what grows with the square takes minutes"


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{"content":[', 7),
        (b' { "id" : "a-1" , "result":', "a-1"),
        (b'{"result":{"id":5,"x":"' + b"x" * 9_000 + b'"},"jsonrpc":"2.0","id":9}', 9),
        (b'{"result":{"id":5,"x":"' + b"x" * 9_000 + b'"},"id":9,"jsonrpc":"2.0"}\r', 9),
        (b'{"result":{"id":5', None),
        (b"hello", None),
    ],
)
def test_the_id_of_an_answer_is_found_at_its_ends(raw: bytes, found: str | int | None) -> None:
    assert id_in(raw) == found
