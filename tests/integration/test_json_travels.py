"""What JSON can say travels from the task to an upstream and back; what it cannot is named, and no write is made twice."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from ends import Ends, open_ends
from executor_harness import MIGRATIONS, ExecutorHarness

import triptych.tools
from triptych.client.operator import Operator
from triptych.commands.common.output import print_json
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import CallAnswer, CallRequest, ErrorCode, codec, topics
from triptych.tools import Source, Tool
from triptych.tools.adapters.http_call import tool as http_tool
from triptych.tools.runtime.process import serve
from triptych.tools.testing import call, request_for

PLAYBOOK = """
name: travel
goal: Send a value, and give back what came.
input: {type: object}
tools: [echo.echo]
plan:
  pattern: fixed
  steps:
    - {id: say, operation: echo.echo, arguments: {value: "${{ input.value }}"}}
output: {value: "${{ steps.say.data.value }}", told: "${{ input.id }}: ${{ steps.say.data.value }}"}
"""

DEEPEST = codec.MAX_DEPTH - 2
"""Two levels are around it where a declared call puts it into its body."""

VALUES = [
    "18446744073709551616",
    "-9223372036854775809",
    "12345678901234567890123",
    "9" * codec.MAX_DIGITS,
    "0.1",
    "0.30000000000000004",
    "12345678901.234567",
    "1e22",
    "1.7976931348623157e308",
    "5e-324",
    "9007199254740992.0",
    '"\U0001f926\U0001f3fd‍♂️ \u00e9 \u2028 e+ \\" \\\\"',
    '"\\ud83d\\ude00"',
    '{"": [], "a.b": {"$ref": "x"}, "\\u00e9": null}',
    "[" * DEEPEST + "]" * DEEPEST,
    '{"a":' * (DEEPEST - 1) + "1e22" + "}" * (DEEPEST - 1),
]


def canonical(value: Any) -> str:
    """The same for equal values of equal types, in whatever order their names are."""
    return json.dumps(value, sort_keys=True)


@dataclass
class Upstream:
    """An HTTP server that keeps what it was sent, byte by byte, and answers with it or with what it is told."""

    url: str = ""
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    answer: bytes | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
        self.requests.append((head.split(b" ")[1].decode(), body))
        said = body if self.answer is None else self.answer
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(said), said)
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


def shop(url: str, effect: str = "once") -> Tool:
    """A tool that sends its argument as a body, in a path, a query and a header."""
    operations = {
        "put": {
            "description": "Puts.",
            "method": "POST",
            "path": "/put",
            "body": {"value": "${{ arguments.value }}"},
            "arguments": {"value": {}},
            "effect": effect,
        },
        "find": {
            "description": "Finds.",
            "path": "/find/{id}",
            "query": {"q": "${{ arguments.id }}"},
            "arguments": {"id": {"type": "number"}},
            "effect": "read",
        },
    }
    return http_tool(Source("shop", {"base_url": url, "operations": operations}, Path()))


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("travel")
    (folder / "travel.yaml").write_text(PLAYBOOK)
    await create_topics(*(topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS), "calls.echo")
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with ExecutorHarness(servers.kafka, prefix, dsn, folder, folder / "log") as harness:
        harness.start()
        yield harness
    sys.stdout.write(harness.log.read_text()[-4000:])


async def test_a_value_travels_unchanged_to_the_upstream_and_back_and_through_the_journal(
    harness: ExecutorHarness, upstream: Upstream, eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, text in enumerate(VALUES):
        task = b'{"task_id":"v-%d","playbook":"travel","input":{"id":%d,"value":%s}}' % (number, number, text.encode())
        await harness.send(topics.TASKS, task)

    async def all_called() -> bool:
        await harness.answer_plans()
        return len(harness.of("calls.echo")) == len(VALUES)

    await eventually(all_called)
    harness.kill()  # what follows is made from the journal
    harness.start()
    calls = [codec.read(CallRequest, call["_raw"]) for call in harness.seen.pop("calls.echo")]
    for asked in calls:
        result = await call(shop(upstream.url), "put", asked.arguments)
        assert result.error is None, result.error
        answer = CallAnswer(request_id=asked.request_id, run_id=asked.run_id, tenant=asked.tenant, result=result)
        await harness.send(topics.RESULTS, answer.to_bytes(), asked.partition)
    await eventually(lambda: len(harness.of(topics.OUTCOMES, final=True)) == len(VALUES))
    sent = {canonical(json.loads(body)["value"]) for _, body in upstream.requests}
    for number, text in enumerate(VALUES):
        (outcome,) = harness.of(topics.OUTCOMES, task_id=f"v-{number}")
        value = json.loads(text)
        assert outcome["status"] == "succeeded", outcome["reason"]
        assert canonical(value) in sent, text[:100]
        assert canonical(outcome["output"]["value"]) == canonical(value), text[:100]
        async with Operator.connect(harness.dsn) as operator:
            journal = await operator.journal(UUID(outcome["run_id"]))
        print_json([asdict(entry) for entry in journal])
        shown = json.loads(capsys.readouterr().out)
        assert canonical(shown[0]["data"]["input"]["value"]) == canonical(value), text[:100]


@pytest.mark.parametrize(
    ("number", "written"),
    [
        ("12345678901234567890123", "12345678901234567890123"),
        ("1e22", "10000000000000000000000"),
        ("1e-7", "0.0000001"),
        ("-2.50", "-2.5"),
        ("9" * 300, "9" * 300),
    ],
)
async def test_a_number_stands_in_full_in_an_address(upstream: Upstream, number: str, written: str) -> None:
    upstream.answer = b"{}"
    assert (await call(shop(upstream.url), "find", {"id": codec.decode(number)})).error is None
    assert upstream.requests[0][0] == f"/find/{written}?q={written}"


UNREADABLE = [
    (b'{"n": NaN}', "NaN is not a JSON number (at /n)"),
    (b'{"n": [1e400]}', "a number is too large for a double (at /n/0)"),
    (b'{"n": ' + b"7" * 5_000 + b"}", "a number has more than 1,000 digits (at /n)"),
    (rb'{"n": "\ud83d"}', "the text holds half of a surrogate pair"),
    (b'{"n": 1, "n": 2}', "the name n stands twice"),
    (b"[" * 210 + b"]" * 210, "nested deeper than 100 levels (at byte 100)"),
    (b"[" * 100_000, "nested deeper than 100 levels (at byte 100)"),
]


@pytest.mark.parametrize(("answer", "told"), UNREADABLE)
async def test_an_answer_that_json_cannot_carry_on_is_a_contract_violation_with_its_place(
    upstream: Upstream, answer: bytes, told: str
) -> None:
    upstream.answer = answer
    for operation, arguments in (("find", {"id": 1}), ("put", {"value": 1})):
        error = (await call(shop(upstream.url), operation, arguments)).error
        assert error is not None
        assert error.code is ErrorCode.CONTRACT_VIOLATION
        assert told in error.message
    assert error.details["effect"] == "done", "the upstream has done the write"


async def test_an_answer_with_a_byte_order_mark_is_read(upstream: Upstream) -> None:
    upstream.answer = b'\xef\xbb\xbf{"ok": true}'
    assert (await call(shop(upstream.url), "find", {"id": 1})).data == {"ok": True}


@pytest.fixture
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.shop", "results", "dead-letters")
    await create_topics("contracts", "tool-controls", partitions=1)
    folder = Path(triptych.tools.__file__).with_name("migrations")
    dsn = database.prepare({"tool_shop": (WORKER, folder / "tool")}).services["tool_shop"]
    settings = ServiceSettings(kafka=servers.kafka, postgres=dsn, topic_prefix=prefix, shutdown_timeout_ms=4_000)
    async with await connect(dsn, "test") as pool, open_ends(settings, pool, "dead-letters") as ends:
        yield ends


@asynccontextmanager
async def running(ends: Ends, tool: Tool) -> AsyncIterator[None]:
    service = Service("tool-shop", configure_logging("warning", "console"), Health("shop", "one"), asyncio.Event())
    task = asyncio.create_task(serve(service, ends.settings.model_copy(update={"instance": "one"}), tool, None))
    try:
        yield
    finally:
        service.stopping.set()
        await task


@pytest.mark.parametrize(("effect", "requests"), [("once", 1), ("idempotent", 2)])
async def test_a_write_whose_answer_cannot_be_read_is_done_and_of_class_once_never_made_again(
    ends: Ends, upstream: Upstream, effect: str, requests: int
) -> None:
    upstream.answer = b'{"paid": NaN}'
    tool = shop(upstream.url, effect)
    first = request_for(tool, "put", {"value": 12345678901234567890123})
    second = first.model_copy(update={"request_id": f"{first.request_id}+", "attempt": 2})
    async with running(ends, tool):
        for one in (first, second):
            await ends.ask(one)
            error: Any = (await ends.answer_to(one)).result.error
            assert error.code is ErrorCode.CONTRACT_VIOLATION
            assert "NaN is not a JSON number (at /paid)" in error.message
            assert (error.details.get("effect") == "done") is (effect == "once")
    assert [body for _, body in upstream.requests] == [b'{"value":12345678901234567890123}'] * requests


async def test_a_call_that_json_cannot_carry_is_a_dead_letter_with_its_place_and_nothing_is_sent(
    ends: Ends, upstream: Upstream, eventually
) -> None:
    tool = shop(upstream.url)
    raw = request_for(tool, "put", {"value": 1}).to_bytes().replace(b'{"value":1}', b'{"value":1e400}')
    good = request_for(tool, "put", {"value": 2})

    def letters() -> list[Any]:
        found = [json.loads(record.value) for record in ends.others]
        return [letter for letter in found if letter["topic"].endswith(".calls.shop")]

    async with running(ends, tool):
        await ends.producer.send_and_wait(ends.settings.topic("calls.shop"), raw, partition=0)
        await eventually(letters)
        await ends.ask(good)
        await ends.answer_to(good)
    (letter,) = letters()
    assert letter["reason"] == {
        "code": "invalid_json",
        "message": "a number is too large for a double (at /arguments/value)",
    }
    assert [body for _, body in upstream.requests] == [b'{"value":2}']
