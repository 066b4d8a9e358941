"""What strangers write, made strange by chance: each reader takes it or refuses it by name, and changes nothing silently.

Each test begins with something valid, puts odd values into odd places, and allows the reader's own error and no other.
The codec, the batches of Kafka, expressions, mail and callbacks have such tests beside their own.
"""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiokafka import ConsumerRecord
from asyncpg.types import BitString, Range
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_story import NOW, RUN_ID, playbook
from pydantic import ValidationError
from test_cli_story import STORY

from triptych.client import JournalEntry
from triptych.commands.common.story import render_story
from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor
from triptych.kernel.decider import InboundRecord
from triptych.kernel.errors import ConfigurationError, UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.playbook.loader import PlaybookErrors, parse_playbook
from triptych.schemas import CallRequest, PlanRequest, ReviewRequest, ToolContracts, codec, topics
from triptych.tools.adapters.kb.reading import _read
from triptych.tools.adapters.mcp.contracts import mcp_operations
from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.adapters.mcp.pins import PinnedTool
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.import_report import import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.sql.values import from_postgres

ROOT = Path(__file__).parents[2]

ODD_TEXTS = st.sampled_from(
    ["", "\0", "\ud800", "\x1b[2J", "é" * 300, "\u202e", "a/../b", "${{ x }}", "https://elsewhere.example/", "=?utf-8?q?x?=", "😀"]
)  # fmt: skip
ODD_NUMBERS = st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, -(10**30), 0.1, 1e308, -0.0])
ODD = (
    st.none() | st.booleans() | ODD_NUMBERS | ODD_TEXTS | st.text(max_size=20)
    | st.sampled_from([[], {}, [[[]]], {"": ""}, {"$ref": "#"}, {"$ref": "http://127.0.0.1:9/x"}, {"type": "object"}, ["a"] * 50])
)  # fmt: skip
CHANGES = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["put", "drop", "rename", "nest"]), ODD), max_size=4
)
"""Which place, what happens there, and the odd value for it."""

many = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def changed(value: Any, changes: list[tuple[int, str, Any]]) -> Any:
    """A copy of a value with changes at places that their numbers choose."""
    value = copy.deepcopy(value)
    for number, what, odd in changes:
        places = list(_places(value))
        if not places:
            break
        holder, key = places[number % len(places)]
        if what == "drop":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict) and isinstance(odd, str):
            holder[odd] = holder.pop(key)
        elif what == "nest":
            holder[key] = [holder[key]] * 2
        else:
            holder[key] = copy.deepcopy(odd)
    return value


def _places(value: Any) -> Any:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def written(value: Any) -> bytes:
    """As any JSON library writes it, lone surrogates among it."""
    return json.dumps(value, ensure_ascii=True).encode()


TASK = {
    "task_id": "t-1",
    "playbook": "test",
    "tenant": "acme",
    "principal": "user:ana",
    "input": {"order": 7, "note": "x"},
}
SPEND = {"tokens": 1, "usd_micros": 2}
RESULT = {"status": "ok", "data": {"a": [1, 2]}, "error": None}
ANSWER = {"request_id": f"{RUN_ID}:a:1", "run_id": str(RUN_ID), "tenant": "acme", "worker": "echo-1", "spend": SPEND}
MESSAGES = {
    topics.TASKS: TASK,
    topics.RESULTS: {**ANSWER, "step": "a", "result": RESULT},
    topics.PLANS: {**ANSWER, "plan": {"revision": 1, "steps": [{"id": "a", "operation": "echo.echo"}]}},
    topics.VERDICTS: {**ANSWER, "step": "a", "decision": "continue", "confidence": 0.5, "evidence": ["e"]},
    topics.CONTROL: {"command_id": "c-1", "run_id": str(RUN_ID), "action": "cancel", "by": "user:ben", "note": "x"},
}


