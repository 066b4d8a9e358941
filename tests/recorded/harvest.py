"""Takes what a stack has written, as it is stored: journals with their projections, and the records of its topics.

As a pytest plugin (`-p harvest`) it takes the same from what tests leave behind: from the databases and topics of
integration tests before they are dropped, and from the stories that the tests of the state machine play.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import aiokafka
import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from triptych.executor import events as ev
from triptych.executor.store import run_row, step_row
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka.cloudevents import DATAREF, body
from triptych.kernel.postgres.database import Queries
from triptych.operator.audit.run import Recorded, problems_of
from triptych.schemas import Playbook, codec, topics

HARVEST = "TRIPTYCH_TEST_HARVEST"
"""The folder that the plugin writes to; a file for each module."""

MESSAGES = {topic.noun: topic.message for topic in topics.CATALOG}
Row = dict[str, Any]


def message_class(noun: str) -> type:
    """The class of what travels on a topic, for example on `calls.crm`."""
    return MESSAGES[noun.partition(".")[0]]


def plain(value: Any) -> Any:
    """A column as JSON says it."""
    match value:
        case UUID():
            return str(UUID(int=value.int))
        case datetime():
            return value.isoformat()
        case _:
            return value


def playbooks_of(definitions: Iterable[str]) -> ev.PlaybookLookup:
    """The playbooks that journals refer to."""
    return ev.PlaybookLookup(tuple(codec.read(Playbook, each, limits=codec.STORED) for each in definitions))


# --- a database and topics ------------------------------------------------------------------------


async def runs_of(dsn: str, origin: str) -> list[Row]:
    """Every run of a database that `triptych verify` finds nothing wrong with."""
    queries = Queries.load("triptych.operator.audit", "audit.sql")
    connection = await asyncpg.connect(dsn)
    try:
        if await connection.fetchval("select to_regclass('executor.runs')") is None:
            return []
        definitions = [row["definition"] for row in await connection.fetch(queries["playbooks"])]
        runs = await connection.fetch(queries["runs"], UUID(int=0), 100_000)
        run_ids = [run["run_id"] for run in runs]
        journal = await connection.fetch(queries["journal"], run_ids)
        steps = await connection.fetch(queries["steps"], run_ids)
        timers = dict(await connection.fetch(queries["timers"], run_ids))
    finally:
        await connection.close()
    lookup = playbooks_of(definitions)
    found = []
    for run in runs:
        events = [row for row in journal if row["run_id"] == run["run_id"]]
        recorded = Recorded(
            run, events, [row for row in steps if row["run_id"] == run["run_id"]], timers.get(run["run_id"])
        )
        if not list(problems_of(recorded, lookup)):
            found.append(as_row(recorded, definitions, origin))
    return found


def as_row(recorded: Recorded, definitions: Iterable[str], origin: str) -> Row:
    """One line of `journals.jsonl`, and the playbooks that it may refer to."""
    return {
        "origin": origin,
        "run": {name: plain(value) for name, value in recorded.run.items()},
        "steps": [{name: plain(value) for name, value in row.items() if name != "run_id"} for row in recorded.steps],
        "timer": plain(recorded.timer),
        "journal": [[row["type"], plain(row["at"]), row["data"]] for row in recorded.journal],
        "playbooks": sorted(_needed(recorded, definitions)),
    }


def _needed(recorded: Recorded, definitions: Iterable[str]) -> Iterator[str]:
    """The playbooks that a journal names: its own, and those that its run may hand over to."""
    admission = json.loads(recorded.journal[0]["data"])
    named = {(each["name"], each["version"]) for each in (admission["playbook"], *admission.get("others", ()))}
    for definition in definitions:
        playbook = codec.read(Playbook, definition, limits=codec.STORED)
        if (playbook.name, playbook.version) in named:
            yield definition


async def records_of(kafka: str, prefix: str, origin: str) -> list[Row]:
    """Every record of the topics of a prefix that holds the message of its topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name.startswith(f"{prefix}.")]
    finally:
        await admin.close()
    consumer = aiokafka.AIOKafkaConsumer(*names, bootstrap_servers=kafka, auto_offset_reset="earliest")
    await consumer.start()
    found = []
    try:
        ends = await consumer.end_offsets(sorted(consumer.assignment()))
        for place in sorted(place for place, end in ends.items() if end):
            while await consumer.position(place) < ends[place]:
                for records in (await consumer.getmany(place, timeout_ms=500)).values():
                    found += [record_row(record, prefix, origin) for record in records if is_readable(record, prefix)]
    finally:
        await consumer.stop()
    return found


