"""What earlier code has written is still read, and says what it said: journals and messages that were recorded then.

`tests/recorded/record.py` has recorded them. When a record is not read any more, the code is wrong and not the record.
"""

from __future__ import annotations

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from triptych.client import JournalEntry
from triptych.commands.common.story import render_story
from triptych.executor import events as ev
from triptych.kernel.kafka.cloudevents import binary_headers, body, check_version, event_id, header
from triptych.operator.audit.run import Recorded, problems_of
from triptych.schemas import Playbook, codec, topics

FOLDER = Path(__file__).parents[1] / "recorded"
EVENTS, TOPICS = 34, 15
"""How many types of events and kinds of topics there were when the first were recorded."""
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for path in sorted(FOLDER.glob(f"*/{name}")) for line in path.read_bytes().splitlines()]


PLAYBOOKS = rows("playbooks.jsonl")
JOURNALS = [pytest.param(row, id=f"{row['origin']}-{number}") for number, row in enumerate(rows("journals.jsonl"), 1)]
MESSAGES = [pytest.param(row, id=f"{row['topic']}-{number}") for number, row in enumerate(rows("messages.jsonl"), 1)]
CATALOG = {topic.noun: topic for topic in topics.CATALOG}


@pytest.fixture(scope="module")
def lookup() -> ev.PlaybookLookup:
    return ev.PlaybookLookup(tuple(codec.read(Playbook, row["definition"], limits=codec.STORED) for row in PLAYBOOKS))


def columns(row: Row) -> Row:
    """A row as the database gives it."""
    return {name: column(name, value) for name, value in row.items()}


def column(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.endswith("_at"):
        return datetime.fromisoformat(value)
    return UUID(value) if name.endswith("run_id") else value


def journal(row: Row) -> list[Row]:
    return [
        {"seq": seq, "type": event_type, "at": datetime.fromisoformat(at), "data": data}
        for seq, (event_type, at, data) in enumerate(row["journal"], 1)
    ]


def as_jsonb(text: str | bytes) -> bytes:
    """A JSON text in the one form of its value, as a jsonb column has one."""
    return codec.encode(codec.decode(text, limits=codec.STORED), sort_keys=True, limits=codec.STORED)


# --- journals -------------------------------------------------------------------------------------


def test_every_type_of_event_was_recorded() -> None:
    assert len({event[0] for row in rows("journals.jsonl") for event in row["journal"]}) >= EVENTS


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row['name']}-{row['version']}") for row in PLAYBOOKS])
def test_a_playbook_has_the_version_still_that_journals_know_it_by(row: Row) -> None:
    read = codec.read(Playbook, row["definition"], limits=codec.STORED)
    assert (read.name, read.version) == (row["name"], row["version"])


@pytest.mark.parametrize("row", JOURNALS)
def test_a_journal_folds_to_the_run_and_the_steps_that_were_projected_from_it(
    row: Row, lookup: ev.PlaybookLookup
) -> None:
    steps = [columns(step) for step in row["steps"]]
    run = columns(row["run"]) | {"seq": len(row["journal"])}  # the rows were always those of the whole journal
    recorded = Recorded(run, journal(row), steps, column("due_at", row["timer"]))
    assert list(problems_of(recorded, lookup)) == []


@pytest.mark.parametrize("row", JOURNALS)
def test_an_event_is_written_as_it_was(row: Row, lookup: ev.PlaybookLookup) -> None:
    for event in journal(row):
        event_type, data = ev.encode(ev.decode(event["type"], event["data"], lookup))
        assert event_type == event["type"]
        assert as_jsonb(data) == as_jsonb(event["data"])


@pytest.mark.parametrize("row", JOURNALS)
def test_every_event_is_told_in_words(row: Row) -> None:
    entries = [
        JournalEntry(event["seq"], event["type"], event["at"], codec.decode(event["data"], limits=codec.STORED))
        for event in journal(row)
    ]
    lines = render_story(entries, width=None).lines
    assert [line.type for line in lines] == [entry.type for entry in entries]
    assert [line.type for line in lines if line.text.startswith(line.type)] == []


# --- messages -------------------------------------------------------------------------------------


def raw(encoded: str | None) -> bytes | None:
    return None if encoded is None else base64.b64decode(encoded)


def headers_of(row: Row) -> list[tuple[str, bytes | None]]:
    return [(name, raw(value)) for name, value in row["headers"]]


def noun_of(row: Row) -> str:
    """The noun of its topic; of a tool's topic that of all of them."""
    return str(row["topic"]).partition(".")[0]


def test_every_kind_of_message_was_recorded() -> None:
    assert len({noun_of(row) for row in rows("messages.jsonl")}) >= TOPICS


@pytest.mark.parametrize("row", MESSAGES)
def test_a_message_is_read_and_written_as_it_was(row: Row) -> None:
    value = raw(row["value"])
    message = codec.read(CATALOG[noun_of(row)].message, body(dict(headers_of(row)), value))
    assert json.loads(message.to_bytes()) == (row["read"] if "read" in row else json.loads(value or b""))


@pytest.mark.parametrize("row", [each for each in MESSAGES if "ce_id" in dict(each.values[0]["headers"])])
def test_the_headers_of_a_message_are_read_and_written_as_they_were(row: Row) -> None:
    headers = headers_of(row)
    check_version(dict(headers))
    event_type, source, tenant, traceparent = (
        (header(headers, name) or b"").decode() for name in ("ce_type", "ce_source", "ce_tenant", "traceparent")
    )
    assert event_type == CATALOG[noun_of(row)].event_type
    written = binary_headers(
        event_id=event_id(headers) or "", event_type=event_type, source=source, tenant=tenant, traceparent=traceparent
    )
    assert written == headers[: len(written)]