@pytest.mark.parametrize("noun", MESSAGES)
@given(CHANGES)
@many
def test_a_message_to_the_executor_is_read_or_becomes_a_dead_letter(noun: str, changes: Any) -> None:
    body = written(changed(MESSAGES[noun], changes))
    record = ConsumerRecord(f"triptych.{noun}", 0, 7, 1_000, 0, None, body, None, -1, len(body), ())
    with suppress(UndecodableRecord):
        read = Executor({"test": Deployment.of(playbook())}).read(
            InboundRecord(noun, record, cloudevents.body({}, body), NOW)
        )
        if noun == topics.TASKS:
            said = json.loads(body.replace(b"\\u0000", b"\\ufffd")).get("input", {})
            assert read.content.task.input == said
            assert codec.decode(read.content.task.to_bytes())["input"] == said


@pytest.mark.parametrize("model", [CallRequest, PlanRequest, ReviewRequest, ToolContracts])
@given(CHANGES)
@many
def test_a_message_to_a_worker_is_read_or_refused(model: Any, changes: Any) -> None:
    contract = {"name": "echo.echo", "version": "1", "arguments": {"type": "object"}, "result": {}, "effect": "read", "timeout_ms": 1}  # fmt: skip
    common = {**ANSWER, "idempotency_key": "k", "operation": "echo.echo", "arguments": {}, "contracts": [contract], "tool": "echo"}  # fmt: skip
    with suppress(ValidationError, codec.InvalidJson):
        codec.read(model, written(changed(common, changes)))


BOOKS = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "examples/demo/playbooks").glob("*.yaml"))}
SNIPPETS = st.sampled_from(
    ["\0", "\ud800", "12345678901234567890123", ".inf", ".nan", "&a [*a]", "<<: *x", "!!python/object:os.system", "\t", "- ", "? ", "%YAML 9", "'", '"', "{", "[" * 40, "${{", "}}", "1e999", "\ufeff", "---\n", "0o9", "=", "~"]
)  # fmt: skip


@pytest.mark.parametrize("name", BOOKS)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 30), SNIPPETS), max_size=3))
@settings(parent=many, max_examples=40)
def test_a_playbook_is_read_or_its_mistakes_are_found(name: str, cuts: list[tuple[int, int, str]]) -> None:
    text = BOOKS[name]
    for place, length, snippet in cuts:
        at = place % (len(text) + 1)
        text = text[:at] + snippet + text[at + length :]
    try:
        parse_playbook(text, Path(name))
    except PlaybookErrors as error:
        found = error.problems
    else:
        found = []
    assert all(str(problem).strip() for problem in found)


API = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "servers": [{"url": "https://shop.example/{base}", "variables": {"base": {"default": "v1"}}}],
    "components": {
        "schemas": {
            "Pet": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "of": {"$ref": "#/components/schemas/Pet"}}}
        },
        "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-Key"}},
    },
    "paths": {
        "/pets/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            "get": {
                "operationId": "getPet",
                "parameters": [{"name": "q", "in": "query", "style": "deepObject", "explode": True, "schema": {"type": "object", "additionalProperties": {"type": "string"}}}],
                "responses": {"200": {"description": "x", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}}},
            },
            "put": {
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}},
                "responses": {"204": {"description": "done"}},
                "security": [{"key": []}],
            },
        }
    },
}  # fmt: skip


@given(CHANGES)
@many
def test_an_openapi_document_is_surveyed_or_refused(changes: Any) -> None:
    with suppress(ConfigurationError):
        found = import_document(
            OpenApiDocument.parse(written(changed(API, changes)), "shop.json"), "shop", OpenApiOptions(spec="shop.json")
        )
        assert all(left.why.strip() for left in found.skipped)
        names = [each.endpoint.contract.operation for each in found.imported]
        assert len(names) == len(set(names))


LISTED = {
    "name": "find",
    "title": "Find",
    "description": "Finds.",
    "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    "outputSchema": {"type": "object", "properties": {"hits": {"type": "array", "items": {"$ref": "#/$defs/hit"}}}, "$defs": {"hit": {}}},
    "annotations": {"readOnlyHint": True},
}  # fmt: skip


@given(CHANGES, CHANGES)
@many
def test_a_tool_of_an_mcp_server_is_offered_or_left_out_with_its_reason(one: Any, other: Any) -> None:
    pinned = []
    for changes in ([], one, other):
        with suppress(ValidationError, codec.InvalidJson):
            pinned.append(codec.read(PinnedTool, written(changed(LISTED, changes)), limits=codec.DOCUMENT))
    offered, left_out = mcp_operations("shop", pinned, McpOptions(pins="x.json", url="http://127.0.0.1:9/mcp"))
    assert len(offered) + len(left_out) == len(pinned)
    assert all(each.why.strip() for each in left_out)
    assert len({each.contract.operation for each in offered}) == len(offered)


