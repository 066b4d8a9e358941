"""The README as a newcomer follows it: its tool, its playbook and its aiokafka program, as they are written there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM_TIMEOUT_S = 120


def block(language: str, beginning: str) -> str:
    """The one block of the README that contains `beginning`."""
    page = (ROOT / "README.md").read_text("utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (one,) = [text for text in found if beginning in text]
    return one


class Newcomer:
    """Somebody in a directory with the files that the README says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for folder in ("playbooks", "tools"):
            shutil.copytree(ROOT / folder, directory / folder)
        (directory / "playbooks/order-status.yaml").write_text(block("yaml", "order-status"))
        (directory / "my-tools").mkdir()
        (directory / "my-tools/shop.py").write_text(block("python", 'Tool("shop")'))
        configuration = (ROOT / "triptych.toml").read_text("utf-8")
        (directory / "triptych.toml").write_text(configuration + block("toml", "[tools.shop]"))

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def triptych(self, *arguments: str) -> str:
        return self.run(Path(sys.executable).with_name("triptych"), *arguments)


@pytest.fixture(scope="module")
def newcomer(servers: Any, prefix: str, database: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"))
    try:
        newcomer.triptych("up", "--prefix", prefix, "--kafka", servers.kafka, "--postgres", database.owner_dsn)
        yield newcomer
    finally:
        newcomer.triptych("down")


def test_a_task_from_plain_aiokafka_comes_back_as_an_outcome(newcomer: Newcomer) -> None:
    (newcomer.directory / "hello.py").write_text(block("python", "AIOKafkaProducer"))
    answer = newcomer.run(sys.executable, "hello.py")
    assert answer.startswith("succeeded {")
    assert "'ticket_id': 'T-1'" in answer


@pytest.mark.parametrize(("order", "status"), [("A-1", "succeeded"), ("A-9", "escalated")])
def test_a_tool_of_ones_own_answers_a_playbook_of_ones_own(newcomer: Newcomer, order: str, status: str) -> None:
    submitted = newcomer.triptych(
        *("submit", "--playbook", "order-status", "--input", json.dumps({"order": order}), "--wait", "--json")
    )
    (line,) = json.loads(submitted)
    assert line["status"] == status
    if status == "succeeded":
        assert line["outcome"]["output"] == {"state": "packed"}


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
async def test_the_same_from_a_shell_with_kcat(newcomer: Newcomer, prefix: str, eventually: Any) -> None:
    stack = json.loads((newcomer.directory / ".triptych/stack.json").read_text())
    script = block("sh", "kcat").replace("triptych.", f"{prefix}.")
    newcomer.run("env", f"KAFKA={stack['kafka']}", "sh", "-eu", "-c", script)

    def has_outcome() -> bool:
        lines = newcomer.triptych("outcomes", "--json").splitlines()
        return any(json.loads(line)["task_id"] == "hello-2" for line in lines)

    await eventually(has_outcome, within_s=60)
