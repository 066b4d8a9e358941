"""The client and the command line against a real broker, database and executor; the test is planner and tool."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from executor_harness import ECHO, announcement, plan_of

import triptych.executor
from triptych.client import (
    Client,
    KafkaUnreachableError,
    NoOutcomeError,
    NoStackError,
    Operator,
    RunAmbiguousError,
    RunFilter,
    RunNotFoundError,
    TooLargeError,
    TopicMissingError,
)
from triptych.schemas import ControlAction, DeadLetter, Outcome, OutcomeStatus, topics
from triptych.schemas.codec import InvalidJson

PLAYBOOK = """
name: greet
goal: Greet somebody.
input:
  type: object
  required: [name]
  properties: {name: {type: string}}
tools: [echo.echo]
plan:
  pattern: fixed
  steps:
    - id: say
      operation: echo.echo
      arguments: {value: "Hello ${{ input.name }}"}
      retry: {max_attempts: 1}
output: {said: "${{ steps.say.data.value }}"}
"""
MIGRATIONS = Path(triptych.executor.__file__).with_name("migrations")


class Stack:
    """Addresses, and the two workers that the test plays. The tool refuses to greet anybody called Nobody."""

    def __init__(self, kafka: str, prefix: str, dsn: str) -> None:
        self.kafka, self.prefix, self.dsn = kafka, prefix, dsn
        self.refusing = True

    async def work(self) -> None:
        nouns = (topics.PLAN_REQUESTS, "calls.echo")
        consumer = AIOKafkaConsumer(
            *(f"{self.prefix}.{noun}" for noun in nouns), bootstrap_servers=self.kafka, auto_offset_reset="earliest"
        )
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka)
        async with consumer, producer:
            offered = announcement(ECHO)
            await producer.send_and_wait(f"{self.prefix}.{topics.CONTRACTS}", offered, key=b"echo", partition=0)
            async for record in consumer:
                request = json.loads(record.value)
                noun, answer = self.answer(request, record.value)
                reply = {name: request[name] for name in ("request_id", "run_id", "tenant")} | answer
                topic = f"{self.prefix}.{noun}"
                await producer.send_and_wait(topic, json.dumps(reply).encode(), partition=request["partition"])

    def answer(self, request: dict[str, Any], raw: bytes) -> tuple[str, dict[str, Any]]:
        if "spec" in request:
            return topics.PLANS, {"plan": plan_of(raw, ECHO)}
        if self.refusing and "Nobody" in request["arguments"]["value"]:
            error = {"code": "forbidden", "message": "nobody is not greeted"}
            return topics.RESULTS, {"result": {"status": "error", "error": error}}
        return topics.RESULTS, {"result": {"status": "ok", "data": request["arguments"]}}

    def triptych(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command as a user would, and give its output."""
        command, *rest = arguments
        where = {"--kafka": self.kafka, "--prefix": self.prefix}
        reading = {"--postgres": self.dsn}
        options = reading if command in {"runs", "trace"} else where
        if command in {"cancel", "resume", "skip", "abort"}:
            options = where | reading
        named = [text for pair in options.items() for text in pair]
        script = Path(sys.executable).with_name("triptych")
        return subprocess.run(
            [script, command, *rest, *named], capture_output=True, text=True, timeout=60, check=False, env=QUIET
        )

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self.triptych, *arguments)

    async def json(self, *arguments: str, code: int = 0) -> Any:
        done = await self.run(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


QUIET = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
async def stack(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[Stack]:
    await create_topics(*(topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS), "calls.echo")
    prepared = await asyncio.to_thread(database.prepare, {"executor": (MIGRATIONS,)})
    folder = tmp_path_factory.mktemp("playbooks")
    (folder / "greet.yaml").write_text(PLAYBOOK)
    environment = os.environ | {
        "TRIPTYCH_KAFKA": servers.kafka,
        "TRIPTYCH_POSTGRES": prepared.services["executor"],
        "TRIPTYCH_TOPIC_PREFIX": prefix,
        "TRIPTYCH_INSTANCE": "executor-1",
        "TRIPTYCH_PLAYBOOKS": str(folder),
    }
    log = (folder / "executor.log").open("wb")
    command = [sys.executable, "-m", "triptych.executor"]
    process = await asyncio.to_thread(subprocess.Popen, command, env=environment, stderr=log)
    stack = Stack(servers.kafka, prefix, prepared.operator)
    working = asyncio.create_task(stack.work())
    yield stack
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 20) == 0
    log.close()


@pytest.fixture
async def client(stack) -> AsyncIterator[Client]:
    async with Client(stack.kafka, stack.prefix) as client:
        yield client


# The client


async def test_a_task_is_submitted_and_its_outcome_waited_for(client) -> None:
    task_id = await client.submit("greet", {"name": "Ana"}, tenant="acme", principal="user:ana")
    outcome = await client.wait(task_id, tenant="acme", timeout_s=30)
    assert outcome.status is OutcomeStatus.SUCCEEDED
    assert outcome.output == {"said": "Hello Ana"}


async def test_a_run_goes_on_with_the_trace_of_its_client(stack, client) -> None:
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    await client.submit("greet", {"name": "Tia"}, task_id="tia-1", traceparent=trace)
    await client.wait("tia-1", timeout_s=30)
    told = await stack.json("trace", "tia-1")
    assert told["events"][0]["data"]["traceparent"] == trace


async def test_waiting_finds_an_outcome_that_came_before(client) -> None:
    task_id = await client.submit("greet", {"name": "Ben"})
    first = await client.wait(task_id, timeout_s=30)
    assert await client.wait(task_id, timeout_s=30) == first


async def test_the_same_task_id_twice_is_one_run(client) -> None:
    for _ in range(2):
        await client.submit("greet", {"name": "Cid"}, task_id="cid-1")
    first = await client.wait("cid-1", timeout_s=30)
    async with client.feed(from_start=True, to_end=True) as feed:
        assert [m.run_id async for m in feed if isinstance(m, Outcome) and m.task_id == "cid-1"] == [first.run_id]


async def test_waiting_for_what_never_comes_ends_with_an_error_that_says_what_to_do(client) -> None:
    with pytest.raises(NoOutcomeError, match="triptych trace no-such-task"):
        await client.wait("no-such-task", timeout_s=0.5)


async def test_a_feed_that_is_opened_before_submitting_misses_nothing(client) -> None:
    async with client.feed(dead_letters=True) as feed:
        [receipt] = await client.submit_raw([b"this is not JSON"])
        async with asyncio.timeout(120):
            async for message in feed:
                if isinstance(message, DeadLetter):
                    assert (message.topic, message.partition, message.offset) == (
                        receipt.topic,
                        receipt.partition,
                        receipt.offset,
                    )
                    break


async def test_an_escalation_is_an_outcome_that_is_not_final_and_an_abort_makes_it_final(client, stack) -> None:
    task_id = await client.submit("greet", {"name": "Nobody"})
    outcome = await client.wait(task_id, final=False, timeout_s=30)
    assert (outcome.status, outcome.final) == (OutcomeStatus.ESCALATED, False)
    async with Operator.connect(stack.dsn) as operator:
        run = await operator.run(task_id)
    await client.control(run.run_id, run.partition, ControlAction.ABORT, principal="user:test", note="enough")
    final = await client.wait(task_id, timeout_s=30)
    assert (final.status, final.final) == (OutcomeStatus.FAILED, True)


async def test_a_task_that_is_too_large_for_kafka_is_not_to_be_sent_again(client) -> None:
    with pytest.raises(TooLargeError, match=r"tasks: a message of 9,\d{3},\d{3} bytes .* where a tool can fetch it"):
        await client.submit("greet", {"name": "x" * 9_000_000})


@pytest.mark.parametrize("value", [float("nan"), "\ud83d", 10**1_000, json.loads("[" * 101 + "]" * 101)])
async def test_a_task_that_json_cannot_carry_is_refused_before_it_is_sent(client, value) -> None:
    with pytest.raises(InvalidJson, match=r"at /input/x|at byte"):
        await client.submit("any", {"x": value})


async def test_a_broker_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(KafkaUnreachableError, match=r"127\.0\.0\.1:1 does not answer"):
        async with Client("127.0.0.1:1"):
            pass


async def test_a_prefix_that_is_not_there_is_one_clear_error(stack) -> None:
    with pytest.raises(TopicMissingError, match="check --prefix"):
        async with Client(stack.kafka, "nonesuch"):
            pass


@pytest.mark.parametrize(
    "command", ["topics", "tools ls", "tools show crm.find", "outcomes", "submit --playbook greet"]
)
async def test_a_prefix_that_is_not_there_is_one_line_of_every_command(stack, command: str) -> None:
    asked = [
        Path(sys.executable).with_name("triptych"),
        *command.split(),
        "--kafka",
        stack.kafka,
        "--prefix",
        "nonesuch",
    ]
    done = await asyncio.to_thread(
        subprocess.run, asked, capture_output=True, text=True, timeout=60, check=False, env=QUIET
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "nonesuch." in line
    assert "check --prefix" in line


def test_a_directory_without_a_stack_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(NoStackError, match="triptych up"):
        Client.from_stack(tmp_path)


async def test_a_stack_file_leads_to_its_stack(stack, tmp_path) -> None:
    written = {"kafka": stack.kafka, "postgres": stack.dsn, "topic_prefix": stack.prefix, "services": []}
    (tmp_path / "stack.json").write_text(json.dumps(written))
    async with Client.from_stack(tmp_path) as client:
        await client.wait(await client.submit("greet", {"name": "Dan"}), timeout_s=30)


async def test_a_run_is_found_by_its_id_by_the_beginning_of_it_and_by_its_task(client, stack) -> None:
    outcome = await client.wait(await client.submit("greet", {"name": "Eve"}, task_id="eve-1"), timeout_s=30)
    async with Operator.connect(stack.dsn) as operator:
        for reference in (str(outcome.run_id), str(outcome.run_id).replace("-", "")[:30], "eve-1"):
            assert (await operator.run(reference)).run_id == outcome.run_id
        with pytest.raises(RunNotFoundError):
            await operator.run("eve-2")


async def test_a_task_id_in_two_tenants_is_ambiguous(client, stack) -> None:
    for tenant in ("acme", "globex"):
        await client.submit("greet", {"name": "Flo"}, task_id="flo-1", tenant=tenant)
        await client.wait("flo-1", tenant=tenant, timeout_s=30)
    async with Operator.connect(stack.dsn) as operator:
        with pytest.raises(RunAmbiguousError, match=r"acme.*|globex.*"):
            await operator.run("flo-1")


async def test_runs_are_filtered(client, stack) -> None:
    await client.wait(await client.submit("greet", {"name": "Gus"}, tenant="filtered"), tenant="filtered", timeout_s=30)
    async with Operator.connect(stack.dsn) as operator:
        assert len(await operator.runs(RunFilter(tenant="filtered", statuses=("succeeded",)))) == 1
        assert await operator.runs(RunFilter(tenant="filtered", statuses=("failed",))) == []


# The command line


async def test_lines_of_a_file_travel_as_they_are_and_each_is_accounted_for(stack, tmp_path) -> None:
    lines = [
        {"task_id": "f-1", "playbook": "greet", "input": {"name": "Hal"}},
        {"task_id": "f-2", "playbook": "greet", "input": {"name": "Nobody"}},
        {"task_id": "f-1", "playbook": "greet", "input": {"name": "Hal"}},
        {"task_id": "f-4", "playbook": "none", "input": {}},
        {"playbook": "greet", "input": {"name": "Ida"}},
        [1, 2],
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n{ not json\n\n")
    told = await stack.json("submit", str(file), "--wait", "--timeout-s", "40", code=4)
    statuses = ["succeeded", "escalated", "duplicate", "rejected", "succeeded", "dead letter", "dead letter"]
    assert [line["status"] for line in told] == statuses
    again = await stack.json("submit", str(file), "--wait", "--timeout-s", "40", code=4)
    assert [line["status"] for line in again] == statuses
    assert again[0]["outcome"]["run_id"] == told[0]["outcome"]["run_id"]


async def test_one_task_is_submitted_from_options_and_shown_as_a_table(stack) -> None:
    done = await stack.run("submit", "--playbook", "greet", "--input", '{"name": "Jo"}', "--task-id", "jo-1", "--wait")
    assert done.returncode == 0, done.stderr
    assert "jo-1" in done.stdout
    assert "succeeded" in done.stdout


async def test_outcomes_are_json_lines(stack, client) -> None:
    await client.wait(await client.submit("greet", {"name": "Kai"}, task_id="kai-1"), timeout_s=30)
    done = await stack.run("outcomes", "--json")
    assert any(json.loads(line)["task_id"] == "kai-1" for line in done.stdout.splitlines())


async def test_a_trace_tells_every_event_in_order(stack, client) -> None:
    await client.wait(await client.submit("greet", {"name": "Lee"}, task_id="lee-1"), timeout_s=30)
    told = await stack.json("trace", "lee-1")
    assert [event["seq"] for event in told["events"]] == list(range(1, len(told["events"]) + 1))
    types = [event["type"] for event in told["events"]]
    assert types[0] == "RunAdmitted"
    assert types[-1] == "RunEnded"
    done = await stack.run("trace", "lee-1")
    at = [
        done.stdout.index(words) for words in ("becomes a run", "for revision 1", "-> echo.echo", "<- ok", "SUCCEEDED")
    ]
    assert at == sorted(at)


async def test_an_escalated_run_is_resumed_by_a_person(stack, client) -> None:
    await client.submit("greet", {"name": "Nobody"}, task_id="nobody-1")
    await client.wait("nobody-1", final=False, timeout_s=30)
    assert [run["task_id"] for run in await stack.json("runs", "--status", "escalated", "--limit", "1")] == ["nobody-1"]
    stack.refusing = False
    try:
        done = await stack.run("resume", "nobody-1", "--note", "try again", "--principal", "user:test")
        assert done.returncode == 0, done.stderr
        assert (await client.wait("nobody-1", timeout_s=30)).status is OutcomeStatus.SUCCEEDED
    finally:
        stack.refusing = True


async def test_a_task_whose_run_waits_for_a_person_ends_a_submission_with_3(stack) -> None:
    told = await stack.json("submit", "--playbook", "greet", "--input", '{"name": "Nobody"}', "--wait", code=3)
    assert [line["status"] for line in told] == ["escalated"]


async def test_a_task_that_has_no_outcome_in_time_is_told_in_json_beside_the_answer(stack) -> None:
    asked = ("--playbook", "greet", "--input", '{"name": "Zoe"}', "--wait", "--timeout-s", "0", "--json")
    done = await stack.run("submit", *asked)
    assert done.returncode == 1
    assert [line["status"] for line in json.loads(done.stdout)] == ["waiting"]
    [line] = done.stderr.splitlines()
    assert json.loads(line)["error"]["type"] == "OutcomesPendingError"


async def test_all_runs_that_fit_are_shown_and_resumed_at_once(stack, client) -> None:
    names = [f"many-{number}" for number in range(3)]
    for name in names:
        await client.submit("greet", {"name": "Nobody"}, task_id=name, tenant="many")
    for name in names:
        await client.wait(name, tenant="many", final=False, timeout_s=30)
    preview = await stack.run("resume", "--tenant", "many", "--tool", "echo", "--dry-run")
    assert preview.returncode == 0, preview.stderr
    assert all(name in preview.stderr for name in (*names, "resume: 3 runs"))
    asked = await stack.run("resume", "--tenant", "many")
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True), "nobody is there to be asked"
    stack.refusing = False
    try:
        told = await stack.json("resume", "--tenant", "many", "--note", "it is over", "--yes")
        assert (told["runs"], len(told["done"]), told["refused"], told["unanswered"]) == (3, 3, [], [])
        for name in names:
            assert (await client.wait(name, tenant="many", timeout_s=30)).status is OutcomeStatus.SUCCEEDED
    finally:
        stack.refusing = True
    again = await stack.run("resume", "--tenant", "many", "--yes")
    assert (again.returncode, "no runs fit these filters" in again.stderr) == (0, True)


async def test_a_command_to_many_that_is_refused_by_some_ends_with_1_and_says_by_which(stack, client) -> None:
    await client.submit("greet", {"name": "Nobody"}, task_id="refused-1", tenant="refused")
    await client.wait("refused-1", tenant="refused", final=False, timeout_s=30)
    told = await stack.json("skip", "--tenant", "refused", "--step", "none", "--yes", code=1)
    (refused,) = told["refused"]
    assert "the steps are" in refused["why"]
    assert (await stack.json("cancel", "--tenant", "refused", "--yes"))["done"] == [refused["run_id"]]


async def test_a_filter_that_names_what_does_not_exist_is_told_with_what_there_is(stack, client) -> None:
    await client.wait(await client.submit("greet", {"name": "Una"}, tenant="named"), tenant="named", timeout_s=30)
    for option, value, known in (
        ("--tenant", "nobody", "named"),
        ("--playbook", "gret", "greet"),
        ("--tool", "ecco", "echo."),
        ("--reason", "budget_dollars", "budget_usd"),
    ):
        done = await stack.run("runs", option, value)
        assert done.returncode == 2, done.stderr
        assert f"is called '{value}'; there are: " in done.stderr
        assert known in done.stderr
    done = await stack.run("outcomes", "--tenant", "nobody")
    assert (done.returncode, "named" in done.stderr) == (2, True)
    for there in (("--reason", "budget_usd"), ("--tool", "echo", "--until", "2020-01-01"), ("--status", "undoing")):
        done = await stack.run("runs", *there)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr


async def test_a_skipped_step_counts_as_answered_by_hand(stack, client) -> None:
    await client.submit("greet", {"name": "Nobody"}, task_id="nobody-2")
    await client.wait("nobody-2", final=False, timeout_s=30)
    for wrong in (["--step", "No Step"], ["--note", "x" * 4_001]):
        done = await stack.run("skip", "nobody-2", *wrong)
        assert done.returncode == 2
        assert f"{wrong[0][2:]}: String should" in done.stderr
    done = await stack.run("skip", "nobody-2", "--answer", '{"value": "by hand"}')
    assert done.returncode == 0, done.stderr
    assert (await client.wait("nobody-2", timeout_s=30)).output == {"said": "by hand"}


async def test_a_command_to_a_run_that_is_over_is_refused_with_its_reason(stack, client) -> None:
    await client.wait(await client.submit("greet", {"name": "Mia"}, task_id="mia-1"), timeout_s=30)
    done = await stack.run("resume", "mia-1")
    assert done.returncode == 1
    assert "is over (succeeded)" in done.stderr


async def test_topics_show_what_travels_and_the_lag_of_each_group(stack) -> None:
    rows = {row["name"].removeprefix(f"{stack.prefix}."): row for row in await stack.json("topics")}
    assert rows["tasks"]["messages"] > 0
    assert rows["tasks"]["carries"].startswith("Ingress")
    assert rows["calls.echo"]["consumer"] == "one tool"
    assert any("executor" in group for group in rows["tasks"]["lag"])
