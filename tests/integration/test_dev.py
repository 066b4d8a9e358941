"""`triptych dev` on real servers: what is saved takes effect, what is wrong is named and changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych.embedded.control import ask
from triptych.embedded.layout import Layout

TRIPTYCH = Path(sys.executable).with_name("triptych")
DEADLINE_S = 120.0

CONFIG = """
[services.executor]
module = "triptych.executor"
migrations = ["triptych.executor:migrations"]

[tools.weather]
adapter = "weather:tool"
path = "my-tools"
"""

PLAYBOOK = """
name: greet
goal: Greet somebody.
input: {type: object}
tools: [weather.greet]
plan:
  pattern: fixed
  steps:
    - id: greet
      operation: weather.greet
      arguments: {who: Ana}
"""

ANOTHER = '''

@tool.operation(effect=Effect.READ)
async def forecast(city: str) -> str:
    """The weather."""
    return f"rain in {city}"
'''


class Dev:
    """A running `triptych dev`, what it has said, and the folder that it watches."""

    process: subprocess.Popen[str]

    def __init__(self, folder: Path, where: tuple[str, ...]) -> None:
        self.folder, self._where, self._said = folder, where, folder / "said.txt"

    def start(self) -> None:
        with self._said.open("w") as out:
            self.process = subprocess.Popen(
                [TRIPTYCH, "dev", "--data", "data", *self._where],
                cwd=self.folder, stdout=out, stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "200"},
            )  # fmt: skip

    def says(self, words: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while words not in (told := self._said.read_text()):
            assert self.process.poll() is None, told
            assert time.monotonic() < deadline, f"{words!r} is not in:\n{told}"
            time.sleep(0.05)

    def pids(self) -> dict[str, int]:
        processes = ask(Layout.existing(self.folder / "data"), {"do": "status"})["processes"]
        return {process["name"]: process["pid"] for process in processes}


@pytest.fixture(scope="module")
def dev(servers, database, prefix, tmp_path_factory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("dev")
    (folder / "triptych.toml").write_text(CONFIG)
    (folder / "playbooks").mkdir()
    (folder / "playbooks" / "greet.yaml").write_text(PLAYBOOK)
    subprocess.run([TRIPTYCH, "new", "tool", "weather", "--dir", folder / "my-tools"], check=True, capture_output=True)
    dev = Dev(folder, ("--kafka", servers.kafka, "--postgres", database.owner_dsn, "--prefix", prefix))
    dev.start()
    try:
        dev.says("watching triptych.toml, playbooks and 1 tools")
        yield dev
    finally:
        dev.process.send_signal(signal.SIGINT)
        dev.process.wait(60)


def test_a_saved_tool_is_restarted_alone_and_what_it_offers_now_is_told(dev: Dev) -> None:
    before = dev.pids()
    with (dev.folder / "my-tools" / "weather.py").open("a") as module:
        module.write(ANOTHER)
    dev.says("+ weather.forecast")
    after = dev.pids()
    assert after["weather"] != before["weather"]
    assert after["executor"] == before["executor"]


def test_a_tool_that_does_not_load_is_named_and_the_next_save_mends_it(dev: Dev) -> None:
    module = dev.folder / "my-tools" / "weather.py"
    good = module.read_text()
    module.write_text("import nothing_of_this_name\n")
    dev.says("nothing_of_this_name")
    module.write_text(good.replace("-> str:", "-> int:").replace('f"rain in {city}"', "7"))
    dev.says("~ weather.forecast")


def test_a_playbook_is_checked_and_taken_over_without_a_restart(dev: Dev) -> None:
    executor = dev.pids()["executor"]
    playbook = dev.folder / "playbooks" / "greet.yaml"
    playbook.write_text(PLAYBOOK.replace("pattern: fixed", "pattern: circular"))
    dev.says("it is not said who plans")
    assert dev.pids()["executor"] == executor
    playbook.write_text(PLAYBOOK.replace("weather", "whether"))
    dev.says("there is no tool `whether`")
    assert dev.pids()["executor"] == executor
    playbook.write_text(PLAYBOOK.replace("Greet somebody", "Greet Ana"))
    dev.says("new tasks get greet@")
    assert dev.pids()["executor"] == executor


def test_a_tool_that_is_added_to_the_configuration_starts(dev: Dev) -> None:
    (dev.folder / "triptych.toml").write_text(
        f'{CONFIG}\n[tools.echo]\nadapter = "triptych.tools.adapters.echo:tool"\n'
    )
    dev.says("+ echo.echo")
    (dev.folder / "triptych.toml").write_text(CONFIG)
    dev.says("echo: removed")
    assert "echo" not in dev.pids()


def test_a_tool_that_is_taken_away_is_missed_by_the_playbooks_that_use_it(dev: Dev) -> None:
    (dev.folder / "triptych.toml").write_text(CONFIG.replace("tools.weather", "tools.climate"))
    dev.says("there is no tool `weather`")
    (dev.folder / "triptych.toml").write_text(CONFIG)
    dev.says("climate: removed")


def test_a_service_is_restarted_by_hand(dev: Dev) -> None:
    before = dev.pids()["executor"]
    subprocess.run([TRIPTYCH, "restart", "executor", "--data", "data"], cwd=dev.folder, check=True, capture_output=True)
    assert dev.pids()["executor"] != before


def test_ctrl_c_stops_the_stack_that_it_started(dev: Dev) -> None:
    assert json.loads((dev.folder / "data" / "stack.json").read_text())["services"]
    dev.process.send_signal(signal.SIGINT)
    dev.process.wait(60)
    assert not (dev.folder / "data" / "stack.json").exists()


def test_it_ends_when_the_stack_is_stopped_elsewhere_and_whoever_stopped_it_need_not_wait_for_that(dev: Dev) -> None:
    dev.start()
    dev.says("watching triptych.toml, playbooks and 1 tools")
    down = subprocess.run(
        [TRIPTYCH, "down", "--data", "data"], cwd=dev.folder, check=True, capture_output=True, text=True
    )
    assert "Stopped." in down.stderr
    assert dev.process.wait(60) == 0
    assert "somebody else has stopped the stack" in (dev.folder / "said.txt").read_text()
