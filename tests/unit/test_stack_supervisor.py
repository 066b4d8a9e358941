"""A supervisor whose surroundings fail it: no port, no room on the disk, a process that ends in a strange way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import structlog

from triptych.cli import retention
from triptych.cli.stack import supervisor as module
from triptych.cli.stack.blueprint import Kind, Unit, Vitals
from triptych.cli.stack.command import Command
from triptych.cli.stack.layout import Layout
from triptych.cli.stack.options import Options
from triptych.cli.stack.ports import Ports
from triptych.cli.stack.supervisor import Supervisor
from triptych.cli.stack.watched import Watched
from triptych.kernel.migrate import Prepared

TOOL = """
[tools.%s]
adapter = "triptych.tools.echo:ECHO"
"""
SERVICE = """
[services.brief]
module = "this"
"""
"""It prints a poem and ends."""


@pytest.fixture
async def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    """One that has started everything but Kafka and Postgres."""

    async def no_topics(*_about: object) -> None:
        return

    config = tmp_path / "triptych.toml"
    config.write_text(SERVICE)
    names = ("brief", "tool_one", "tool_two")
    prepared = Prepared(created=False, services=dict.fromkeys(names, "dsn"), operator="dsn", owner="dsn")
    monkeypatch.setattr(module, "create_topics", no_topics)
    monkeypatch.setattr(Supervisor, "_prepare", lambda *_: prepared)
    options = Options(data=tmp_path / "data", topic_prefix="t", config=config)
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
    assert (await supervisor.answer({"do": "configure"}))["added"] == ["one"]
    with monkeypatch.context() as while_it_lasts:
        no_port_for("two", while_it_lasts)
        config.write_text(SERVICE + TOOL % "two")
        with pytest.raises(OSError, match="no port"):
            await supervisor.answer({"do": "configure"})
        assert processes(supervisor) == ["one"]
    answer = await supervisor.answer({"do": "configure"})
    assert (answer["added"], answer["removed"]) == (["two"], ["one"])
    assert processes(supervisor) == ["two"]


async def test_a_process_is_watched_although_nothing_can_be_written_down(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    (supervisor._layout.root / "stack.json").mkdir()
    watched = supervisor._watch(supervisor._service("brief", 1))
    await eventually(lambda: watched.describe()["restarts"], within_s=20)
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
    supervisor._retention = asyncio.create_task(supervisor._remove_old_runs("dsn"))
    await eventually(lambda: len(tried) > 1, within_s=20)


def watch(tmp_path: Path, script: str, probe: Callable[[], Awaitable[Vitals]]) -> Watched:
    unit = Unit("brief", Kind.SERVICE, Command(("/bin/sh", "-c", script)), probe)
    return Watched(unit, Layout.at(tmp_path), structlog.stdlib.get_logger(), lambda: None)


@pytest.mark.parametrize(("how", "told"), [("kill -35 $$", "signal 35"), ("kill -9 $$", "SIGKILL"), ("exit 3", "3")])
async def test_however_a_process_ends_it_is_started_again_and_that_is_told(
    tmp_path: Path, eventually, how: str, told: str
) -> None:
    async def probe() -> Vitals:
        return Vitals(alive=True, ready=False)

    watched = watch(tmp_path, how, probe)
    await eventually(lambda: watched.describe()["restarts"], within_s=20)
    assert told in watched.describe()["last_error"]
    await watched.stop()


async def test_a_probe_that_fails_in_a_way_nobody_foresaw_is_made_again(tmp_path: Path) -> None:
    answers = iter([False, True])

    async def probe() -> Vitals:
        if not next(answers, True):
            raise httpx.InvalidURL("not foreseen")
        return Vitals(alive=True, ready=True)

    watched = watch(tmp_path, "sleep 60", probe)
    await watched.ready(5.0)
    await watched.stop()


async def test_a_process_that_has_become_ready_is_not_said_to_fail_to_start(tmp_path: Path, eventually) -> None:
    async def probe() -> Vitals:
        return Vitals(alive=True, ready=True)

    watched = watch(tmp_path, f"test -e {tmp_path}/started && exec sleep 60; touch {tmp_path}/started; exit 2", probe)
    await eventually(lambda: watched.describe()["last_error"], within_s=20)
    assert watched.describe()["does_not_start"]
    await eventually(lambda: watched.describe()["state"] == "ready", within_s=20)
    assert not watched.describe()["does_not_start"]
    await watched.stop()
