"""Everything an upstream can do wrong, through the whole pipeline: executor, planner, tool and HTTP are real.

All runs go on side by side and each call is delivered twice by Kafka; then each row of docs/reference/faults.md is looked at.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiokafka
import asyncpg
import httpx
import pytest
import upstream
from test_tools import TOKEN, server
from typer.testing import CliRunner

import triptych.executor
import triptych.planner
import triptych.tools
from triptych.client import Client
from triptych.commands.main import app
from triptych.examples.helpdesk.tool import HelpdeskSettings
from triptych.executor.__main__ import serve as serve_executor
from triptych.executor.settings import ExecutorSettings
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.models import ModelSettings
from triptych.planner.__main__ import serve as serve_planner
from triptych.schemas import Outcome, Task
from triptych.tools.runtime.process import serve as serve_tool

ATTEMPTS = 3
ALWAYS = 1_000
AGAIN = "x-again"
EXECUTOR = Path(triptych.executor.__file__).with_name("migrations")
PLANNER = Path(triptych.planner.__file__).with_name("migrations")
TOOL = Path(triptych.tools.__file__).with_name("migrations") / "tool"

WRITES = {"reply": "replies", "assign": "assignments", "stamp": "tags", "post": "acknowledgements"}


@dataclass(frozen=True)
class Row:
    """One kind of fault met by one operation, and what has to come of it."""

    fault: str
    """The first column of the table in docs/reference/faults.md."""
    operation: str
    faults: tuple[dict[str, Any], ...]
    ends: str
    """`succeeded`, or the reason code of the escalation."""
    effects: int = 0
    requests: int | None = None
    """How often the upstream saw the write, where that does not hang on who is faster."""
    told: str = ""
    """What the person who gets the escalation is told."""
    calls: int = ATTEMPTS
    """At most so many are made."""
    used: str | None = None
    """What stood in for the operation."""

    @property
    def playbook(self) -> str:
        """One that waits for an answer, or one that does not wait long."""
        return f"{self.operation}-hasty" if self.fault == "no answer in time" else self.operation


def status(code: int, times: int = 1, **more: Any) -> dict[str, Any]:
    return {"fault": "status", "status": code, "times": times, **more}


def page(code: int, times: int = 1) -> dict[str, Any]:
    return {"fault": "page", "status": code, "times": times}


def fault(kind: str, times: int = 1, **more: Any) -> dict[str, Any]:
    return {"fault": kind, "times": times, **more}


HASTY_MS = 3_000
LATE, SLOW = {"hang_ms": HASTY_MS * 2}, {"hang_ms": HASTY_MS // 3}

ROWS = (
    Row("400, 422", "reply", (status(400),), "invalid_arguments", 0, 1, "This server was told to fail"),
    Row("400, 422", "planned", (status(422),), "succeeded", 1, 2),
    Row("400, 422", "planned", (status(422, ALWAYS),), "loop", 0, 2),
    Row("401, 403", "reply", (status(401),), "identity", 0, 1),
    Row("401, 403", "post", (status(403),), "identity", 0, 1),
    Row("404", "lookup", (status(404),), "succeeded"),
    Row("404", "lookup", (page(404, ALWAYS),), "contract_violation"),
    Row("404", "reply", (status(404),), "not_found", 0, 1),
    Row("409", "reply", (status(409),), "conflict", 0, 1),
    Row("409", "reply", (fault("drop_after"), status(409)), "succeeded", 1, 2),
    Row("409", "assign", (fault("drop_after"), status(409)), "in_doubt", 1, 2),
    Row("429", "reply", (fault("429", retry_after_s=0.3),), "succeeded", 1, 2),
    Row("429", "post", (fault("429", retry_after_s=0.3),), "succeeded", 1, 2),
    Row("503", "reply", (fault("503", retry_after_s=0.3),), "succeeded", 1, 2),
    Row("503", "stamp", (fault("503"),), "succeeded", 1, 2),
    Row("503", "post", (fault("503"),), "in_doubt", 0, 1),
    Row("500 and other 5xx", "lookup", (status(500),), "succeeded"),
    Row("500 and other 5xx", "reply", (status(500), page(502)), "succeeded", 1, 3),
    Row("500 and other 5xx", "reply", (status(500, ALWAYS),), "tool_unavailable", 0, ATTEMPTS),
    Row("a redirect", "lookup", (status(302),), "succeeded"),
    Row("a redirect", "reply", (status(307),), "contract_violation", 0, 1, "307"),
    Row("a redirect", "post", (status(303),), "in_doubt", 0, 1, "303"),
    Row("408, 421, 425, 499", "lookup", (status(408),), "succeeded"),
    Row("408, 421, 425, 499", "reply", (status(425),), "succeeded", 1, 2),
    Row("408, 421, 425, 499", "post", (status(421),), "in_doubt", 0, 1),
    Row("any other status", "planned", (status(412),), "conflict", 0, 1),
    Row("any other status", "reply", (status(402),), "invalid_arguments", 0, 1),
    Row("any other status", "post", (status(451),), "in_doubt", 0, 1, "451"),
    Row("an error page", "reply", (page(500, ALWAYS),), "tool_unavailable", 0, ATTEMPTS, "it states no reason"),
    Row("slow", "reply", (fault("hang", **SLOW),), "succeeded", 1, 1),
    Row("no answer in time", "lookup", (fault("hang", **LATE),), "succeeded"),
    Row("no answer in time", "reply", (fault("hang", **LATE),), "succeeded", 1),
    Row("no answer in time", "stamp", (fault("stall", **LATE),), "succeeded", 1),
    Row("no answer in time", "post", (fault("stall", **LATE),), "in_doubt", 1),
    Row("half an answer", "lookup", (fault("half"),), "succeeded"),
    Row("half an answer", "reply", (fault("half"),), "succeeded", 1, 2),
    Row("half an answer", "stamp", (fault("half"),), "succeeded", 1, 1),
    Row("half an answer", "post", (fault("half"),), "in_doubt", 1, 1),
    Row("wrong content type", "lookup", (page(200),), "succeeded"),
    Row("wrong content type", "reply", (page(200),), "contract_violation", 0, 1, "text/html where JSON belongs"),
    Row("wrong shape", "lookup", (fault("shape"),), "succeeded"),
    Row("wrong shape", "lookup", (fault("shape", ALWAYS),), "contract_violation"),
    Row("wrong shape", "reply", (fault("shape"),), "contract_violation", 1, 1, "required property"),
    Row("200 with an error inside", "lookup", (fault("error_in_body"),), "succeeded"),
    Row("200 with an error inside", "reply", (fault("error_in_body"),), "succeeded", 1, 2),
    Row("200 with an error inside", "reply", (fault("error_in_body", ALWAYS),), "tool_failed", 0, ATTEMPTS, "rebuilt"),
    Row("cut before the work", "reply", (fault("drop_before"),), "succeeded", 1, 2),
    Row("cut before the work", "stamp", (fault("drop_before"),), "succeeded", 1, 2),
    Row("cut before the work", "post", (fault("drop_before"),), "in_doubt", 0, 1),
    Row("cut after the work", "reply", (fault("drop_after"),), "succeeded", 1, 2),
    Row("cut after the work", "stamp", (fault("drop_after"),), "succeeded", 1, 1),
    Row("cut after the work", "post", (fault("drop_after"),), "in_doubt", 1, 1),
    Row(
        "down for hours, with fallbacks",
        "lookup-other",
        (status(500, ALWAYS),),
        "succeeded",
        calls=4,
        used="helpdesk.peek",
    ),
    Row(
        "down for hours, with fallbacks",
        "lookup-cached",
        (fault("hang", hang_ms=0), status(500, ALWAYS)),
        "succeeded",
        calls=5,
        used="cached answer",
    ),
    Row(
        "down for hours, with fallbacks",
        "lookup-written",
        (status(500, ALWAYS),),
        "succeeded",
        calls=4,
        used="degraded result",
    ),
    Row("a contract that drifts", "aged", (), "contract_violation", told="triptych tools accept helpdesk"),
    Row("delivered twice", "reply", (), "succeeded", 1, 1),
    Row("delivered twice", "post", (), "succeeded", 1, 1),
)


@dataclass
class Story:
    """What became of all rows."""

    outcomes: dict[str, Outcome]
    """By task id, the final outcome or the escalation."""
    ledger: dict[str, Any]
    """What the helpdesk saw: every write that took effect, and how often each key came."""
    journals: dict[str, list[asyncpg.Record]] = field(default_factory=dict)
    delivered_again: int = 0
    operator: str = ""


def task_of(row: Row) -> str:
    return f"r{ROWS.index(row)}"


@pytest.fixture(scope="module")
async def story(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[Story]:
    await create_topics("tasks", "child-tasks", "plans", "results", "verdicts", "control", "plan-requests", "reviews")
    await create_topics("outcomes", "escalations", "dead-letters", "calls.helpdesk")
    await create_topics("contracts", partitions=1)
    folder = tmp_path_factory.mktemp("faults")
    for name in {row.playbook for row in ROWS} | {"wishful"}:
        (folder / f"{name}.yaml").write_text(json.dumps(playbook(name)))
    prepared = database.prepare(
        {"executor": (EXECUTOR,), "planner": (WORKER, PLANNER), "tool_helpdesk": (WORKER, TOOL)}
    )
    common = {"kafka": servers.kafka, "topic_prefix": prefix, "shutdown_timeout_ms": 4_000}

    async with AsyncExitStack() as stack:
        desk_url = await stack.enter_async_context(
            server("triptych.examples.helpdesk", "--data", str(folder / "desk.sqlite"), HELPDESK_TOKEN=TOKEN)
        )
        model_url = await stack.enter_async_context(server("triptych.examples.model_server"))
        desk = await stack.enter_async_context(
            httpx.AsyncClient(base_url=desk_url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
        )
        executor = ExecutorSettings(**common, postgres=prepared.services["executor"], playbooks=folder)
        planner = ServiceSettings(**common, postgres=prepared.services["planner"])
        tool = ServiceSettings(**common, postgres=prepared.services["tool_helpdesk"])
        models = ModelSettings(
            base_url=f"{model_url}/v1",
            api_key="scripted",
            strong="scripted-strong",
            cheap="scripted-cheap",
            prices={"scripted-strong": (3.0, 15.0), "scripted-cheap": (0.25, 1.25)},
        )
        own = HelpdeskSettings(url=desk_url, token=TOKEN)
        await stack.enter_async_context(running("executor", serve_executor, executor))
        await stack.enter_async_context(running("planner", partial(serve_planner, models=models), planner))
        tool_body = partial(serve_tool, tool=upstream.tool, own_settings=own)
        await stack.enter_async_context(running("tool-helpdesk", tool_body, tool))
        client = await stack.enter_async_context(Client(servers.kafka, prefix))
        twice = await stack.enter_async_context(delivered_twice(servers.kafka, f"{prefix}.calls.helpdesk"))

        await asyncio.gather(*(arm(desk, row) for row in ROWS))
        await client.submit_many(
            Task(
                playbook=row.playbook,
                task_id=task_of(row),
                input={"ticket_id": f"T-{task_of(row)}", "account": "Acme", "question": "Who owns this?"},
            )
            for row in ROWS
        )
        await client.submit("wishful", {"ticket_id": "T-none"}, task_id="wishful")
        outcomes = await first_outcomes(client, {*map(task_of, ROWS), "wishful"})
        ledger = (await desk.get("/ledger")).json()
        story = Story(outcomes, ledger, delivered_again=len(twice), operator=prepared.operator)
        connection = await asyncpg.connect(database.owner_dsn)
        for task_id, outcome in outcomes.items():
            story.journals[task_id] = await connection.fetch(
                "select type, data::text from executor.journal where run_id = $1 order by seq", outcome.run_id
            )
        await connection.close()
        yield story


VARIANTS: dict[str, dict[str, Any]] = {
    "hasty": {"timeout_ms": HASTY_MS},
    "other": {"fallback": [{"operation": "helpdesk.peek", "arguments": {"tag": "new"}}]},
    "cached": {"fallback": [{"cached_ms": 600_000}]},
    "written": {"fallback": [{"cached_ms": 600_000}, {"data": {"ticket_id": "unknown", "tags": []}}]},
}


def playbook(name: str) -> dict[str, Any]:
    fields = {
        "name": name,
        "goal": "Meet a fault.",
        "input": {"type": "object", "required": ["ticket_id"]},
        "retry": {"max_attempts": ATTEMPTS, "base_ms": 20, "cap_ms": 100},
        "budgets": {"replans": 3, "wall_ms": 600_000},
    }
    if name == "planned":
        return fields | {"tools": ["helpdesk.assign"], "plan": {"pattern": "model"}}
    arguments = {"ticket_id": "${{ input.ticket_id }}"}
    if name == "wishful":
        return fields | {
            "tools": ["helpdesk.*"],
            "plan": {"pattern": "fixed", "steps": [{"id": "do", "operation": "helpdesk.refund"}]},
        }
    operation, _, variant = name.partition("-")
    if operation == "assign":
        arguments |= {"team": "duty", "note": ""}
    step = {"id": "do", "operation": f"helpdesk.{operation}", "arguments": arguments}
    step |= VARIANTS.get(variant, {})
    first = {**step, "id": "first"}
    steps = [first, {**step, "depends_on": ["first"]}] if variant == "cached" else [step]
    output = {"status": "${{ steps.do.status }}", "data": "${{ steps.do.data }}"}
    return fields | {"tools": ["helpdesk.*"], "plan": {"pattern": "fixed", "steps": steps}, "output": output}


@asynccontextmanager
async def running(name: str, body: Any, settings: Any) -> AsyncIterator[None]:
    log = configure_logging("error", "console", instance=name)
    service = Service(name, log, Health(name, name), asyncio.Event())
    task = asyncio.create_task(body(service, settings.model_copy(update={"instance": f"{name}-1"})))
    try:
        yield
    finally:
        service.stopping.set()
        await task


@asynccontextmanager
async def delivered_twice(kafka: str, topic: str) -> AsyncIterator[list[str]]:
    """Every call goes out once more, as it would after a broker or the executor was cut off."""
    seen: list[str] = []

    async def repeat() -> None:
        async for record in consumer:
            if (AGAIN, b"1") not in record.headers:
                headers = [*record.headers, (AGAIN, b"1")]
                await producer.send(topic, record.value, key=record.key, partition=record.partition, headers=headers)
                seen.append(topic)

    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka)
    consumer = aiokafka.AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest")
    async with producer, consumer:
        repeating = asyncio.create_task(repeat())
        yield seen
        repeating.cancel()
        await asyncio.wait({repeating})


async def arm(desk: httpx.AsyncClient, row: Row) -> None:
    """The ticket of a read is there before; each fault waits for its ticket and operation."""
    ticket = f"T-{task_of(row)}"
    if row.operation.startswith("lookup"):
        headers = {"Idempotency-Key": f"seed-{ticket}"}
        (await desk.post(f"/tickets/{ticket}/tags", json={"tags": ["new"]}, headers=headers)).raise_for_status()
    where = {"planned": "assignments", **WRITES}.get(row.operation, "lookup")
    for each in row.faults:
        (await desk.post("/faults", json={**each, "ticket": ticket, "operation": where})).raise_for_status()


async def first_outcomes(client: Client, task_ids: set[str]) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    async with asyncio.timeout(400):
        async for outcome in client.follow(from_start=True):
            found.setdefault(outcome.task_id, outcome)
            if found.keys() >= task_ids:
                return found
    raise AssertionError("the topic of outcomes has no end")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.fault}-{row.operation}-{ROWS.index(row)}")
async def test_each_fault_of_an_upstream_ends_as_the_table_says(story: Story, row: Row) -> None:
    task_id = task_of(row)
    outcome, journal = story.outcomes[task_id], story.journals[task_id]
    ended = "succeeded" if outcome.status.value == "succeeded" else outcome.reason.code
    assert ended == row.ends, outcome.reason
    assert row.told in outcome.reason.message

    run_id = str(outcome.run_id)
    effects = [effect for effect in story.ledger["effects"] if effect["key"].startswith(run_id)]
    assert len(effects) == row.effects, "no write twice"
    requests = sum(times for key, times in story.ledger["requests"].items() if key.startswith(run_id))
    assert row.requests in {None, requests}

    calls = sum(event["type"] == "CallRequested" for event in journal)
    assert calls <= row.calls, "no loop"
    assert [use.used for use in outcome.fallbacks] == ([row.used] if row.used else [])
    answers = [json.loads(event["data"])["result"] for event in journal if event["type"] == "CallAnswered"]
    if row.used == "degraded result":
        assert {answer["status"] for answer in answers} == {"error"}
    elif row.ends == "succeeded":
        assert answers[-1]["status"] in {"ok", "empty"}, "no fabricated success"
    else:
        assert answers[-1]["status"] == "error"
    whole = "".join(event["data"] for event in journal) + outcome.reason.message
    for unwanted in ("<html", "Traceback", "hunter2", TOKEN):
        assert unwanted not in whole


async def test_what_is_not_there_is_empty_and_not_data(story: Story) -> None:
    row = next(row for row in ROWS if (row.fault, row.operation) == ("404", "lookup"))
    assert story.outcomes[task_of(row)].output == {"status": "empty", "data": None}


async def test_a_cached_answer_comes_with_its_age_and_what_is_written_in_the_plan_is_the_result(story: Story) -> None:
    spare = {row.used: story.outcomes[task_of(row)] for row in ROWS if row.used}
    (use,) = spare["cached answer"].fallbacks
    assert use.step == "do"
    assert use.age_ms is not None
    assert spare["cached answer"].output["data"]["tags"] == ["new"]
    assert spare["degraded result"].output["data"] == {"ticket_id": "unknown", "tags": []}
    assert spare["helpdesk.peek"].output["data"]["total"] > 0


async def test_what_a_plan_wanted_in_vain_is_listed_for_people(story: Story) -> None:
    assert story.outcomes["wishful"].reason.code == "plan_invalid"
    command = ["tools", "gaps", "--postgres", story.operator, "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 0, done
    listed = json.loads(done.output)
    (gap,) = listed
    assert (gap["capability"], gap["kind"], gap["count"]) == ("helpdesk.refund", "unknown", 1)
    assert gap["goal"] == "Meet a fault."


async def test_every_call_was_delivered_twice(story: Story) -> None:
    assert story.delivered_again >= len(ROWS)
