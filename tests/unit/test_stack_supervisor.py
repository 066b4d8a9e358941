"""A supervisor whose surroundings fail it: no port, no room on the disk, a process that ends in a strange way."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from triptych.commands.common import stack as stack_commands
from triptych.embedded import supervised_process
from triptych.embedded import supervisor as module
from triptych.embedded.command import Command
from triptych.embedded.errors import ConfigInvalidError, StackError, StartError, UnknownServiceError
from triptych.embedded.layout import Layout
from triptych.embedded.options import StackOptions
from triptych.embedded.ports import Ports
from triptych.embedded.stack_spec import HealthStatus, ProcessKind, ProcessSpec
from triptych.embedded.supervised_process import SupervisedProcess
from triptych.embedded.supervisor import Supervisor
from triptych.kernel.postgres.migrate import PreparedDatabase
from triptych.operator import retention

TOOL = """
[tools.%s]
adapter = "triptych.tools.adapters.echo:ECHO"
"""
SERVICE = """
[services.brief]
module = "this"
"""
"""It prints a poem and ends."""
PROCESS = """
[processes.web]
command = ["/bin/sh", "-c", "test -e CONDITION && exec sleep 60; exit 2"]
health = "/"
"""


@pytest.fixture
async def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    """One that has started everything but Kafka and Postgres."""

    async def no_topics(*_about: object) -> list[str]:
        return []

    config = tmp_path / "triptych.toml"
    config.write_text(SERVICE)
    names = ("brief", "tool_one", "tool_two", "tool_three")
    prepared = PreparedDatabase(created=False, services=dict.fromkeys(names, "dsn"), operator="dsn", owner="dsn")
    monkeypatch.setattr(module, "create_topics", no_topics)
    monkeypatch.setattr(Supervisor, "_prepare", lambda *_: prepared)
    options = StackOptions(data=tmp_path / "data", topic_prefix="t", config=config)
    async with httpx.AsyncClient() as http:
        supervisor = Supervisor(options, Layout.at(options.data), structlog.stdlib.get_logger(), http)
        supervisor._started, supervisor._prepared = True, prepared
        yield supervisor
        await supervisor._stop()


def no_port_for(called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Ports.of

    def of(ports: Ports, name: str) -> int:
        if name == called:
            raise OSError("no port is free")
        return found(ports, name)

    monkeypatch.setattr(Ports, "of", of)


def processes(supervisor: Supervisor) -> list[str]:
    return [process["name"] for process in supervisor._status()["processes"]]


async def test_a_service_that_cannot_be_scaled_stays_as_it_is(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await supervisor.answer({"do": "scale", "service": "brief", "count": 1})
    no_port_for("brief-3", monkeypatch)
    before = processes(supervisor)
    with pytest.raises(OSError, match="no port"):
        await supervisor.answer({"do": "scale", "service": "brief", "count": 3})
    assert processes(supervisor) == before
    assert await supervisor.answer({"do": "scale", "service": "brief", "count": 2}) == {
        "processes": ["brief", "brief-2"]
    }


async def test_a_configuration_that_cannot_be_taken_over_is_taken_over_when_it_can(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = supervisor._options.config
    config.write_text(SERVICE + TOOL % "one")
    assert (await supervisor.answer({"do": "configure"}))["added"] == ["brief", "one"]
    with monkeypatch.context() as while_it_lasts:
        no_port_for("two", while_it_lasts)
        config.write_text(SERVICE + TOOL % "two")
        with pytest.raises(OSError, match="no port"):
            await supervisor.answer({"do": "configure"})
        assert processes(supervisor) == ["brief", "one"]
    answer = await supervisor.answer({"do": "configure"})
    assert (answer["added"], answer["removed"]) == (["two"], ["one"])
    assert processes(supervisor) == ["brief", "two"]


async def configure(supervisor: Supervisor, text: str = "", **changes: object) -> dict[str, list[str]]:
    if text:
        supervisor._options.config.write_text(text)
    asked = {"do": "configure", "options": supervisor._options.model_dump(mode="json") | changes}
    return await supervisor.answer(asked | {"environment": dict(os.environ)})


SETTINGS = """
[env]
COLOUR = "green"
[tools.one]
adapter = "triptych.tools.adapters.echo:ECHO"
options = { key_env = "ONE_KEY" }
[tools.two]
adapter = "triptych.tools.adapters.echo:ECHO"
env = { KEY = "{secret.shared}" }
[processes.web]
command = ["{python}", "-m", "this", "{secret.shared}"]
health = "/"
"""


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda _: {}, []),
        (lambda _: {"text": SETTINGS.replace("green", "blue")}, ["one", "two", "two-2"]),
        (lambda _: {"text": SETTINGS.replace("key_env", "other_env")}, ["one"]),
        (lambda _: {"text": SETTINGS.replace('"this"', '"that"')}, ["web"]),
        (lambda _: {"text": "retention_days = 3" + SETTINGS}, []),
        (lambda mine: mine.setenv("ONE_KEY", "rotated") or {}, ["one"]),
        (lambda mine: mine.setenv("TRIPTYCH_LOG_LEVEL", "debug") or {}, ["web", "one", "two", "two-2"]),
        (lambda mine: mine.setenv("COLUMNS", "77") or mine.setenv("TERM", "dumb") or {}, []),
        (lambda _: {"playbooks": "/elsewhere"}, ["one", "two", "two-2"]),
    ],
)
async def test_what_has_changed_is_named_and_all_else_goes_on(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, change: Any, changed: list[str]
) -> None:
    await configure(supervisor, SETTINGS)
    await supervisor.answer({"do": "scale", "service": "two", "count": 2})
    with monkeypatch.context() as mine:
        answer = await configure(supervisor, **change(mine))
    assert (answer["changed"], answer["added"], answer["removed"]) == (changed, [], [])


async def test_a_secret_that_rotates_restarts_who_uses_it_until_all_have_it(supervisor: Supervisor) -> None:
    await configure(supervisor, SETTINGS)
    (supervisor._layout.secrets / "shared").unlink()
    assert (await configure(supervisor))["changed"] == ["web", "two"]
    await supervisor.answer({"do": "restart", "process": "web"})
    assert (await configure(supervisor))["changed"] == ["two"]
    await supervisor.answer({"do": "restart", "process": "two"})
    assert (await configure(supervisor))["changed"] == []


async def test_what_a_stack_keeps_for_as_long_as_it_runs_is_told(supervisor: Supervisor) -> None:
    assert (await configure(supervisor, topic_prefix="other"))["needs_up"] == ["topic_prefix"]
    assert supervisor._options.topic_prefix == "t"


async def test_an_environment_that_cannot_be_taken_over_changes_nothing(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor._options.config.write_text("[")
    asked = {
        "do": "configure",
        "options": supervisor._options.model_dump(mode="json"),
        "environment": {"COLOUR": "red"},
    }
    before = dict(os.environ)
    with pytest.raises(ConfigInvalidError):
        await supervisor.answer(asked)
    assert dict(os.environ) == before


async def test_how_many_processes_were_asked_for_is_remembered(supervisor: Supervisor) -> None:
    await configure(supervisor, SETTINGS)
    await supervisor.answer({"do": "scale", "service": "one", "count": 3})
    with pytest.raises(StackError, match="Only services and tools are scaled"):
        await supervisor.answer({"do": "scale", "service": "web", "count": 2})
    next_one = Supervisor(supervisor._options, supervisor._layout, supervisor._log, supervisor._stack_spec.http)
    assert next_one._scale == {"one": 3, "two": 1}
    await configure(supervisor, SETTINGS.replace("tools.one", "tools.three"))
    assert supervisor._layout.read_scale() == {"three": 1, "two": 1}


async def test_one_process_of_the_stack_is_started_anew_at_a_time(supervisor: Supervisor) -> None:
    await configure(supervisor, SETTINGS)
    await supervisor.answer({"do": "scale", "service": "one", "count": 2})
    assert await supervisor.answer({"do": "processes", "service": "one"}) == {"processes": ["one", "one-2"]}
    assert await supervisor.answer({"do": "processes", "service": "web"}) == {"processes": ["web"]}
    before = dict(supervisor._processes)
    for name in ("one-2", "web"):
        await supervisor.answer({"do": "restart", "process": name})
    assert [name for name, process in supervisor._processes.items() if process is not before[name]] == ["web", "one-2"]
    with pytest.raises(UnknownServiceError, match="There are one, two, web"):
        await supervisor.answer({"do": "restart", "process": "kafka"})


def test_up_tells_what_is_wrong_with_the_playbooks_of_the_stack(tmp_path: Path) -> None:
    config = tmp_path / "triptych.toml"
    config.write_text('playbooks = "books"\n[tools.kb]\nadapter = "triptych.tools.adapters.kb:tool"\n')
    (tmp_path / "books").mkdir()
    text = "name: {0}\ngoal: x\ninput: {{type: object}}\ntools: [{1}.search]\nplan: {{pattern: fixed, steps: "
    steps = "[{{id: a, operation: {1}.search}}]}}\n"
    for name, tool in (("good", "kb"), ("stranger", "crm")):
        (tmp_path / "books" / f"{name}.yaml").write_text((text + steps).format(name, tool))
    (tmp_path / "books" / "odd.yaml").write_text("name: odd")
    options = StackOptions(data=tmp_path, topic_prefix="t", config=config)
    odd, stranger = stack_commands.playbook_problems(options)
    assert f"{tmp_path}/books/odd.yaml:1:1: `goal` is missing" in odd
    assert "there is no tool `crm`" in stranger


def test_up_tells_which_service_is_missing_and_what_that_means(tmp_path: Path) -> None:
    config = tmp_path / "triptych.toml"
    config.write_text('[services.executor]\nmodule = "triptych.executor"\n')
    options = StackOptions(data=tmp_path, topic_prefix="t", config=config)
    (told,) = stack_commands.missing_services(options)
    assert f"{config} starts no planner" in told
    assert "no run gets a plan" in told
    assert "[services.planner]" in told


def test_a_restart_goes_on_when_the_process_before_is_ready_and_ends_at_one_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []

    def status(_layout: Layout, request: dict[str, str]) -> dict[str, Any]:
        asked.append(request)
        told = [
            {"name": name, "state": "ready", "does_not_start": name == "b" and bool(asked), "last_error": "no key"}
            for name in "abc"
        ]
        return {"processes": told, "failure": None, "ready": False, "doing": ""}

    monkeypatch.setattr(stack_commands, "ask", status)
    with pytest.raises(StartError, match=r"b does not start: no key\nNot restarted: c"):
        stack_commands.roll(Layout.existing(tmp_path), ["a", "b", "c"])
    assert [each.get("process", each["do"]) for each in asked] == ["a", "status", "b", "status"]


async def test_a_process_is_watched_although_nothing_can_be_written_down(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    (supervisor._layout.root / "stack.json").mkdir()
    process = supervisor._supervise(supervisor._service("brief", 1))
    await eventually(lambda: process.describe()["restarts"], within_s=20)
    (supervisor._layout.root / "stack.json").rmdir()


async def test_retention_that_fails_in_a_way_nobody_foresaw_is_tried_again(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    tried: list[str] = []

    def remove_old(owner_dsn: str, *_how: object) -> None:
        tried.append(owner_dsn)
        raise ValueError("not foreseen")

    monkeypatch.setattr(retention, "remove_old", remove_old)
    monkeypatch.setattr(module, "_RETENTION_EVERY_S", 0.01)
    supervisor._retention = asyncio.create_task(supervisor._remove_old_runs())
    await eventually(lambda: len(tried) > 1, within_s=20)


def watch(tmp_path: Path, script: str, probe: Callable[[], Awaitable[HealthStatus]]) -> SupervisedProcess:
    spec = ProcessSpec("brief", ProcessKind.SERVICE, Command(("/bin/sh", "-c", script)), probe)
    return SupervisedProcess(spec, Layout.at(tmp_path), structlog.stdlib.get_logger(), lambda: None)


@pytest.mark.parametrize(("how", "told"), [("kill -35 $$", "signal 35"), ("kill -9 $$", "SIGKILL"), ("exit 3", "3")])
async def test_however_a_process_ends_it_is_started_again_and_that_is_told(
    tmp_path: Path, eventually, how: str, told: str
) -> None:
    async def probe() -> HealthStatus:
        return HealthStatus(alive=True, ready=False)

    process = watch(tmp_path, how, probe)
    await eventually(lambda: process.describe()["restarts"], within_s=20)
    assert told in process.describe()["last_error"]
    await process.stop()


async def test_a_probe_that_fails_in_a_way_nobody_foresaw_is_made_again(tmp_path: Path) -> None:
    answers = iter([False, True])

    async def probe() -> HealthStatus:
        if not next(answers, True):
            raise httpx.InvalidURL("not foreseen")
        return HealthStatus(alive=True, ready=True)

    process = watch(tmp_path, "sleep 60", probe)
    await process.ready(5.0)
    await process.stop()


async def test_a_process_that_has_become_ready_is_not_said_to_fail_to_start(tmp_path: Path, eventually) -> None:
    async def probe() -> HealthStatus:
        return HealthStatus(alive=True, ready=True)

    process = watch(tmp_path, f"test -e {tmp_path}/started && exec sleep 60; touch {tmp_path}/started; exit 2", probe)
    await eventually(lambda: process.describe()["last_error"], within_s=20)
    assert process.describe()["does_not_start"]
    await eventually(lambda: process.describe()["state"] == "ready", within_s=20)
    assert not process.describe()["does_not_start"]
    await process.stop()


async def test_up_starts_at_once_what_did_not_start_and_waits_for_its_next_start(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    monkeypatch.setattr(supervised_process, "FIRST_BACKOFF_S", 3_600.0)
    folder = supervisor._options.config.parent
    await configure(supervisor, PROCESS.replace("CONDITION", f"{folder}/key"))
    await eventually(lambda: supervisor._status()["processes"][0]["state"] == "backoff", within_s=20)
    (folder / "key").touch()
    assert (await configure(supervisor))["changed"] == []
    await eventually(lambda: supervisor._status()["processes"][0]["restarts"] == 1, within_s=20)
    assert not supervisor._status()["processes"][0]["does_not_start"]


async def test_a_file_of_the_folder_is_not_taken_for_a_module_of_its_name(supervisor: Supervisor) -> None:
    command = supervisor._service("brief", 1).command
    (supervisor._options.config.parent / "this.py").write_text("raise SystemExit('not the module')")
    done = await asyncio.create_subprocess_exec(*command.arguments, cwd=command.directory, stdout=subprocess.PIPE)
    told, _ = await done.communicate()
    assert b"The Zen of Python" in told
