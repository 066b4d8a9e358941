"""The CRM and the calendar of the demo are what the files beside triptych.toml say of them."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from triptych.examples.calendar.slots import next_slot
from triptych.examples.crm.document import document
from triptych.schemas import Result, ResultStatus
from triptych.tools import Source, Tool
from triptych.tools.adapters.mcp import tool as mcp_tool
from triptych.tools.adapters.mcp.listing import ask
from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.adapters.openapi import tool as openapi_tool
from triptych.tools.conformance import Example, Subject, check
from triptych.tools.testing import call

DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.fixture
def crm(crm_server: str, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setenv("CRM_KEY", "demo-key")
    auth = {"kind": "api_key", "name": "X-Api-Key", "key_env": "CRM_KEY"}
    empty = {"find_customers": {"empty_at": "customers"}}
    options = {"spec": "tools/crm.openapi.json", "base_url": crm_server, "auth": auth, "operations": empty}
    return openapi_tool(Source("crm", options, DEMO))


def test_the_stored_document_is_the_one_that_the_crm_serves(crm_server: str) -> None:
    stored = json.loads((DEMO / "tools/crm.openapi.json").read_text())
    assert stored == document() == httpx.get(f"{crm_server}/openapi.json").json()


async def test_the_pins_of_the_calendar_are_what_it_offers(calendar_server: str) -> None:
    source = Source("calendar", {"pins": "tools/calendar.mcp.json", "url": f"{calendar_server}/mcp"}, DEMO)
    assert (await ask(source, source.read(McpOptions))).text() == (DEMO / "tools/calendar.mcp.json").read_text()


async def test_the_calendar_is_found_where_a_variable_says(
    calendar_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALENDAR_URL", f"{calendar_server}/mcp")
    calendar = mcp_tool(Source("calendar", {"pins": "tools/calendar.mcp.json", "url_env": "CALENDAR_URL"}, DEMO))
    found = await call(calendar, "find_slot", {"timezone": "Asia/Kolkata"})
    assert datetime.fromisoformat(found.data["starts_at"]).utcoffset().total_seconds() == 5.5 * 3600
    unknown = await call(calendar, "find_slot", {"timezone": "Mars/Olympus"})
    assert unknown.status is ResultStatus.ERROR


async def test_a_note_is_taken_once_for_its_key(crm: Tool) -> None:
    arguments = {"customer_id": "C-1001", "body": {"text": "Call back.", "call_at": "2026-11-27T10:00:00+02:00"}}
    first = await call(crm, "create_note", arguments, idempotency_key="note-1")
    assert await call(crm, "create_note", arguments, idempotency_key="note-1") == first
    other = {**arguments, "body": {"text": "Something else."}}
    conflict = (await call(crm, "create_note", other, idempotency_key="note-1")).error
    assert conflict is not None
    assert conflict.code == "conflict"
    notes = await call(crm, "list_notes", {"customer_id": "C-1001"})
    assert [note["id"] for note in notes.data["notes"]] == [first.data["id"]]


async def test_a_note_is_written_once_whatever_happens_to_the_process_that_writes_it(
    crm_server: str, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_KEY", "demo-key")
    monkeypatch.setenv("CRM_URL", crm_server)
    options = tomllib.loads((DEMO / "triptych.toml").read_text())["tools"]["crm"]["options"]
    subject = Subject("triptych.tools.adapters.openapi:tool", source=Source("crm", options, DEMO))
    arguments = {"customer_id": "C-1005", "body": {"text": "Once."}}
    report = await check(subject, Example("create_note", arguments), postgres=servers.owner_dsn)
    assert report.passed, str(report)
    async with httpx.AsyncClient(headers={"X-Api-Key": "demo-key"}) as client:
        notes = (await client.get(f"{crm_server}/customers/C-1005/notes")).json()["notes"]
    assert len(notes) == len(report.findings)


async def test_customers_are_found_by_address_and_plan(crm: Tool) -> None:
    scale = await call(crm, "find_customers", {"plan": ["scale", "enterprise"]})
    assert scale.data["total"] == 4
    assert await call(crm, "find_customers", {"email": "nobody@elsewhere.example"}) == Result.empty()
    assert await call(crm, "get_customer", {"customer_id": "C-9"}) == Result.empty()
    moved = await call(crm, "set_account_manager", {"customer_id": "C-1002", "body": {"name": "Ida"}})
    assert moved.data["account_manager"] == "Ida"


@pytest.mark.parametrize(
    ("now", "timezone", "slot"),
    [
        ("2026-11-25T08:10", "Europe/Vienna", "2026-11-25T11:30:00+01:00"),
        ("2026-11-25T15:00", "Europe/Vienna", "2026-11-26T09:00:00+01:00"),
        ("2026-11-27T20:00", "America/New_York", "2026-11-30T09:00:00-05:00"),
        ("2026-11-25T08:00", "Asia/Kolkata", "2026-11-25T15:30:00+05:30"),
    ],
)
def test_a_call_is_within_office_hours_of_a_working_day(now: str, timezone: str, slot: str) -> None:
    assert next_slot(datetime.fromisoformat(now).replace(tzinfo=UTC), timezone).isoformat() == slot
