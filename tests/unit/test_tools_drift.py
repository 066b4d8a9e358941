"""What a tool's source offers now, held against what was accepted: taken over, refused, or left out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from click.testing import Result
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.schemas import ErrorCode
from triptych.tools import Source, Tool
from triptych.tools.adapters.openapi import tool as openapi
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.runtime.drift import DriftWatch
from triptych.tools.sdk.contract_origin import ContractOrigin
from triptych.tools.testing import call

TOML = """
[tools.crm]
adapter = "triptych.tools.adapters.openapi:tool"
options = { spec = "crm.json", source = "upstream.json" }
"""


def document(**customer: Any) -> dict[str, Any]:
    """An API with a customer, whose properties are given, and a list of plans."""

    def answers(schema: dict[str, Any]) -> dict[str, Any]:
        return {"200": {"description": "ok", "content": {"application/json": {"schema": schema}}}}

    identified = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    described = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, **customer}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "CRM", "version": "1"},
        "servers": [{"url": "http://127.0.0.1:9"}],
        "paths": {
            "/customers/{id}": {
                "get": {"operationId": "get_customer", "parameters": identified, "responses": answers(described)}
            },
            "/plans": {"get": {"operationId": "list_plans", "responses": answers({"type": "object"})}},
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "triptych.toml").write_text(TOML)
    (tmp_path / "crm.json").write_text(json.dumps(document()))
    return tmp_path


@pytest.fixture
def upstream(folder: Path) -> Callable[[dict[str, Any]], None]:
    def says(content: dict[str, Any]) -> None:
        (folder / "upstream.json").write_text(json.dumps(content))

    return says


@pytest.fixture
def crm(folder: Path) -> Tool:
    return openapi(Source("crm", {"spec": "crm.json", "source": "upstream.json"}, folder))


async def at_a_terminal(command: list[str]) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, command)


def watch(tool: Tool) -> DriftWatch:
    return DriftWatch(tool, 0, Alerts(structlog.get_logger()), structlog.get_logger())


async def test_a_compatible_change_is_taken_over_and_announced_and_old_plans_still_fit(crm, upstream):
    planned = crm.operations["crm.get_customer"].contract_hash
    upstream(document(tier={"type": "string"}))
    await watch(crm).compare_now()
    now = crm.operations["crm.get_customer"]
    assert "tier" in now.contract.result["properties"]
    assert planned in now.accepted_hashes
    assert crm.changed.is_set()
    assert crm.quarantined == {}


async def test_a_source_that_says_something_senseless_is_compared_again(crm, upstream):
    senseless = document()
    answers = senseless["paths"]["/customers/{id}"]["get"]["responses"]["200"]["content"]
    answers["application/json"]["schema"]["required"] = [[], [], {}]
    upstream(senseless)
    watching = watch(crm)
    await watching.compare_now()
    upstream(document())
    await watching.compare_now()
    assert crm.quarantined == {}


async def test_a_source_that_cannot_be_read_for_whatever_reason_changes_nothing(crm):
    async def fetch() -> bytes:
        raise RecursionError

    crm.origin = replace(crm.origin, fetch=fetch)
    await watch(crm).compare_now()
    assert crm.quarantined == {}


async def test_a_breaking_change_is_refused_with_the_difference_until_somebody_accepts_it(crm, folder, upstream):
    changed = document(name={"type": "integer"})
    del changed["paths"]["/plans"]
    upstream(changed)
    watching = watch(crm)
    await watching.compare_now()
    error = (await call(crm, "get_customer", {"id": "7"})).error
    assert error.code is ErrorCode.CONTRACT_VIOLATION
    assert "name" in error.details["drift"]
    assert "`triptych tools accept crm`" in error.message
    assert "does not offer it any more" in crm.quarantined["crm.list_plans"]

    command = ["tools", "diff", "crm", "--config", str(folder / "triptych.toml")]
    done = await at_a_terminal(command)
    assert done.exit_code == 1
    assert "crm.get_customer: breaking" in done.output
    assert "crm.list_plans: gone" in done.output
    done = await at_a_terminal(["tools", "accept", *command[2:]])
    assert done.exit_code == 0, done.output
    await watching.compare_now()
    assert crm.quarantined.keys() == {"crm.list_plans"}
    assert crm.operations["crm.get_customer"].contract.result["properties"]["name"]["type"] == "integer"
    assert (await at_a_terminal(command)).output == "nothing has changed\n"


async def test_a_source_that_comes_back_to_what_was_accepted_ends_the_quarantine(crm, upstream):
    watching = watch(crm)
    upstream(document(name={"type": "integer"}))
    await watching.compare_now()
    assert crm.quarantined
    upstream(document())
    await watching.compare_now()
    assert crm.quarantined == {}


async def test_a_source_that_is_away_or_speaks_nonsense_changes_nothing(crm, folder):
    before = dict(crm.operations)
    await watch(crm).compare_now()
    (folder / "upstream.json").write_text("<html>")
    await watch(crm).compare_now()
    assert (crm.operations, crm.quarantined) == (before, {})


# Where a call goes, and how it is made


def plans(**operation: Any) -> dict[str, Any]:
    """The document, with a write whose description is given."""
    changed = document()
    changed["components"] = {
        "securitySchemes": {
            "tokens": {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": "https://id.test/token"}}}
        }
    }
    body = {"content": {"application/json": {"schema": {"type": "object"}}}}
    key = [{"name": "Idempotency-Key", "in": "header"}, {"name": "q", "in": "query", "schema": {"type": "string"}}]
    stated = {"operationId": "make_plan", "requestBody": body, "parameters": key, "security": [{"tokens": []}]}
    changed["paths"]["/plans"]["post"] = {**stated, "responses": {"204": {}}, **operation}
    return changed


def with_server(url: str) -> dict[str, Any]:
    return {**plans(), "servers": [{"url": url}]}


def with_token_url(url: str) -> dict[str, Any]:
    changed = plans()
    changed["components"]["securitySchemes"]["tokens"]["flows"]["clientCredentials"]["tokenUrl"] = url
    return changed


def with_path(path: str, method: str = "post") -> dict[str, Any]:
    changed = plans()
    changed["paths"].setdefault(path, {})[method] = changed["paths"]["/plans"].pop("post")
    return changed


KEY = {"name": "Idempotency-Key", "in": "header"}
QUERY = {"name": "q", "in": "query", "schema": {"type": "string"}}
FORM = {"content": {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (with_server("https://127.0.0.1:9"), "request: it was POST http://127.0.0.1:9/plans and is POST https://127.0.0.1:9/plans"),
        (with_server("http://evil.test:9"), "and is POST http://evil.test:9/plans"),
        (with_server("http://127.0.0.1:10"), "and is POST http://127.0.0.1:10/plans"),
        (with_server("http://127.0.0.1:9/v2"), "and is POST http://127.0.0.1:9/v2/plans"),
        (with_path("/plans/purge"), "and is POST http://127.0.0.1:9/plans/purge"),
        (with_path("/plans", "patch"), "and is PATCH http://127.0.0.1:9/plans"),
        (with_token_url("https://evil.test/token"), "authentication: it was tokens (oauth2, clientCredentials https://id.test/token) and"),
        (plans(security=[]), "authentication: it was tokens"),
        (plans(servers=[{"url": "https://evil.test"}]), "and is POST https://evil.test/plans"),
        (plans(parameters=[KEY, {**QUERY, "in": "header"}]), "parameter q: it was query q (form, explode) and is header q (simple)"),
        (plans(parameters=[KEY, {**QUERY, "allowReserved": True}]), "parameter q: it was query q (form, explode) and is"),
        (plans(parameters=[KEY]), "parameter q: it was query q (form, explode) and is gone"),
        (plans(parameters=[QUERY]), "idempotency key: it was header Idempotency-Key and is none"),
        (plans(requestBody=FORM), "body: it was application/json (json) and is application/x-www-form-urlencoded (form)"),
    ],
)  # fmt: skip
async def test_a_refresh_changes_nothing_of_where_a_call_goes_and_how_it_is_made(folder, upstream, changed, told):
    (folder / "crm.json").write_text(json.dumps(plans()))
    crm = openapi(Source("crm", {"spec": "crm.json", "source": "upstream.json"}, folder))
    accepted = crm.operations["crm.make_plan"]
    upstream(changed)
    await watch(crm).compare_now()
    assert told in crm.quarantined["crm.make_plan"]
    assert crm.operations["crm.make_plan"] is accepted
    done = await at_a_terminal(["tools", "diff", "crm", "--config", str(folder / "triptych.toml")])
    assert done.exit_code == 1
    assert told in done.output


async def test_other_words_within_a_schema_are_told_with_their_place(folder, upstream):
    said = {"type": "string", "description": "A name."}
    (folder / "crm.json").write_text(json.dumps(plans(parameters=[KEY, {**QUERY, "schema": said}])))
    upstream(plans(parameters=[KEY, {**QUERY, "schema": {**said, "description": "A password."}}]))
    done = await at_a_terminal(["tools", "diff", "crm", "--config", str(folder / "triptych.toml")])
    assert "arguments.properties.q.description: it was 'A name.' and is 'A password.'" in " ".join(done.output.split())


async def test_a_parameter_that_is_new_and_optional_is_taken_over_with_its_place(folder, upstream):
    (folder / "crm.json").write_text(json.dumps(plans()))
    crm = openapi(Source("crm", {"spec": "crm.json", "source": "upstream.json"}, folder))
    upstream(plans(parameters=[KEY, QUERY, {"name": "verbose", "in": "query", "schema": {"type": "boolean"}}]))
    watching = watch(crm)
    await watching.compare_now()
    assert crm.quarantined == {}
    assert crm.operations["crm.make_plan"].facts["parameter verbose"] == "query verbose (form, explode)"
    crm.changed.clear()
    await watching.compare_now()
    assert not crm.changed.is_set(), "nothing is announced again"


async def test_an_operation_that_is_put_in_gives_no_name_another_meaning(folder, upstream):
    long = "/companies/{company}/apiCredentials/{credential}/allowedOrigins/and/whatever/else"

    def purging(*ends: str) -> dict[str, Any]:
        return {**document(), "paths": {f"{long}/{end}": {"put": {"responses": {"204": {}}}} for end in ends}}

    (folder / "crm.json").write_text(json.dumps(purging("suspend", "resume")))
    crm = openapi(Source("crm", {"spec": "crm.json", "source": "upstream.json"}, folder))
    before = {name: each.facts["request"] for name, each in crm.operations.items()}
    upstream(purging("suspend", "purge", "resume"))
    await watch(crm).compare_now()
    assert crm.quarantined == {}
    assert {name: each.facts["request"] for name, each in crm.operations.items()} == before


async def test_names_that_change_places_are_quarantined(crm, upstream):
    swapped = document()
    customers, plans = swapped["paths"]["/customers/{id}"]["get"], swapped["paths"]["/plans"]["get"]
    customers["operationId"], plans["operationId"] = plans["operationId"], customers["operationId"]
    upstream(swapped)
    await watch(crm).compare_now()
    assert crm.quarantined.keys() == {"crm.get_customer", "crm.list_plans"}


async def test_what_an_adapter_finds_by_itself_is_an_alert_until_it_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "pins.json").write_text("accepted")
    told: list[tuple[str, Any]] = []

    class Told(Alerts):
        def open(self, operation: str, kind: str, message: str, run_id: UUID | None = None) -> None:
            told.append((operation, (kind, message, run_id)))

        def close_others(self, kind: str, still: Iterable[str]) -> None:
            told.append((kind, tuple(still)))

    read: list[bytes] = []

    async def fetch() -> bytes:
        return b""

    tool = Tool("notes")
    tool.origin = ContractOrigin(tmp_path / "pins.json", fetch, lambda _: tool, is_watched=True, reload=read.append)
    log = structlog.get_logger()
    watch = DriftWatch(tool, 3_600, Told(log), log)
    watching = asyncio.create_task(watch.run())
    try:
        for _ in range(3):
            await asyncio.sleep(0)
        tool.quarantined["notes.write"] = tool.reworded["notes.read"] = "description: it was 'a' and is 'b'"
        tool.compared.set()
        for _ in range(3):
            await asyncio.sleep(0)
        opened = {operation for operation, _ in told if operation.startswith("notes.")}
        assert opened == {"notes.write", "notes.read"}
        tool.quarantined.clear()
        tool.reworded.clear()
        tool.compared.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert told[-1] == ("drift", ())
        await watch.compare_now()
        assert read == [b"accepted"]
    finally:
        watching.cancel()
