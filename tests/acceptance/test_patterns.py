"""Each pattern of docs/discussions/patterns.md, by its playbook, in a stack as `triptych up` starts it; and then the audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
QUESTION = "How do I reset my password?"


class Stack:
    """A stack of its own, and the command as a user has it."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name("triptych")
        command = [script, *arguments, "--data", self.data]
        return subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
        )

    def submit(self, playbook: str, task_id: str, **input_: Any) -> dict[str, Any]:
        """Submit one task, and its outcome."""
        named = ("--playbook", playbook, "--task-id", task_id, "--input", json.dumps(input_))
        done = self.run("submit", *named, "--wait", "--timeout-s", "120", "--json")
        assert done.stdout, done.stderr
        (line,) = json.loads(done.stdout)
        assert line["status"] == "succeeded", line["outcome"]["reason"]
        outcome: dict[str, Any] = line["outcome"]
        return outcome


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("patterns") / "data")
    try:
        started = stack.run("up")
        assert started.returncode == 0, started.stderr
        yield stack
        # Every test has run by now: whatever they left behind must agree.
        audit = stack.run("verify")
        assert audit.returncode == 0, audit.stdout
    finally:
        stack.run("down")


def test_fan_out_and_fan_in(stack: Stack) -> None:
    tickets = [
        {"ticket_id": f"T-fan-{number}", "subject": QUESTION, "body": "I cannot log in."} for number in range(20)
    ]
    outcome = stack.submit("queue-triage", "fan", tickets=tickets)
    assert (outcome["output"]["tagged"], outcome["output"]["not_understood"]) == (20, 0)
    told = stack.run("trace", "fan").stdout
    assert "fans out over 20 items" in told
    assert "20 branches have nothing unusual to tell" in told


def test_handoff(stack: Stack) -> None:
    message = {"customer": "Ana", "subject": QUESTION, "body": "I forgot it, and the link does not come."}
    outcome = stack.submit("front-desk", "desk", ticket_id="T-desk", **message)
    assert outcome["output"]["handled_by"] == "support-ticket"
    child = json.loads(stack.run("trace", outcome["output"]["run_id"], "--json").stdout)
    assert child["run"]["parent_run_id"] == outcome["run_id"]
    assert outcome["usage"]["tool_calls"] == 2 + child["run"]["tool_calls"]
    assert f"children  {outcome['output']['run_id']}" in stack.run("trace", "desk").stdout


def test_maker_and_checker(stack: Stack) -> None:
    outcome = stack.submit("checked-reply", "checked", ticket_id="T-checked", subject=QUESTION, body="I forgot it.")
    assert "Our status page shows every incident" in outcome["output"]["draft"]
    assert "round 2 begins" in stack.run("trace", "checked").stdout


def test_react(stack: Stack) -> None:
    outcome = stack.submit("research", "research", question=QUESTION)
    assert outcome["output"]["citations"]
    assert outcome["usage"]["steps"] == 2


def test_adaptive_manager(stack: Stack) -> None:
    outcome = stack.submit("incident-manager", "manager", question=QUESTION, ticket_ids=["T-fan-1", "T-fan-2"])
    assert outcome["output"]["tickets"] == 2
    assert outcome["output"]["citations"]
