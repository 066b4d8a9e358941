"""Kafka and Postgres go away for a while, lose everything, or come back with an older state, with runs in flight.

The supervisor is suspended while the test stops a server, because it would start the server again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from crash_stack import CrashStack, triptych, until

from triptych.client import Client
from triptych.embedded.kafka import EmbeddedKafka
from triptych.embedded.layout import Layout
from triptych.embedded.ports import Ports, _is_free
from triptych.embedded.postgres import binaries
from triptych.embedded.topics import create_topics

AWAY_S = float(os.environ.get("TRIPTYCH_TEST_AWAY_S", "9"))
"""Longer than the session timeout of the consumers, and than what a readiness probe waits."""
AWAY = [("kafka", "paused"), ("postgres", "stopped")]
if os.environ.get("TRIPTYCH_TEST_SERVERS") == "all":
    AWAY += [("kafka", "stopped"), ("postgres", "paused")]
RUNS = 120
JUDGED_EVERY = 10
TOOLS = ("kb", "helpdesk", "model", "inbox")
SERVICES = ("executor", "planner", "critic", *TOOLS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("server", "way"), AWAY)
async def test_services_stay_and_are_not_ready_while_a_server_is_away(
    crash_stack: CrashStack, server: str, way: str
) -> None:
    pids = {service: crash_stack.pid_of(service) for service in SERVICES}
    task_ids = await in_flight(crash_stack, f"{server}-{way}")
    with away(crash_stack, server, way):
        await asyncio.sleep(AWAY_S)
        await until(
            lambda: all_are(crash_stack, ready=False),
            60,
            lambda: told("a service says that it is ready, and cannot be"),
        )

    await until(crash_stack.reconnected, 120, lambda: told("the server did not come back"))
    await every_run_ended(crash_stack, task_ids)
    await each_ended_once(crash_stack, task_ids)
    assert {service: crash_stack.pid_of(service) for service in SERVICES} == pids, "a service did not stay"

    await until(lambda: all_are(crash_stack, ready=True), 120, lambda: told("a service is not ready again"))


@pytest.mark.timeout(900)
async def test_every_run_ends_when_postgres_comes_back_with_an_older_state(
    crash_stack: CrashStack, tmp_path: Path
) -> None:
    layout = Layout.at(crash_stack.folder)
    early = await in_flight(crash_stack, "early")
    copy = tmp_path / "copy"
    await asyncio.to_thread(copy_of_postgres, crash_stack, layout, copy)
    await every_run_ended(crash_stack, early)
    late = await in_flight(crash_stack, "late")
    # The executor has nothing to do when it happens: nothing fails that would tell it.
    with crash_stack.paused(SERVICES[1:]):
        await asyncio.sleep(2)
        with supervisor_standing_still(crash_stack):
            kill_server(crash_stack, "postgres")
            shutil.rmtree(layout.postgres)
            shutil.move(copy, layout.postgres)
        await until(crash_stack.reconnected, 120, lambda: told("the server did not come back"))

    await every_run_ended(crash_stack, [*early, *late])
    await each_ended_once(crash_stack, [*early, *late])


@pytest.mark.timeout(900)
async def test_every_run_ends_once_when_kafka_has_lost_everything(crash_stack: CrashStack) -> None:
    task_ids = await in_flight(crash_stack, "lost")
    layout = Layout.at(crash_stack.folder)
    with supervisor_standing_still(crash_stack):
        kill_server(crash_stack, "kafka")
        shutil.rmtree(layout.kafka / "data")
        (layout.kafka / "formatted").unlink()
        kafka = EmbeddedKafka.of(layout, Ports(layout), print)
        kafka.prepare()
    assert kafka.address == crash_stack.description["kafka"], "the new one listens where the old one did"

    async def back() -> bool:
        return await asyncio.to_thread(kafka.is_ready)

    await until(back, 120, lambda: told("the server did not come back"))
    await create_topics(crash_stack.description["kafka"], crash_stack.description["topic_prefix"], TOOLS)
    # What is started now knows only what the new cluster tells it.
    for service in ("planner", "critic"):
        os.kill(crash_stack.pid_of(service), signal.SIGKILL)

    async with Client.from_stack(crash_stack.folder) as client, crash_stack.listening():
        crash_stack.client = client
        # A client that has no outcome publishes its tasks again: the log may have lost either.
        await crash_stack.submit(task_ids, judged_every=JUDGED_EVERY)
        await every_run_ended(crash_stack, task_ids)
        await each_ended_once(crash_stack, task_ids)
        fresh = await in_flight(crash_stack, "after-the-loss")
        await every_run_ended(crash_stack, fresh)


async def in_flight(crash_stack: CrashStack, name: str) -> list[str]:
    """Submit crash_stack, and return when a part of them has ended."""
    task_ids = [f"{name}-{n}" for n in range(RUNS)]
    await crash_stack.submit(task_ids, judged_every=JUDGED_EVERY)

    async def some_ended() -> bool:
        await crash_stack.answer_doubts()
        return sum(task_id in crash_stack.finals for task_id in task_ids) >= RUNS // 10

    async def tell() -> str:
        return "nothing ends"

    await until(some_ended, 180, tell)
    return task_ids


async def every_run_ended(crash_stack: CrashStack, task_ids: list[str]) -> None:
    """Wait until each has a final outcome, and the database says so too."""

    async def ended() -> bool:
        await crash_stack.answer_doubts()
        over = await crash_stack.database.fetchval(
            "select count(*) from executor.runs where task_id = any($1) and finished_at is not null", task_ids
        )
        return over == len(task_ids) and all(task_id in crash_stack.finals for task_id in task_ids)

    async def tell() -> str:
        rows = await crash_stack.database.fetch(
            "select task_id, run_id, status, reason_code from executor.runs "
            "where task_id = any($1) and finished_at is null limit 3",
            task_ids,
        )
        missing = sum(task_id not in crash_stack.finals for task_id in task_ids)
        return f"{missing} have no final outcome; open are for example {[dict(row) for row in rows]}"

    await until(ended, 300, tell)


async def each_ended_once(crash_stack: CrashStack, task_ids: list[str]) -> None:
    """Check one run and one end for each task, however often it was delivered, and that all tables agree."""
    assert {len(crash_stack.finals[task_id]) for task_id in task_ids} == {1}, "a task has two final outcomes"
    ends = [crash_stack.statuses[task_id] for task_id in task_ids]
    assert {len(end) for end in ends} == {1}, "a task became two runs, or ended in two ways"
    assert {status for end in ends for _, status in end} == {"succeeded"}
    assert crash_stack.other_escalations == {}
    assert len(await crash_stack.run_ids(task_ids)) == len(task_ids)
    effects = await crash_stack.effects_on(task_ids)
    assert set(effects.values()) == {1}, "an idempotent write took effect twice"
    assert len(effects) == len(task_ids)

    async def clean() -> bool:
        return not (await crash_stack.left_behind()).keys() - {"dead letters"}

    async def tell() -> str:
        return f"left behind: {await crash_stack.left_behind()}"

    await until(clean, 180, tell)
    assert "all agree" in triptych("verify", "--data", str(crash_stack.folder))
    # Answers to what Postgres has forgotten come before the tasks are read again.
    codes = await crash_stack.database.fetch(
        "select distinct code from executor.dead_letters where failed_at > "
        "(select min(started_at) from executor.runs where task_id = any($1))",
        task_ids,
    )
    assert {row["code"] for row in codes} <= {"unknown_run"}


async def all_are(crash_stack: CrashStack, *, ready: bool) -> bool:
    return {await is_ready(crash_stack, service) for service in SERVICES} == {ready}


async def told(what: str) -> str:
    return what


async def is_ready(crash_stack: CrashStack, service: str) -> bool:
    url = next(each["health_url"] for each in crash_stack.description["services"] if each["name"] == service)
    async with httpx.AsyncClient() as http:
        return (await http.get(url, timeout=10)).is_success


def family(crash_stack: CrashStack, server: str) -> list[psutil.Process]:
    """List the server's process and its children."""
    pid = next(each["pid"] for each in crash_stack.description["processes"] if each["name"] == server)
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def kill_server(crash_stack: CrashStack, server: str) -> None:
    """Kill it, and wait until it is gone: a process of many threads holds its ports for a while after the signal."""
    processes = family(crash_stack, server)
    for process in processes:
        process.kill()
    # The first is a zombie until the supervisor looks.
    psutil.wait_procs(processes[1:], timeout=30)
    ports = [port for name, port in remembered_ports(crash_stack).items() if name.startswith(server)]
    deadline = time.monotonic() + 60
    while not all(_is_free(port) for port in ports):
        assert time.monotonic() < deadline, f"{server} was killed and still listens on one of {ports}"
        time.sleep(0.05)


def remembered_ports(crash_stack: CrashStack) -> dict[str, int]:
    return json.loads((crash_stack.folder / "ports.json").read_text())


@contextmanager
def supervisor_standing_still(crash_stack: CrashStack) -> Iterator[None]:
    pid = json.loads(triptych("status", "--json", "--data", str(crash_stack.folder)))["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def away(crash_stack: CrashStack, server: str, way: str) -> Iterator[None]:
    """Pause or stop the server while the body runs."""
    if way == "stopped":
        with supervisor_standing_still(crash_stack):
            kill_server(crash_stack, server)
            yield
        return
    processes = family(crash_stack, server)
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def copy_of_postgres(crash_stack: CrashStack, layout: Layout, target: Path) -> None:
    """Copy the data directory at one moment, while the server works."""
    port = remembered_ports(crash_stack)["postgres"]
    command = [binaries() / "pg_basebackup", "-D", target, "-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
    environment = os.environ | {"PGPASSWORD": layout.secret("postgres-owner")}
    subprocess.run([*command, "--checkpoint=fast", "--no-sync"], env=environment, check=True, timeout=120)
    owner = layout.postgres.stat()
    for path in (target, *target.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
