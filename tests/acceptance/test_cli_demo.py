"""The story of the README: a demo from nothing, then a look at what it did, and what a person does next."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}


class Cli:
    """The command as a user has it, on one data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name("triptych")
        return subprocess.run(
            [script, *arguments, "--data", self.data],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[tuple[Cli, list[dict[str, Any]]]]:
    cli = Cli(tmp_path_factory.mktemp("demo") / "data")
    try:
        yield cli, cli.json("demo", "--keep")
    finally:
        cli.run("down")


def test_every_ticket_has_an_outcome_and_all_kinds_of_outcome_are_seen(demo) -> None:
    _cli, lines = demo
    assert len(lines) >= 40
    statuses = Counter(line["status"] for line in lines)
    assert "waiting" not in statuses
    assert statuses["succeeded"] >= 20
    assert all(statuses[status] >= 1 for status in ("escalated", "rejected", "duplicate", "dead letter")), statuses
    assert all(line["outcome"]["usage"]["tool_calls"] > 0 for line in lines if line["status"] == "succeeded")


def test_what_the_knowledge_base_cannot_answer_goes_to_a_person(demo) -> None:
    _cli, lines = demo
    codes = Counter(line["outcome"]["reason"]["code"] for line in lines if line["status"] == "escalated")
    assert codes["low_confidence"] >= 3
    assert codes["tool_unavailable"] >= 1


def test_one_playbook_runs_on_an_api_an_mcp_server_and_the_knowledge_base(demo) -> None:
    cli, lines = demo
    called = {
        line["outcome"]["task_id"]: line for line in lines if (line["outcome"] or {}).get("playbook") == "call-back"
    }
    assert called["call-stranger"]["outcome"]["reason"]["code"] == "unknown_customer"
    output = called["call-osterfeld"]["outcome"]["output"]
    assert output["customer"] == "Dana Osterfeld"
    assert len(output["articles"]) == 2
    assert {output["note"], called["call-quillfeather"]["outcome"]["output"]["note"]} == {"N-1", "N-2"}
    events = cli.json("trace", "call-osterfeld")["events"]
    (plan,) = [event["data"] for event in events if event["type"] == "PlanAccepted"]
    operations = [step["operation"] for step in plan["plan"]["steps"]]
    assert sorted(operations) == ["calendar.find_slot", "crm.create_note", "crm.find_customers", "kb.search"]


def test_tools_are_listed_as_the_stack_has_announced_them(demo) -> None:
    cli, _lines = demo
    listed = {tool["tool"]: tool["operations"] for tool in cli.json("tools", "ls")}
    assert {"kb", "helpdesk", "model", "crm", "calendar"} <= set(listed)
    (contract,) = cli.json("tools", "show", "crm.create_note")
    assert contract["effect"] == "idempotent"


def test_runs_show_the_same_as_the_outcomes(demo) -> None:
    cli, lines = demo
    runs = cli.json("runs", "--status", "succeeded", "--limit", "1000")
    assert {run["task_id"] for run in runs} == {
        line["outcome"]["task_id"] for line in lines if line["status"] == "succeeded"
    }


def test_a_trace_shows_each_attempt_of_a_call_that_failed_at_first(demo) -> None:
    cli, lines = demo
    usages = {line["outcome"]["task_id"]: line["outcome"]["usage"] for line in lines if line["status"] == "succeeded"}
    task_id = max(usages, key=lambda task: usages[task]["tool_calls"] - usages[task]["steps"])
    events = cli.json("trace", task_id)["events"]
    calls = [event["data"] for event in events if event["type"] == "CallRequested"]
    assert len(calls) == usages[task_id]["tool_calls"]
    assert max(call["attempt"] for call in calls) > 1
    assert f"attempt {max(call['attempt'] for call in calls)}" in cli.run("trace", task_id).stdout


def test_a_person_ends_an_escalated_run_and_it_gets_its_final_outcome(demo) -> None:
    cli, _lines = demo
    run = cli.json("runs", "--status", "escalated", "--reason", "tool_unavailable", "--limit", "1")[0]
    told = cli.json("abort", run["run_id"][:30], "--note", "the vendor is gone", "--principal", "user:test")
    assert told["run"]["status"] == "failed"
    outcomes = [json.loads(line) for line in cli.run("outcomes", "--json").stdout.splitlines()]
    assert [o["final"] for o in outcomes if o.get("run_id") == run["run_id"]] == [False, True]


def test_topics_carry_what_was_done(demo) -> None:
    cli, lines = demo
    messages = {row["name"].partition(".")[2]: row["messages"] for row in cli.json("topics")}
    assert messages["tasks"] >= len(lines), "a duplicate may be forwarded to the partition of the run it repeats"
    assert messages["calls.helpdesk"] > 0


def test_the_same_tickets_again_start_nothing_new(demo) -> None:
    cli, lines = demo
    runs = len(cli.json("runs", "--limit", "1000"))
    tickets = ROOT / "examples/demo/tickets.jsonl"
    again = cli.json("submit", str(tickets), "--wait", code=4)
    anonymous = sum(
        line["status"] == "succeeded" and line["outcome"]["task_id"].startswith("triptych.") for line in lines
    )
    assert (
        Counter(line["status"] for line in again)["succeeded"] == Counter(line["status"] for line in lines)["succeeded"]
    )
    assert len(cli.json("runs", "--limit", "1000")) == runs + anonymous


async def test_an_mcp_client_starts_a_task_watches_it_and_gets_its_outcome(demo) -> None:
    cli, _lines = demo
    script = str(Path(sys.executable).with_name("triptych"))
    server = StdioServerParameters(command=script, args=["mcp", "serve", "--data", str(cli.data)], cwd=ROOT)
    told: list[str | None] = []

    async def tell(_progress: float, _total: float | None, message: str | None) -> None:
        told.append(message)

    async with Client(server) as client:

        async def ask(tool: str, progress_callback: Any = None, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments, progress_callback=progress_callback)
            assert not result.is_error, result
            return result.structured_content

        playbooks = {each["name"]: each for each in (await ask("list_playbooks"))["playbooks"]}
        assert "ticket_id" in playbooks["support-ticket"]["input"]["properties"]
        ticket = {"ticket_id": "T-mcp-1", "customer": "Ana", "subject": "Refund", "body": "How do I get a refund?"}
        started = await ask("start_task", playbook="support-ticket", input=ticket, task_id="mcp-1")
        outcome = await ask("get_outcome", tell, task_id="mcp-1", wait_s=120)
        status = await ask("task_status", task_id="mcp-1")
        unheard_of = await ask("task_status", task_id="nobody-1")
        not_yet = await ask("get_outcome", task_id="nobody-1", wait_s=0.5)
        refused = await client.call_tool("start_task", {"playbook": "No Such", "input": {}})
    assert started == {"task_id": "mcp-1"}
    assert outcome["answered"] in {"final", "needs_a_person"}
    assert outcome["status"] == status["status"]
    assert {step["operation"] for step in status["steps"]} >= {"helpdesk.acknowledge", "kb.search"}
    assert any(each and "steps done" in each for each in told)
    assert unheard_of["status"] == "unknown"
    assert not_yet["answered"] == "not_yet"
    assert refused.is_error
    assert "playbook" in refused.content[0].text


async def test_the_same_over_http(demo) -> None:
    cli, _lines = demo
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(sys.executable).with_name("triptych")
    server = await asyncio.create_subprocess_exec(
        script, "mcp", "serve", "--data", cli.data, "--port", str(port), cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 60
        while not await asyncio.to_thread(answers, port):
            assert time.monotonic() < deadline
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            outcome = await client.call_tool("get_outcome", {"task_id": "mcp-1"})
        assert outcome.structured_content["answered"] in {"final", "needs_a_person"}
    finally:
        server.terminate()
        await server.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
