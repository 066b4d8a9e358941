"""Versions of playbooks on a real executor that is never stopped for them: deployed, listed, activated, rolled back."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from executor_harness import MIGRATIONS, ExecutorHarness
from test_executor import PLAYBOOK, task
from typer.testing import CliRunner

from triptych.commands.playbook import app
from triptych.playbook.loader import load_playbook
from triptych.schemas import topics


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
async def harness(  # noqa: PLR0917 - fixtures
    servers, prefix, database, create_topics, port, tmp_path_factory
) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("executor")
    (folder / "greet.yaml").write_text(PLAYBOOK)
    nouns = [topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS]
    await create_topics(*nouns, "calls.echo")
    prepared = database.prepare({"executor": (MIGRATIONS,)})
    async with ExecutorHarness(servers.kafka, prefix, prepared.services["executor"], folder, folder / "log") as harness:
        harness.operator_dsn = prepared.operator
        harness.start(health_port=str(port))
        yield harness
    sys.stdout.write(harness.log.read_text()[-4000:])  # pytest shows it when a test fails


def saying(word: str) -> str:
    return PLAYBOOK.replace("Hello", word)


async def said(harness: ExecutorHarness, eventually, name: str, playbook: str = "greet") -> str:
    """What a new run says."""
    await harness.send(topics.TASKS, task(name, playbook=playbook))

    async def done() -> list[Any]:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=name)

    await eventually(done)
    ((outcome,)) = await done()
    return outcome["output"]["said"]


async def playbook(*arguments: str, dsn: str, code: int = 0) -> str:
    done = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--postgres", dsn])
    assert done.exit_code == code, done.output
    return done.output or str(done.exception)


async def active(harness: ExecutorHarness, name: str = "greet") -> list[str]:
    listed = json.loads(await playbook("ls", "--json", dsn=harness.operator_dsn))
    return [each["version"] for each in listed if each["active"] and each["name"] == name]


async def test_a_saved_file_is_for_new_tasks_and_a_run_that_has_begun_keeps_its_version(
    harness: ExecutorHarness, eventually
) -> None:
    file, process = harness.playbooks / "greet.yaml", harness.process
    await harness.send(topics.TASKS, task("before"))
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS))
    file.write_text(saying("Bonjour"))
    await eventually(lambda: "playbook changed" in harness.log.read_text())
    assert await said(harness, eventually, "after") == "Bonjour Ana"
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="before"))
    assert harness.of(topics.OUTCOMES, task_id="before")[0]["output"] == {"said": "Hello Ana"}
    assert await active(harness) == [load_playbook(file).version]
    assert process.poll() is None


async def test_a_file_that_cannot_be_used_is_told_and_its_version_of_before_stays_active(
    harness: ExecutorHarness, port: int, eventually
) -> None:
    async def warnings() -> dict[str, str]:
        async with httpx.AsyncClient() as http:
            return (await http.get(f"http://127.0.0.1:{port}/health/ready")).json()["warnings"]

    file = harness.playbooks / "greet.yaml"
    good = file.read_text()
    file.write_text(good.replace("pattern: fixed", "pattern: circular"))
    await eventually(warnings)
    (version,) = await active(harness)
    assert f"{version} stays active" in (await warnings())["playbook greet"]
    assert await said(harness, eventually, "while-it-is-bad") == "Bonjour Ana"
    file.write_text(good)

    async def mended() -> bool:
        return not await warnings()

    await eventually(mended)


async def test_a_rollback_holds_until_the_folder_holds_something_else_also_over_a_restart(
    harness: ExecutorHarness, database, port: int, eventually
) -> None:
    first = load_playbook(_file(harness, "first", saying("Hello"))).version
    told = await playbook("rollback", "greet", "--note", "it spoke French", dsn=database.owner_dsn)
    assert f"New tasks for greet get {first}" in told
    assert await active(harness) == [first]
    await eventually(lambda: f'"version":"{first}"' in harness.log.read_text())
    assert await said(harness, eventually, "rolled-back") == "Hello Ana"
    harness.stop()
    harness.start(health_port=str(port))
    assert await said(harness, eventually, "restarted") == "Hello Ana"
    (harness.playbooks / "greet.yaml").write_text(saying("Ciao"))
    third = load_playbook(harness.playbooks / "greet.yaml").version
    await eventually(lambda: f'"version":"{third}"' in harness.log.read_text())
    assert await said(harness, eventually, "anew") == "Ciao Ana"


async def test_a_version_is_activated_by_its_name_and_a_file_that_no_folder_holds_as_well(
    harness: ExecutorHarness, database, eventually
) -> None:
    listed = json.loads(await playbook("ls", "greet", "--json", dsn=harness.operator_dsn))
    assert len(listed) == 3
    assert {each["note"] for each in listed} == {"", "it spoke French"}
    assert (listed[0]["active"], listed[1]["activated_by"].partition(":")[0]) == (True, "user")
    french = load_playbook(_file(harness, "french", saying("Bonjour"))).version
    await playbook("activate", f"greet@{french[:6]}", "--principal", "user:ana", dsn=database.owner_dsn)
    await eventually(lambda: harness.log.read_text().count(f'"version":"{french}"') == 2)
    assert await said(harness, eventually, "french") == "Bonjour Ana"

    other = _file(harness, "other", saying("Hola").replace("name: greet", "name: saluda"))
    config = _file(harness, "echo", '[tools.echo]\nadapter = "triptych.tools.adapters.echo:tool"\n')
    await playbook("activate", str(other), "--config", str(config), dsn=database.owner_dsn)
    await eventually(lambda: '"playbook":"saluda"' in harness.log.read_text())
    assert await said(harness, eventually, "saluda", playbook="saluda") == "Hola Ana"
    unknown = await playbook("activate", "greet@nothing", dsn=database.owner_dsn, code=1)
    assert "there is no such version. There are greet@" in unknown
    only = await playbook("rollback", "saluda", dsn=database.owner_dsn, code=1)
    assert "no other version of it was ever active" in only


async def test_a_playbook_whose_file_is_taken_away_is_offered_no_more(harness: ExecutorHarness, eventually) -> None:
    (harness.playbooks / "spare.yaml").write_text(saying("Hi").replace("name: greet", "name: spare"))
    await eventually(lambda: '"playbook":"spare"' in harness.log.read_text())
    (harness.playbooks / "spare.yaml").unlink()
    await eventually(lambda: '"playbook":"spare","version":null' in harness.log.read_text())
    await harness.send(topics.TASKS, task("too-late", playbook="spare"))
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="too-late"))
    assert harness.of(topics.OUTCOMES, task_id="too-late")[0]["reason"]["code"] == "unknown_playbook"


def _file(harness: ExecutorHarness, name: str, text: str) -> Path:
    """A file beside the folder of the executor."""
    file = harness.playbooks.parent / f"{name}.yaml"
    file.write_text(text)
    return file
