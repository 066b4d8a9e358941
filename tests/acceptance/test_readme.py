"""The README and the guide to an API as a newcomer follows them: what they say is done as it is written there."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM_TIMEOUT_S = 120


GUIDE = "docs/how-to/add-an-api.md"
QUICKSTART = "docs/quickstart.md"


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def block(language: str, beginning: str, page: str = "README.md") -> str:
    """The one block of a page that contains `beginning`."""
    (one,) = [text for text in blocks(language, page) if beginning in text]
    return one


class Guide:
    """The commands of the guide to an API, with a port of their own, before the stack is started and after."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        text = "".join(blocks("console", GUIDE)).replace("8899", port)
        lines = re.findall(r"^\$ (.+)$", text, re.MULTILINE)
        up = lines.index("triptych up")
        self.server, self.before, self.after = lines[0].removesuffix(" &"), lines[1:up], lines[up + 1 :]
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **dict(line.removeprefix("export ").split("=", 1) for line in self.before if line.startswith("export ")),
        }
        self._directory = directory
        self._url = f"http://127.0.0.1:{port}/health"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The API that the guide starts first."""
        with subprocess.Popen(["sh", "-c", f"exec env {self.server}"], env=self.environment) as process:
            try:
                deadline = time.monotonic() + PROGRAM_TIMEOUT_S
                while not self._answers():
                    assert process.poll() is None, self.server
                    assert time.monotonic() < deadline, self.server
                    time.sleep(0.05)
                yield
            finally:
                process.kill()

    def follow(self, lines: list[str]) -> str:
        """What these commands print, one after the other in one shell."""
        script = "set -e\n" + "\n".join(lines)
        done = subprocess.run(
            ["sh", "-c", script], cwd=self._directory, env=self.environment, capture_output=True, text=True,
            timeout=PROGRAM_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _answers(self) -> bool:
        try:
            return httpx.get(self._url).is_success
        except httpx.TransportError:
            return False


class Newcomer:
    """Somebody in a directory with the files that the README says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guide = Guide(directory)
        assert "`triptych init --demo`" in (ROOT / "README.md").read_text("utf-8")
        self.triptych("init", "--demo")
        (directory / "playbooks/order-status.yaml").write_text(block("yaml", "order-status"))
        (directory / "my-tools").mkdir()
        (directory / "my-tools/shop.py").write_text(block("python", 'Tool("shop")'))
        with (directory / "triptych.toml").open("a", encoding="utf-8") as configuration:
            configuration.write(block("toml", "[tools.shop]"))
        (directory / "playbooks/note.yaml").write_text(block("yaml", "name: note", GUIDE))

    def run(self, *command: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.directory, env=self.guide.environment, capture_output=True, text=True,
            timeout=PROGRAM_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def triptych(self, *arguments: str, code: int = 0) -> str:
        return self.run(Path(sys.executable).with_name("triptych"), *arguments, code=code)


@pytest.fixture(scope="module")
def newcomer(servers: Any, prefix: str, database: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"))
    with newcomer.guide.serving():
        try:
            newcomer.guide.follow(newcomer.guide.before)
            newcomer.triptych("up", "--prefix", prefix, "--kafka", servers.kafka, "--postgres", database.owner_dsn)
            yield newcomer
        finally:
            newcomer.triptych("down")


def test_a_task_from_plain_aiokafka_comes_back_as_an_outcome(newcomer: Newcomer) -> None:
    (newcomer.directory / "hello.py").write_text(block("python", "AIOKafkaProducer"))
    answer = newcomer.run(sys.executable, "hello.py")
    assert answer.startswith("succeeded {")
    assert "'ticket_id': 'T-1'" in answer


@pytest.mark.parametrize(("order", "status", "code"), [("A-1", "succeeded", 0), ("A-9", "escalated", 3)])
def test_a_tool_of_ones_own_answers_a_playbook_of_ones_own(
    newcomer: Newcomer, order: str, status: str, code: int
) -> None:
    submitted = newcomer.triptych(
        *("submit", "--playbook", "order-status", "--input", json.dumps({"order": order}), "--wait", "--json"),
        code=code,
    )
    (line,) = json.loads(submitted)
    assert line["status"] == status
    if status == "succeeded":
        assert line["outcome"]["output"] == {"state": "packed"}


def test_the_guide_to_an_api_ends_with_a_note_in_the_crm(newcomer: Newcomer) -> None:
    added = (newcomer.directory / "triptych.toml").read_text()
    assert added.count("[tools.accounts]") == 1
    told = newcomer.guide.follow(newcomer.guide.after)
    assert "accounts.create_note" in told
    assert "setAccountManager" not in told
    assert "succeeded" in told


def test_the_quickstart_ends_with_a_run_that_a_person_has_ended(newcomer: Newcomer) -> None:
    lines = re.findall(r"^\$ (.+)$", "".join(blocks("console", QUICKSTART)), re.MULTILINE)
    assert (lines[0], lines[-1]) == ("triptych up", "triptych down")
    told = [newcomer.run("sh", "-c", line, code=_exit_code(line)) for line in lines[1:-1]]
    by_command = dict(zip(lines[1:-1], told, strict=True))
    assert "low_confidence" in by_command["triptych runs --status escalated"]
    assert "Answered by telephone" in by_command["triptych trace second"]


def _exit_code(line: str) -> int:
    stated = re.search(r"# exit code (\d+)$", line)
    return int(stated[1]) if stated else 0


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
async def test_the_same_from_a_shell_with_kcat(newcomer: Newcomer, prefix: str, eventually: Any) -> None:
    stack = json.loads((newcomer.directory / ".triptych/stack.json").read_text())
    script = block("sh", "kcat").replace("triptych.", f"{prefix}.")
    newcomer.run("env", f"KAFKA={stack['kafka']}", "sh", "-eu", "-c", script)

    def has_outcome() -> bool:
        lines = newcomer.triptych("outcomes", "--json").splitlines()
        return any(json.loads(line)["task_id"] == "hello-2" for line in lines)

    await eventually(has_outcome, within_s=60)