ROW_VALUES = (
    st.integers() | st.text(max_size=10) | st.binary(max_size=10) | st.booleans() | st.none() | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False) | st.floats(allow_nan=False, allow_infinity=False)
    | st.datetimes(timezones=st.just(UTC)) | st.dates() | st.times() | st.timedeltas() | st.ip_addresses()
)  # fmt: skip


@given(
    st.recursive(
        ROW_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )
)
@many
def test_a_value_of_a_row_is_json(value: Any) -> None:
    with suppress(codec.InvalidJson):  # a lone surrogate, which Postgres does not store
        codec.encode(from_postgres(value))


def test_the_values_of_rows_that_people_know_are_told_as_they_know_them() -> None:
    told = {
        Decimal("12.50"): "12.50",
        Decimal("1E+4"): "10000",
        Decimal("Infinity"): "Infinity",
        float("-inf"): "-Infinity",
        b"x": "x",
        BitString("10101"): "10101",
        Range(1, 5): {"lower": 1, "upper": 5, "bounds": "[)"},
        UUID(int=1): "00000000-0000-0000-0000-000000000001",
        date(2026, 1, 2): "2026-01-02",
        time(3, 4): "03:04:00",
        datetime(2026, 1, 2, 3, 4, tzinfo=UTC): "2026-01-02T03:04:00Z",
        timedelta(seconds=90): "PT1M30S",
        ip_address("::1"): "::1",
        2**70: 2**70,
    }
    assert {value: from_postgres(value) for value in told} == told


@given(st.integers(0, len(STORY) - 1), CHANGES, st.integers(1, 200))
@many
def test_the_story_of_a_run_is_told_whatever_strangers_have_said_in_it(which: int, changes: Any, width: int) -> None:
    # A journal is UTF-8, so that no lone surrogate ever stands in it.
    strings = [(number, "put", odd) for number, _, odd in changes if isinstance(odd, str) and odd != "\ud800"]
    entries = list(STORY)
    entry = entries[which]
    entries[which] = JournalEntry(entry.seq, entry.type, entry.at, _with_texts(entry.data, strings))
    assert [line.seq for line in render_story(entries, width).lines] == [entry.seq for entry in STORY]


def _with_texts(data: Any, changes: list[tuple[int, str, str]]) -> Any:
    """The data of an event in which some texts are other texts: its form is ours, its texts are not."""
    data = copy.deepcopy(data)
    for number, _, odd in changes:
        places = [(holder, key) for holder, key in _places(data) if isinstance(holder[key], str) and key != "due_at"]
        if places:
            holder, key = places[number % len(places)]
            holder[key] = odd
    return data


PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>> endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>> endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>> endobj
4 0 obj<</Length 32>>
stream
BT /F1 1 Tf (Hello, there) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>> endobj
trailer<</Size 6/Root 1 0 R>>
%%EOF"""
TOKENS = st.sampled_from(
    [b"null", b"0", b"-1", b"<<>>", b"[]", b"()", b"/X", b"9 0 R", b"true", b"<FEFFD835>", b"\xff\0"]
)


@given(st.lists(st.tuples(st.integers(0, len(PDF)), st.integers(0, 12), TOKENS), min_size=1, max_size=3))
@settings(parent=many, max_examples=100, suppress_health_check=[*HealthCheck])
def test_the_text_of_a_pdf_can_be_stored_whatever_it_holds(tmp_path: Path, cuts: list[tuple[int, int, bytes]]) -> None:
    raw = PDF
    for place, length, token in cuts:
        raw = raw[:place] + token + raw[place + length :]
    file = tmp_path / "a.pdf"
    file.write_bytes(raw)
    try:
        document = _read(file, "a.pdf")
    except Exception:  # noqa: BLE001 - the child that reads it tells this with the name of the file
        return
    assert "\0" not in document.body + document.title
    (document.body + document.title).encode()
