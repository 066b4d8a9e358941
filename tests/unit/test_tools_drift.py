"""What a tool's source offers now, held against what was accepted: taken over, refused, or left out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import Result
from typer.testing import CliRunner

from triptych.cli.main import app
from triptych.schemas import ErrorCode
from triptych.tools import Source, Tool
from triptych.tools.board import Alerts
from triptych.tools.drift import Watch
from triptych.tools.openapi import tool as openapi
from triptych.tools.testing import call

TOML = """
[tools.crm]
adapter = "triptych.tools.openapi:tool"
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


def watch(tool: Tool) -> Watch:
    return Watch(tool, 0, Alerts(structlog.get_logger()), structlog.get_logger())


async def test_a_compatible_change_is_taken_over_and_announced_and_old_plans_still_fit(crm, upstream):
    planned = crm.operations["crm.get_customer"].contract_hash
    upstream(document(tier={"type": "string"}))
    await watch(crm).look()
    now = crm.operations["crm.get_customer"]
    assert "tier" in now.contract.result["properties"]
    assert planned in now.takes
    assert crm.changed.is_set()
    assert crm.quarantined == {}


async def test_a_source_that_says_something_senseless_is_compared_again(crm, upstream):
    senseless = document()
    answers = senseless["paths"]["/customers/{id}"]["get"]["responses"]["200"]["content"]
    answers["application/json"]["schema"]["required"] = [[], [], {}]
    upstream(senseless)
    watching = watch(crm)
    await watching.look()
    upstream(document())
    await watching.look()
    assert crm.quarantined == {}


async def test_a_source_that_cannot_be_read_for_whatever_reason_changes_nothing(crm):
    async def fetch() -> bytes:
        raise RecursionError

    crm.origin = replace(crm.origin, fetch=fetch)
    await watch(crm).look()
    assert crm.quarantined == {}


async def test_a_breaking_change_is_refused_with_the_difference_until_somebody_accepts_it(crm, folder, upstream):
    changed = document(name={"type": "integer"})
    del changed["paths"]["/plans"]
    upstream(changed)
    watching = watch(crm)
    await watching.look()
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
    await watching.look()
    assert crm.quarantined.keys() == {"crm.list_plans"}
    assert crm.operations["crm.get_customer"].contract.result["properties"]["name"]["type"] == "integer"
    assert (await at_a_terminal(command)).output == "nothing has changed\n"


async def test_a_source_that_comes_back_to_what_was_accepted_ends_the_quarantine(crm, upstream):
    watching = watch(crm)
    upstream(document(name={"type": "integer"}))
    await watching.look()
    assert crm.quarantined
    upstream(document())
    await watching.look()
    assert crm.quarantined == {}


async def test_a_source_that_is_away_or_speaks_nonsense_changes_nothing(crm, folder):
    before = dict(crm.operations)
    await watch(crm).look()
    (folder / "upstream.json").write_text("<html>")
    await watch(crm).look()
    assert (crm.operations, crm.quarantined) == (before, {})
