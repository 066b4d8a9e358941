"""The embedded stack as a user meets it: up, status, scale, kill -9, up again, down. Everything is real.

One stack is shared by the tests of this module and lives through all of it, in their order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from psycopg import errors

from triptych.commands.common.owner import owner_of
from triptych.embedded import Servers
from triptych.embedded.orphans import MARK
from triptych.schemas import topics

TRIPTYCH = Path(sys.executable).with_name("triptych")
DEADLINE_S = 60.0

MODULE = """
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings

async def body(service: Service, settings: ServiceSettings) -> None:
    service.health.started()
    await service.stopping.wait()

run("idle", load_settings(ServiceSettings), body)
"""

CONFIG = """
[env]
PYTHONPATH = "{here}"

[services.idle]
module = "idle_service"
migrations = ["triptych.kernel:migrations/worker"]
env = { WEB = "{web.url}/idle.log", KEY = "{secret.key}" }

[processes.web]
command = ["{python}", "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "{data}/logs"]
health = "/"
"""


@dataclass
class Stack:
    """A stack in a directory, and the command that controls it."""

    root: Path
    config: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [TRIPTYCH, *arguments, "--data", self.data], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def up(self, *options: str, code: int = 0) -> str:
        return self.run("up", "--config", str(self.config), *options, code=code)

    def read(self) -> Any:
        return json.loads((self.data / "stack.json").read_text())

    def processes(self) -> dict[str, Any]:
        """What `status` says, by name."""
        return {each["name"]: each for each in json.loads(self.run("status", "--json"))["processes"]}

    def supervisor(self) -> int:
        return json.loads(self.run("status", "--json"))["pid"]

    def alive(self) -> list[psutil.Process]:
        """Every process that bears this stack's mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.data):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not so within {DEADLINE_S} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Stack]]:
    made: list[Stack] = []

    def make(config: str = CONFIG) -> Stack:
        root = tmp_path_factory.mktemp("stack")
        root.joinpath("idle_service.py").write_text(MODULE)
        file = root / "triptych.toml"
        file.write_text(config.replace("{here}", str(root)))
        made.append(Stack(root, file))
        return made[-1]

    yield make
    for stack in made:
        stack.run("down")


@pytest.fixture(scope="module")
def stack(make: Callable[..., Stack]) -> Stack:
    stack = make()
    stack.up()
    return stack


def runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended, and whose parent has not asked yet, does not count."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_up_returns_when_every_process_answers(stack: Stack) -> None:
    written = stack.read()
    assert written["topic_prefix"] == "triptych"
    assert [service["name"] for service in written["services"]] == ["idle"]
    assert {process["name"] for process in written["processes"]} == {"postgres", "kafka", "web"}
    for each in written["services"] + written["processes"]:
        assert psutil.pid_exists(each["pid"])
        if each["health_url"]:
            assert httpx.get(each["health_url"]).status_code == 200


def test_a_service_gets_the_addresses_and_secrets_that_its_configuration_names(stack: Stack) -> None:
    environment = psutil.Process(stack.read()["services"][0]["pid"]).environ()
    assert httpx.get(environment["WEB"]).status_code == 200
    assert environment["KEY"] == (stack.data / "secrets" / "key").read_text()


def test_what_holds_a_password_is_for_its_owner_alone(stack: Stack) -> None:
    for path in (stack.data / "stack.json", *(stack.data / "secrets").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_the_topics_are_there_and_fit_together(stack: Stack) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.read()["kafka"])
    await admin.start()
    try:
        found = await admin.describe_topics(
            [f"triptych.{topic.noun}" for topic in topics.CATALOG if topic.noun != "calls"]
        )
    finally:
        await admin.close()
    partitions = {topic["topic"]: len(topic["partitions"]) for topic in found}
    assert {partitions.pop(f"triptych.{topic.noun}") for topic in topics.CATALOG if topic.compacted} == {1}
    assert set(partitions.values()) == {2}


def test_the_operator_may_read_and_a_service_may_touch_its_own_rows(stack: Stack) -> None:
    service = psutil.Process(stack.read()["services"][0]["pid"]).environ()["TRIPTYCH_POSTGRES"]
    with psycopg.connect(service) as connection:
        connection.execute("INSERT INTO leases (instance, until) VALUES ('kept over every kill', now())")
    with psycopg.connect(stack.read()["postgres"]) as connection:
        assert connection.execute("SELECT instance FROM idle.leases").fetchall() == [("kept over every kill",)]
        with pytest.raises(errors.ReadOnlySqlTransaction):
            connection.execute("DELETE FROM idle.leases")


def test_a_second_up_says_that_it_runs_already(stack: Stack) -> None:
    before = stack.read()
    assert f"running already in {stack.data}" in stack.up()
    assert stack.read() == before


def test_up_on_a_running_stack_restarts_what_has_changed_and_no_server(stack: Stack) -> None:
    def pids() -> dict[str, int]:
        return {name: each["pid"] for name, each in stack.processes().items()}

    before, text = pids(), stack.config.read_text()
    for secret in ("key", "postgres-owner", "postgres-operator"):
        (stack.data / "secrets" / secret).unlink()
    _, _, web = text.partition("[processes.web]")
    stack.config.write_text(f"{text}[processes.more]{web}")
    said = stack.up()
    assert "more: added" in said
    assert "idle: changed; it is restarted" in said
    after = pids()
    assert {name for name in before if after[name] != before[name]} == {"idle"}
    assert psutil.Process(after["idle"]).environ()["KEY"] == (stack.data / "secrets" / "key").read_text()
    stack.config.write_text(text)
    assert "more: removed" in stack.up()
    del after["more"]
    assert pids() == after
    for dsn in (stack.read()["postgres"], owner_of(stack.data)):
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_process_that_is_no_service_is_restarted_as_well(stack: Stack) -> None:
    before = stack.processes()["web"]["pid"]
    stack.run("restart", "web")
    assert stack.processes()["web"]["pid"] != before
    assert "There are idle, web" in stack.run("restart", "kafka", code=1)


def test_scale_starts_and_stops_processes_of_a_service(stack: Stack) -> None:
    stack.run("scale", "idle", "3")
    services = stack.read()["services"]
    assert [service["name"] for service in services] == ["idle", "idle-2", "idle-3"]
    instances = [psutil.Process(service["pid"]).environ()["TRIPTYCH_INSTANCE"] for service in services]
    assert instances == ["idle-1", "idle-2", "idle-3"]
    stack.run("scale", "idle", "1")
    assert [service["name"] for service in stack.read()["services"]] == ["idle"]
    assert not psutil.pid_exists(services[2]["pid"])
    assert "There are idle" in stack.run("scale", "nobody", "2", code=1)


def test_a_service_that_dies_is_started_again_and_status_says_why_it_ended(stack: Stack) -> None:
    before = stack.read()["services"][0]["pid"]
    os.kill(before, signal.SIGKILL)
    wait(lambda: stack.processes()["idle"]["restarts"] == 1 and stack.processes()["idle"]["state"] == "ready")
    assert stack.read()["services"][0]["pid"] == stack.processes()["idle"]["pid"] != before
    assert "was killed by SIGKILL" in stack.run("status")


def test_what_a_killed_supervisor_left_running_is_stopped_before_a_new_start(stack: Stack) -> None:
    stack.run("scale", "idle", "2")
    orphans = {each["pid"] for each in stack.processes().values()}
    os.kill(stack.supervisor(), signal.SIGKILL)
    stack.up()
    now = {each["pid"] for each in stack.processes().values()}
    assert "idle-2" in stack.processes(), "how many were asked for is remembered"
    assert not orphans & now
    assert not [pid for pid in orphans if runs(pid)]


def test_a_second_stack_lives_beside_it_and_one_that_cannot_start_says_why(
    stack: Stack, make: Callable[..., Stack]
) -> None:
    other = make(CONFIG + '[services.broken]\nmodule = "idle_service"\nenv = { TRIPTYCH_LOG_LEVEL = "loud" }\n')
    said = other.up("--prefix", "other", code=1)
    assert "broken does not start: ended with code 2" in said
    assert "TRIPTYCH_LOG_LEVEL: Input should be" in said
    shown = other.processes()
    assert shown["broken"]["does_not_start"]
    assert shown["idle"]["state"] == "ready"
    assert other.read()["topic_prefix"] == "other"
    assert {each["state"] for each in stack.processes().values()} == {"ready"}
    assert not {each["pid"] for each in shown.values()} & {each["pid"] for each in stack.processes().values()}


def test_existing_servers_can_be_used_and_a_database_belongs_to_one_prefix(
    servers: Servers, make: Callable[..., Stack], prefix: str
) -> None:
    database = servers.owner_dsn.rpartition("/")[0] + f"/{prefix}"
    guest = make()
    said = guest.up("--prefix", prefix, "--kafka", servers.kafka, "--postgres", database)
    assert f"The database {prefix} was created" in said
    assert guest.read()["kafka"] == servers.kafka
    assert set(guest.processes()) == {"idle", "web"}
    guest.run("down")
    said = guest.up("--prefix", "another", "--kafka", servers.kafka, "--postgres", database, code=1)
    assert f"belongs to the topic prefix '{prefix}'" in said
    assert not guest.alive()


def test_down_stops_everything_and_keeps_the_data(stack: Stack) -> None:
    supervisor = stack.supervisor()
    assert stack.alive()
    stack.run("down")
    assert not stack.alive()
    assert not runs(supervisor)
    assert not (stack.data / "stack.json").exists()
    assert (stack.data / "postgres" / "PG_VERSION").exists()
    assert "database system is shut down" in (stack.data / "logs" / "postgres.log").read_text()
    assert "No stack is running" in stack.run("down")


def test_up_without_a_configuration_names_the_file_it_looked_for(make: Callable[..., Stack]) -> None:
    lost = make()
    lost.config = lost.root / "nowhere.toml"
    assert f"there is no such file ({lost.config})" in lost.up(code=1)