def is_readable(record: Any, prefix: str) -> bool:
    """Whether it holds its message itself, and can be read."""
    headers = dict(record.headers)
    if DATAREF in headers:
        return False
    try:
        codec.read(message_class(record.topic.removeprefix(f"{prefix}.")), body(headers, record.value))
    except (UndecodableRecord, ValueError, KeyError):
        return False
    return True


def record_row(record: Any, prefix: str, origin: str) -> Row:
    """One line of `messages.jsonl`: the bytes as they were sent."""
    return {
        "origin": origin,
        "topic": record.topic.removeprefix(f"{prefix}."),
        "key": encoded(record.key),
        "headers": [[name, encoded(value)] for name, value in record.headers],
        "value": encoded(record.value),
    }


def body_of(headers: list[list[Any]], value: str | None) -> bytes:
    """The JSON of a record, from its row."""
    return body({name: decoded(content) for name, content in headers}, decoded(value))


def decoded(text: str | None) -> bytes | None:
    """Bytes that were in base64."""
    return None if text is None else base64.b64decode(text)


def encoded(raw: bytes | None) -> str | None:
    """Bytes in base64."""
    return None if raw is None else base64.b64encode(raw).decode()


# --- the plugin -----------------------------------------------------------------------------------

_stories: list[Any] = []
_TAKEN: dict[str, list[Row]] = {"runs": [], "messages": []}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """Look at a database and at topics right before they are dropped."""
    result = yield
    if fixturedef.argname not in {"database", "create_topics"}:
        return result
    origin = f"tests/{request.path.parent.name}/{request.path.name}"
    if fixturedef.argname == "database":
        fixturedef.addfinalizer(lambda: _take("runs", runs_of(result.owner_dsn, origin)))
    else:
        kafka, prefix = request.getfixturevalue("servers").kafka, request.getfixturevalue("prefix")
        fixturedef.addfinalizer(lambda: _take("messages", records_of(kafka, prefix, origin)))
    return result


def _take(kind: str, rows: Any) -> None:
    """Wait for rows outside of the event loop of the tests."""
    with ThreadPoolExecutor(1) as elsewhere:
        _TAKEN[kind] += elsewhere.submit(asyncio.run, rows).result()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep every story that is played against the state machine."""
    if any(item.path.name.startswith("test_machine") for item in session.items):
        from machine_story import Story  # noqa: PLC0415 - on the path once a test of it was collected

        begin = Story.__init__

        def kept(story: Any, *arguments: Any, **named: Any) -> None:
            begin(story, *arguments, **named)
            _stories.append(story)

        Story.__init__ = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Write down the last story of a test: its events in the journal's own encoding, and what the store would write."""
    yield
    if _stories:
        row = _story_row(_stories[-1], f"tests/unit/{item.path.name}")
        _TAKEN["runs"] += [] if row is None else [row]
        _stories.clear()


def _story_row(story: Any, origin: str) -> Row | None:
    run = story.run
    columns = ["run_id", "tenant", "task_id", "principal", "playbook", "playbook_version", "partition", "status"]
    columns += ["reason_code", "reason_message", "revision", "steps_used", "tool_calls", "tokens", "usd_micros"]
    columns += ["replans", "started_at", "updated_at", "finished_at", "parent_run_id"]
    step_columns = [
        "run_id",
        "step_id",
        "revision",
        "operation",
        "status",
        "attempts",
        "error_code",
        "started_at",
        "finished_at",
    ]
    branches = [name for name, state in run.branches.items() if state.started_at is not None]
    journal = []
    for seq, (event, at) in enumerate(story.journal, start=1):
        event_type, data = ev.encode(event)
        journal.append({"seq": seq, "type": event_type, "at": at, "data": data})
    recorded = Recorded(
        dict(zip(columns, run_row(run), strict=True)),
        journal,
        [dict(zip(step_columns, step_row(run, name), strict=True)) for name in sorted([*run.steps, *branches])],
        run.wake_at(),
    )
    definitions = [codec.for_jsonb(each.to_bytes()).decode() for each in (run.playbook, *run.others)]
    return None if list(problems_of(recorded, playbooks_of(definitions))) else as_row(recorded, definitions, origin)


def pytest_sessionfinish() -> None:
    """Write what was taken for who has started the tests."""
    Path(os.environ[HARVEST]).write_text(json.dumps(_TAKEN))
