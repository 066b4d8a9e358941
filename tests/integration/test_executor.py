"""The executor as a real process on a real broker and database; the test plays the planner and the tool."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from executor_harness import BACK, MIGRATIONS, ExecutorHarness, plan_of

from triptych.client.operator import operator_connection
from triptych.operator.audit import audit
from triptych.schemas import topics
from triptych.schemas.base import SENTENCE_MAX_CHARS

PLAYBOOK = """
name: greet
goal: Greet somebody.
input:
  type: object
  required: [name]
  additionalProperties: false
  properties: {name: {type: string}}
tools: [echo.echo]
plan:
  pattern: fixed
  steps:
    - {id: say, operation: echo.echo, arguments: {value: "Hello ${{ input.name }}"}}
output: {said: "${{ steps.say.data.value }}"}
"""

EACH = """
name: each
goal: Greet everybody.
input:
  type: object
  required: [names]
  properties: {names: {type: array}}
tools: [echo.echo]
plan:
  pattern: fixed
  steps:
    - id: say
      operation: echo.echo
      map: ${{ input.names }}
      arguments: {value: "Hello ${{ item }}"}
budgets: {tool_calls: 200}
parallel: 20
output: {said: "${{ steps.say.data.branches.map(branch, branch.data.value) }}"}
"""

DESK = """
name: desk
goal: Have somebody greeted.
input: {type: object}
tools: [echo.echo]
handoffs: [greet]
plan:
  pattern: fixed
  steps:
    - id: hand
      operation: playbook.run
      arguments: {playbook: greet, input: "${{ input }}"}
output: {child: "${{ steps.hand.data }}"}
"""

UNDONE = """
name: undone
goal: Write something, and fail afterwards.
input: {type: object}
tools: [echo.*]
plan:
  pattern: fixed
  steps:
    - {id: write, operation: echo.write, arguments: {value: x}}
    - {id: say, operation: echo.echo, depends_on: [write], expect: result.status == "nonsense"}
"""


UNPLANNED = [f"unplanned-{number}" for number in range(30)]
"""Playbooks that no run has used before the one that takes its name from here, so the planner is asked."""


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("executor")
    (folder / "greet.yaml").write_text(PLAYBOOK)
    (folder / "passing.yaml").write_text(PLAYBOOK.replace("name: greet", "name: passing"))
    (folder / "each.yaml").write_text(EACH)
    (folder / "desk.yaml").write_text(DESK)
    (folder / "undone.yaml").write_text(UNDONE)
    for name in UNPLANNED:
        (folder / f"{name}.yaml").write_text(PLAYBOOK.replace("name: greet", f"name: {name}"))
    nouns = [topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS]
    await create_topics(*nouns, "calls.echo")
    prepared = database.prepare({"executor": (MIGRATIONS,)})
    async with ExecutorHarness(servers.kafka, prefix, prepared.services["executor"], folder, folder / "log") as harness:
        harness.operator_dsn = prepared.operator
        harness.start()
        yield harness
    sys.stdout.write(harness.log.read_text()[-4000:])  # pytest shows it when a test fails


def task(task_id: str | None, **fields: object) -> dict[str, object]:
    return {"playbook": "greet", "input": {"name": "Ana"}, **({"task_id": task_id} if task_id else {}), **fields}


async def test_a_task_comes_back_as_an_outcome(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task("t-1", tenant="acme", principal="user:ana"))

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id="t-1")

    await eventually(done)
    (outcome,) = harness.of(topics.OUTCOMES, task_id="t-1")
    assert (outcome["status"], outcome["final"], outcome["tenant"]) == ("succeeded", True, "acme")
    assert outcome["output"] == {"said": "Hello Ana"}
    assert outcome["usage"]["steps"] == outcome["usage"]["tool_calls"] == 1
    assert outcome["_headers"]["ce_id"] == f"{outcome['run_id']}:outcome".encode()


async def test_the_same_task_id_gives_one_run_in_a_tenant_and_another_in_another(
    harness: ExecutorHarness, eventually
) -> None:
    for partition in (0, 1, 0):
        await harness.send(topics.TASKS, task("twice", tenant="acme"), partition)
    await harness.send(topics.TASKS, task("twice", tenant="globex"))
    await harness.send(topics.TASKS, task("after-too"), 1)

    async def are_called(runs: int) -> bool:
        await harness.answer_plans()
        return len(harness.of("calls.echo")) == runs

    # No run ends before every repeat is read, also the one that the owner of partition 1 forwards: it is before `after`.
    await eventually(lambda: are_called(3))
    await harness.send(topics.TASKS, task("after"), 0)
    await eventually(lambda: are_called(4))

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id="after") and harness.of(topics.OUTCOMES, task_id="after-too")

    await eventually(done)
    await eventually(lambda: len(harness.of(topics.OUTCOMES, task_id="twice")) >= 2)
    assert sorted(outcome["tenant"] for outcome in harness.of(topics.OUTCOMES, task_id="twice")) == ["acme", "globex"]


async def test_a_task_published_again_after_its_run_is_over_gets_the_same_outcome_again(
    harness: ExecutorHarness, eventually
) -> None:
    await harness.send(topics.TASKS, task("again"), 0)
    await eventually(harness.is_called)
    (request,) = harness.seen.pop("calls.echo")
    value = {"zeta": [{"b": 1, "a": None}], "aa": 1.50, "b": 2**60, "c": 1e30, "d": 1e-9, "e": 1e15}
    answer = harness._reply(request) | {"result": {"status": "ok", "data": {"value": value}}}
    await harness.send(topics.RESULTS, answer, request["partition"])
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="again"))
    (first,) = harness.of(topics.OUTCOMES, task_id="again")
    connection = await asyncpg.connect(harness.dsn)
    journal = "select count(*), max(at) from journal where run_id = $1"
    before = await connection.fetchrow(journal, first["run_id"])

    async def is_all_published() -> bool:
        return await connection.fetchval("select count(*) from outbox") == 0

    await eventually(is_all_published)
    harness.kill()  # whoever answers next knows the run from its journal alone
    harness.start()
    for count, partition in enumerate((1, 0, 1), start=2):
        await harness.send(topics.TASKS, task("again"), partition)
        await eventually(lambda count=count: len(harness.of(topics.OUTCOMES, task_id="again")) == count)
        repeated = harness.of(topics.OUTCOMES, task_id="again")[-1]
        assert (repeated["_raw"], repeated["_headers"]) == (first["_raw"], first["_headers"])
    assert await connection.fetchrow(journal, first["run_id"]) == before
    await connection.close()


async def test_a_task_published_again_while_its_run_goes_on_sends_nothing(harness: ExecutorHarness, eventually) -> None:
    playbook = UNPLANNED.pop()
    await harness.send(topics.TASKS, task("not-over", playbook=playbook), 0)
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS))
    await harness.send(topics.TASKS, task("not-over", playbook=playbook), 0)
    await harness.send(topics.TASKS, task("read-after-it", playbook=playbook), 0)
    await eventually(lambda: len(harness.of(topics.PLAN_REQUESTS)) == 2)
    assert not harness.of(topics.OUTCOMES, task_id="not-over")

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id="read-after-it")

    await eventually(done)
    assert len(harness.of(topics.OUTCOMES, task_id="not-over")) == 1


async def test_a_task_published_again_whose_playbook_is_gone_is_a_repeat_and_not_refused(
    harness: ExecutorHarness, eventually
) -> None:
    for task_id in ("gone-over", "gone-on-the-way"):
        await harness.send(topics.TASKS, task(task_id, playbook="passing"), 0)
        await eventually(harness.is_called)
        if task_id == "gone-over":
            await harness.answer_calls()
            await eventually(lambda: harness.of(topics.OUTCOMES, task_id="gone-over"))
    harness.stop()
    (harness.playbooks / "passing.yaml").unlink()
    harness.start()
    for task_id in ("gone-on-the-way", "gone-over", "gone-before"):
        await harness.send(topics.TASKS, task(task_id, playbook="passing"), 0)

    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="gone-before"))
    assert [outcome["status"] for outcome in harness.of(topics.OUTCOMES, task_id="gone-before")] == ["rejected"]
    first, again = harness.of(topics.OUTCOMES, task_id="gone-over")
    assert (first["status"], again["_raw"], again["_headers"]) == ("succeeded", first["_raw"], first["_headers"])
    assert not harness.of(topics.OUTCOMES, task_id="gone-on-the-way")

    async def ended() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id="gone-on-the-way")

    await eventually(ended)
    assert [outcome["status"] for outcome in harness.of(topics.OUTCOMES, task_id="gone-on-the-way")] == ["succeeded"]


async def test_a_task_and_an_unfit_one_under_its_id_in_one_batch_have_one_final_outcome(
    harness: ExecutorHarness, eventually
) -> None:
    harness.kill()
    await harness.send(topics.TASKS, task("fit-once"), 0)
    await harness.send(topics.TASKS, task("fit-once", input={"name": 7}), 0)
    await harness.send(topics.TASKS, task("never-fit", input={"name": 7}), 0)
    harness.start()

    async def done() -> object:
        await harness.work()
        return [outcome for outcome in harness.of(topics.OUTCOMES, task_id="fit-once") if outcome["final"]]

    await eventually(done)
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="never-fit"))
    outcomes = harness.of(topics.OUTCOMES, task_id="fit-once")
    assert [outcome["status"] for outcome in outcomes if outcome["final"]] == ["succeeded"]
    assert [outcome["reason"]["code"] for outcome in outcomes if not outcome["final"]] == ["conflict"]
    assert [outcome["status"] for outcome in harness.of(topics.OUTCOMES, task_id="never-fit")] == ["rejected"]


SAME = (
    b'{"playbook": "each", "task_id": "%s", "input": {"names": ["Ana"], "n": 1, "of": {"a": 1.5, "b": null}}}',
    (
        b'{"input": {"of": {"b": null, "a": 15e-1}, "names": ["\\u0041na"], "n": 1.0}, "playbook":"each", "task_id":"%s",'
        b' "principal": "anonymous", "tenant": "default"}'
    ),
)
OTHERS = {
    "another input": {"input": {"names": ["Ben"]}},
    "an input that does not fit": {"input": {"names": 7}},
    "another number": {"input": {"names": ["Ana"], "n": 2}},
    "text instead of a number": {"input": {"names": ["Ana"], "n": "1"}},
    "another playbook": {"playbook": "greet", "input": {"name": "Ana"}},
    "another principal": {"principal": "user:eve"},
}


async def test_the_same_task_in_other_words_is_a_repeat(harness: ExecutorHarness, eventually) -> None:
    first, again = (body % b"in-other-words" for body in SAME)
    await harness.send(topics.TASKS, first, 0)

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id="in-other-words")

    await eventually(done)
    await harness.send(topics.TASKS, again, 1)
    await eventually(lambda: len(harness.of(topics.OUTCOMES, task_id="in-other-words")) == 2)
    one, other = harness.of(topics.OUTCOMES, task_id="in-other-words")
    assert one["_raw"] == other["_raw"]


@pytest.mark.parametrize("moment", ["under way", "over", "at once"])
async def test_another_task_under_a_known_id_is_answered_conflict_and_the_first_one_has_its_outcome(
    harness: ExecutorHarness, eventually, moment: str
) -> None:
    task_id = f"taken-{moment.replace(' ', '-')}"
    first = task(task_id, playbook="each", input={"names": ["Ana"], "n": 1})

    async def done() -> object:
        await harness.work()
        return [outcome for outcome in harness.of(topics.OUTCOMES, task_id=task_id) if outcome["final"]]

    if moment == "at once":
        harness.kill()
    await harness.send(topics.TASKS, first, 0)
    if moment == "over":
        await eventually(done)
    elif moment == "under way":
        await eventually(harness.is_called)
    places = {}
    now_ms = int(time.time() * 1_000)
    for number, changes in enumerate(OTHERS.values()):
        sent = await harness.producer.send_and_wait(
            f"{harness.prefix}.tasks",
            json.dumps(first | changes).encode(),
            partition=0 if moment == "at once" else number % 2,
            timestamp_ms=now_ms + number,  # records of one millisecond would be forwarded to one partition
        )
        places[f"{sent.topic}:{sent.partition}:{sent.offset}"] = changes
    if moment == "at once":
        harness.start()
    refused = lambda: [each for each in harness.of(topics.OUTCOMES, task_id=task_id) if not each["final"]]  # noqa: E731
    await eventually(lambda: len(refused()) >= len(OTHERS))
    assert {each["record"] for each in refused()} == places.keys()
    assert {(each["status"], each["reason"]["code"]) for each in refused()} == {("rejected", "conflict")}
    assert len({each["_headers"]["ce_id"] for each in refused()}) == len(OTHERS)
    await eventually(done)
    (final, *repeats) = await done()
    assert (final["status"], final["output"]) == ("succeeded", {"said": ["Hello Ana"]})
    assert all(each["_raw"] == final["_raw"] for each in repeats)
    buried = lambda: [each for each in harness.of(topics.DEAD_LETTERS) if each["reason"]["code"] == "conflict"]  # noqa: E731
    await eventually(
        lambda: places.keys() <= {f"{one['topic']}:{one['partition']}:{one['offset']}" for one in buried()}
    )


async def test_a_repeat_of_a_task_from_before_fingerprints_is_no_conflict(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task("old"), 0)

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id="old")

    await eventually(done)
    connection = await asyncpg.connect(harness.dsn)
    await connection.execute("update tasks set fingerprint = null where task_id = 'old'")
    await connection.close()
    await harness.send(topics.TASKS, task("old", input={"name": "Ben"}), 0)
    await eventually(lambda: len(harness.of(topics.OUTCOMES, task_id="old")) == 2)
    assert {outcome["status"] for outcome in harness.of(topics.OUTCOMES, task_id="old")} == {"succeeded"}


async def test_a_task_without_an_id_gets_one_from_its_place(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task(None, tenant="nameless"))

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, tenant="nameless")

    await eventually(done)
    assert harness.of(topics.OUTCOMES, tenant="nameless")[0]["task_id"].startswith(f"{harness.prefix}.tasks:")


@pytest.mark.parametrize("member", ["data", "data_base64"])
async def test_a_structured_cloudevent_is_a_task_too(harness: ExecutorHarness, eventually, member: str) -> None:
    task_id = f"structured-{member}"
    data = task(task_id)
    envelope = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/test",
        "type": "triptych.task",
        member: data if member == "data" else base64.b64encode(json.dumps(data).encode()).decode(),
    }
    await harness.send(topics.TASKS, envelope, **{"content-type": "application/cloudevents+json; charset=utf-8"})

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=task_id, status="succeeded")

    await eventually(done)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff\x00not json", "not_json"),
        (b"", "empty_record"),
        (b"[1, 2]", "invalid_task"),
        (b'{"playbook": "greet", "task_id": "typo", "inptu": {}}', "invalid_task"),
        (b'{"playbook": "nobody", "task_id": "lost"}', "unknown_playbook"),
        (b'{"playbook": "greet", "task_id": "no-name", "input": {}}', "invalid_input"),
    ],
)
async def test_what_is_no_task_becomes_a_dead_letter_with_its_bytes_and_a_reason(
    harness: ExecutorHarness, eventually, body: bytes, code: str
) -> None:
    await harness.send(topics.TASKS, body)
    await eventually(lambda: [x for x in harness.of(topics.DEAD_LETTERS) if x["reason"]["code"] == code])
    connection = await asyncpg.connect(harness.dsn)

    async def is_stored() -> bool:
        return await connection.fetchval("select true from dead_letters where code = $1 and value = $2", code, body)

    await eventually(is_stored)  # another record of this code may have been heard of
    await connection.close()
    if body.startswith(b"{"):
        task_id = json.loads(body)["task_id"]
        await eventually(lambda: harness.of(topics.OUTCOMES, task_id=task_id))
        outcome, *repeats = harness.of(topics.OUTCOMES, task_id=task_id)
        assert (outcome["status"], outcome["final"], outcome["reason"]["code"]) == ("rejected", True, code)
        assert all(each["_raw"] == outcome["_raw"] for each in repeats)


@pytest.mark.parametrize(
    "harmed",
    [
        lambda text: text[:-1],
        lambda text: text.replace('"Ana"', "NaN"),
        lambda text: text.replace('"Ana"', '"\\ud800"'),
        lambda text: text.replace('"Ana"', "[" * 150 + "]" * 150),
        lambda text: text.replace('"name"', '"name": 1, "name"'),
        lambda text: text.replace('"Ana"', f'"{"x" * 300_000}"'),
    ],
    ids=["cut off", "NaN", "half a character", "too deep", "a name twice", "too large"],
)
async def test_what_cannot_be_read_and_names_a_known_task_is_buried_and_the_task_keeps_its_outcome(
    harness: ExecutorHarness, eventually, request: pytest.FixtureRequest, harmed: Callable[[str], str]
) -> None:
    task_id = f"harmed-{request.node.callspec.id.replace(' ', '-')}"
    text = json.dumps(task(task_id))
    await harness.send(topics.TASKS, text.encode(), 0)

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=task_id)

    await eventually(done)
    await harness.send(topics.TASKS, harmed(text).encode(), 0)
    connection = await asyncpg.connect(harness.dsn)

    async def is_stored() -> bool:
        return await connection.fetchval("select true from dead_letters where value = $1", harmed(text).encode())

    await eventually(is_stored)
    await connection.close()
    await eventually(lambda: len(harness.of(topics.OUTCOMES, task_id=task_id)) > 1)
    (outcome,) = {each["_raw"] for each in harness.of(topics.OUTCOMES, task_id=task_id)}
    assert json.loads(outcome)["status"] == "succeeded"


@pytest.mark.parametrize("characters", [5_000, 200_000])
async def test_a_refusal_that_quotes_something_huge_is_an_outcome_that_every_client_can_read(
    harness: ExecutorHarness, eventually, characters: int
) -> None:
    task_id = f"huge-{characters}"
    await harness.send(topics.TASKS, task(task_id, input={"name": ["x" * characters]}))
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id=task_id))
    (outcome,) = harness.of(topics.OUTCOMES, task_id=task_id)
    assert (outcome["status"], outcome["reason"]["code"]) == ("rejected", "invalid_input")
    message = outcome["reason"]["message"]
    assert message.startswith("input.name: ")
    assert message.endswith('"string"')
    assert len(message) <= SENTENCE_MAX_CHARS


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'"A\\u0000B"', "Hello A\ufffdB"),
        (b'"\\\\u0000"', "Hello \\u0000"),
        (b'"\xf0\x9f\x92\xb8 \xe2\x82\xac"', "Hello \U0001f4b8 \u20ac"),
    ],
)
async def test_whatever_json_can_say_a_run_can_carry(
    harness: ExecutorHarness, eventually, raw: bytes, said: str
) -> None:
    task_id = f"odd-{len(harness.of(topics.OUTCOMES))}"
    await harness.send(
        topics.TASKS, b'{"playbook": "greet", "task_id": "' + task_id.encode() + b'", "input": {"name": ' + raw + b"}}"
    )

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=task_id)

    await eventually(done)
    assert harness.of(topics.OUTCOMES, task_id=task_id)[0]["output"] == {"said": said}


async def called(harness: ExecutorHarness, eventually) -> dict[str, Any]:
    """The call that the only run under way asks for."""
    await eventually(harness.is_called)
    (request,) = harness.seen.pop("calls.echo")
    return request


async def say(harness: ExecutorHarness, request: dict[str, Any], value: str) -> None:
    """Answer a call with this JSON text, or what is none."""
    reply = json.dumps(harness._reply(request))[:-1]
    body = f'{reply}, "result": {{"status": "ok", "data": {{"value": {value}}}}}}}'
    await harness.send(topics.RESULTS, body.encode(), request["partition"])


@pytest.mark.parametrize("value", ["1" * 40, '{"a":' * 100 + "1" + "}" * 100])
async def test_numbers_and_depths_that_postgres_cannot_hold_still_lead_to_an_outcome(
    harness: ExecutorHarness, eventually, value: str
) -> None:
    task_id = f"number-{len(harness.of(topics.OUTCOMES))}"
    await harness.send(topics.TASKS, task(task_id))
    await say(harness, await called(harness, eventually), value)
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id=task_id))
    assert harness.of(topics.OUTCOMES, task_id=task_id)[0]["status"] in {"succeeded", "escalated"}


@pytest.mark.parametrize(("value", "told"), [("NaN", "NaN is not a JSON number"), ("1e999", "too large for a double")])
async def test_an_answer_with_a_number_that_json_does_not_have_is_buried_and_the_next_one_counts(
    harness: ExecutorHarness, eventually, value: str, told: str
) -> None:
    task_id = f"no-number-{value.lower()}"
    await harness.send(topics.TASKS, task(task_id))
    request = await called(harness, eventually)
    buried = len(harness.of(topics.DEAD_LETTERS))
    await say(harness, request, value)
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) > buried)
    reason = harness.of(topics.DEAD_LETTERS)[-1]["reason"]
    assert reason["code"] == "invalid_json"
    assert told in reason["message"]
    await say(harness, request, "7")
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id=task_id))
    (outcome,) = harness.of(topics.OUTCOMES, task_id=task_id)
    assert (outcome["status"], outcome["output"]) == ("succeeded", {"said": 7})


@pytest.mark.parametrize("spend", [{"tokens": 2**63}, {"usd_micros": 10**30}, {"tool_calls": 10**17}])
async def test_an_answer_that_says_it_cost_more_than_anything_can_is_buried_and_the_next_one_counts(
    harness: ExecutorHarness, eventually, spend: dict[str, int]
) -> None:
    task_id = f"dear-{'-'.join(spend)}"
    await harness.send(topics.TASKS, task(task_id), 0)
    await eventually(harness.is_called)
    (request,) = harness.seen.pop("calls.echo")
    answer = harness._reply(request) | {"result": {"status": "ok", "data": {"value": "dear"}}}
    await harness.send(topics.RESULTS, answer | {"spend": spend}, request["partition"])
    await harness.send(topics.TASKS, task(f"after-{task_id}"), 0)

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=f"after-{task_id}")

    buried = len(harness.of(topics.DEAD_LETTERS))
    await eventually(done)
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) > buried)
    assert harness.of(topics.DEAD_LETTERS)[-1]["reason"]["code"] == "forged"
    await harness.send(topics.RESULTS, answer, request["partition"])
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id=task_id))
    (outcome,) = harness.of(topics.OUTCOMES, task_id=task_id)
    assert (outcome["status"], outcome["usage"]["tokens"]) == ("succeeded", 0)


async def test_an_answer_that_cost_more_than_its_grant_is_counted_and_stops_the_run(
    harness: ExecutorHarness, eventually
) -> None:
    await harness.send(topics.TASKS, task("overspent"), 0)
    await eventually(harness.is_called)
    (request,) = harness.seen.pop("calls.echo")
    answer = harness._reply(request) | {"result": {"status": "ok", "data": {"value": "dear"}}}
    spend = {"tokens": 10**9, "usd_micros": 10**12, "tool_calls": 1}
    await harness.send(topics.RESULTS, answer | {"spend": spend}, request["partition"])
    await eventually(lambda: harness.of(topics.ESCALATIONS, task_id="overspent"))
    (escalation,) = harness.of(topics.ESCALATIONS, task_id="overspent")
    assert (escalation["reason"]["code"], escalation["usage"]["tokens"]) == ("overspent", 10**9)
    assert '"event":"alert"' in harness.log.read_text()
    command = {"command_id": "o", "run_id": request["run_id"], "action": "abort", "principal": "user:ana"}
    await harness.send(topics.CONTROL, command, request["partition"])
    await eventually(lambda: [each for each in harness.of(topics.OUTCOMES, task_id="overspent") if each["final"]])
    async with operator_connection(harness.operator_dsn) as connection:
        found = [each for each in (await audit(connection, lambda *_: None)).problems if each.task_id == "overspent"]
    assert found == []


FORGERIES: dict[str, dict[str, object]] = {
    "an operation that the playbook does not allow": {"operation": "bank.pay"},
    "other arguments than the playbook has": {"arguments": {"value": "you have been had"}},
    "a write that passes for a read": {"pin.effect": "idempotent"},
    "more time than the contract gives": {"pin.timeout_ms": 600_000},
    "a grant that the playbook does not have": {"pin.cost": {"tokens": 10**6, "usd_micros": 10**6}},
    "more attempts": {"retry": {"max_attempts": 20, "base_ms": 1, "cap_ms": 1}},
    "more rounds": {"rounds": 10},
    "another name": {"id": "other"},
    "a condition": {"when": "false"},
    "a map": {"map": [1, 2, 3]},
    "an undo": {
        "pin.undo": {"operation": "echo.back", "contract_hash": BACK.hash, "effect": "idempotent", "timeout_ms": 1_000}
    },
    "a stand-in": {"fallback": [{"fallback": {"data": {"value": "me"}}}]},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_plan_that_no_honest_planner_can_have_made_is_buried_and_the_honest_one_is_carried_out(
    harness: ExecutorHarness, eventually, forgery: dict[str, object]
) -> None:
    task_id, buried = f"planned-{uuid4()}", len(harness.of(topics.DEAD_LETTERS))
    await harness.send(topics.TASKS, task(task_id, playbook=UNPLANNED.pop()), 0)
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS))
    (request,) = harness.of(topics.PLAN_REQUESTS)
    plan = plan_of(request["_raw"], *harness.contracts)
    (step,) = plan["steps"]
    for name, changed in forgery.items():
        of_pin, _, field = name.rpartition(".")
        (step["pin"] if of_pin else step)[field] = changed
    await harness.send(topics.PLANS, harness._reply(request) | {"plan": plan}, request["partition"])
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) > buried)
    assert harness.of(topics.DEAD_LETTERS)[-1]["reason"]["code"] == "forged"

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=task_id)

    await eventually(done)
    assert harness.of(topics.OUTCOMES, task_id=task_id)[0]["output"] == {"said": "Hello Ana"}


async def test_an_answer_of_another_tenant_kind_or_tool_is_buried_and_the_right_one_counts(
    harness: ExecutorHarness, eventually
) -> None:
    buried = len(harness.of(topics.DEAD_LETTERS))
    await harness.send(topics.TASKS, task("misdirected"), 0)
    await eventually(harness.is_called)
    (request,) = harness.seen.pop("calls.echo")
    reply, lie = harness._reply(request), {"result": {"status": "ok", "data": {"value": "a lie"}}}
    partition = request["partition"]
    await harness.send(topics.RESULTS, reply | lie | {"tenant": "evil"}, partition)
    await harness.send(topics.VERDICTS, reply | {"decision": "continue"}, partition)
    await harness.send(topics.PLANS, reply | {"answer": {"said": "a lie"}}, partition)
    await harness.send(topics.RESULTS, reply | lie, partition, ce_source="/triptych/tool-other")
    await harness.send(topics.RESULTS, reply | {"result": {"status": "ok", "data": "no object"}}, partition)
    await harness.send(topics.RESULTS, reply | {"result": {"status": "error"}}, partition)
    await harness.send(topics.RESULTS, reply | lie | {"extended": {"tokens": 10**9}}, partition)
    for spend in ({"tokens": -1}, {"tokens": 1.5}, {"usd_micros": "1"}):
        await harness.send(topics.RESULTS, reply | lie | {"spend": spend}, partition)
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) >= buried + 10)
    codes = Counter(letter["reason"]["code"] for letter in harness.of(topics.DEAD_LETTERS)[buried:])
    assert codes == {"misdirected": 4, "forged": 3, "invalid_callanswer": 3}
    truth = {"result": {"status": "ok", "data": {"value": "the truth"}}}
    await harness.send(topics.RESULTS, reply | truth, partition, ce_source="/triptych/tool-echo")
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="misdirected"))
    assert harness.of(topics.OUTCOMES, task_id="misdirected")[0]["output"] == {"said": "the truth"}


async def test_an_output_too_large_for_a_message_is_left_out_and_the_outcome_says_where_it_is(
    harness: ExecutorHarness, eventually
) -> None:
    await harness.send(topics.TASKS, task("large"))
    await eventually(harness.is_called)
    (request,) = harness.seen.pop("calls.echo")
    result = {"status": "ok", "data": {"value": "x" * 400_000}}
    await harness.send(topics.RESULTS, harness._reply(request) | {"result": result}, request["partition"])
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="large"))
    (outcome,) = harness.of(topics.OUTCOMES, task_id="large")
    assert (outcome["status"], outcome["output"]) == ("succeeded", {})
    assert f"triptych trace {outcome['run_id']}" in outcome["reason"]["message"]


@pytest.mark.parametrize("noun", [topics.PLANS, topics.RESULTS, topics.VERDICTS, topics.CONTROL])
async def test_noise_on_any_topic_is_dead_lettered_and_the_partition_goes_on(
    harness: ExecutorHarness, eventually, noun: str
) -> None:
    before = len(harness.of(topics.DEAD_LETTERS))
    await harness.send(noun, b"\x80noise", 0)
    await harness.send(noun, b'{"request_id": "x"}', 0)
    unknown = {"request_id": "x", "run_id": "01900000-0000-7000-8000-000000000000", "tenant": "t"}
    extra = {"command_id": "c", "action": "cancel", "principal": "p", "run_id": unknown["run_id"]}
    await harness.send(noun, extra if noun == topics.CONTROL else unknown | {"result": {"status": "ok"}}, 0)
    await harness.send(topics.TASKS, task(f"after-{noun}"), 0)

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=f"after-{noun}")

    await eventually(done)
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) >= before + 3)


async def test_a_command_on_the_wrong_partition_finds_its_run(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task("to-cancel", playbook=UNPLANNED.pop()), 0)
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS))
    (request,) = harness.of(topics.PLAN_REQUESTS)
    command = {"command_id": "c-1", "run_id": request["run_id"], "action": "cancel", "principal": "user:ana"}
    await harness.send(topics.CONTROL, command, 1)
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="to-cancel", status="cancelled"))
    harness.seen[topics.PLAN_REQUESTS].clear()


async def test_a_killed_executor_carries_on_where_it_was(harness: ExecutorHarness, eventually) -> None:
    playbook = UNPLANNED.pop()
    for number in range(20):
        await harness.send(topics.TASKS, task(f"killed-{number}", playbook=playbook))
    await eventually(lambda: len(harness.of(topics.PLAN_REQUESTS)) == 20)
    harness.kill()
    await harness.answer_plans()
    harness.start()
    await eventually(lambda: len(harness.of("calls.echo")) == 20)
    harness.kill()
    harness.start()

    async def done() -> object:
        await harness.work()
        return all(harness.of(topics.OUTCOMES, task_id=f"killed-{number}") for number in range(20))

    await eventually(done)
    for number in range(20):
        ids = {outcome["_headers"]["ce_id"] for outcome in harness.of(topics.OUTCOMES, task_id=f"killed-{number}")}
        assert len(ids) == 1


async def test_nothing_is_left_open_when_all_runs_are_done(harness: ExecutorHarness, eventually) -> None:
    connection = await asyncpg.connect(harness.dsn)

    async def empty() -> bool:
        left = await connection.fetchrow(
            "select (select count(*) from outbox) as outbox, (select count(*) from timers) as timers"
        )
        return dict(left) == {"outbox": 0, "timers": 0}

    await eventually(empty)
    assert (
        await connection.fetchval("select count(*) from runs where finished_at is null and status <> 'escalated'") == 0
    )
    await connection.close()


async def test_two_executors_share_the_partitions_and_a_zombie_is_fenced(harness: ExecutorHarness, eventually) -> None:
    first = harness.process
    assert first is not None
    second = harness.start("executor-2")
    connection = await asyncpg.connect(harness.dsn)

    async def owners() -> set[str]:
        return {row["owner"] for row in await connection.fetch("select distinct owner from partitions")}

    async def both() -> bool:
        return await owners() == {"executor-1", "executor-2"}

    await eventually(both)
    first.send_signal(signal.SIGSTOP)

    async def survivor() -> bool:
        return await owners() == {"executor-2"}

    await eventually(survivor)
    for partition in (0, 1):
        await harness.send(topics.TASKS, task(f"zombie-{partition}"), partition)

    async def done() -> object:
        await harness.work()
        return all(harness.of(topics.OUTCOMES, task_id=f"zombie-{partition}") for partition in (0, 1))

    await eventually(done)
    first.send_signal(signal.SIGCONT)
    await eventually(both)
    await connection.close()
    first.terminate()
    assert await asyncio.to_thread(first.wait, 20) == 0
    assert second.poll() is None


async def test_a_fan_out_survives_a_kill_in_its_middle_and_merges_in_order(
    harness: ExecutorHarness, eventually
) -> None:
    names = [f"guest {number}" for number in range(60)]
    await harness.send(topics.TASKS, task("each", playbook="each", input={"names": names}))
    await eventually(harness.is_called)
    await eventually(lambda: len(harness.of("calls.echo")) == 20)
    asked = harness.seen["calls.echo"].copy()
    assert sorted(call["index"] for call in asked) == list(range(20))
    await harness.answer_calls()
    harness.kill()  # with answers on their way, and branches that were never asked for
    harness.start()

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id="each")

    await eventually(done)
    (outcome,) = harness.of(topics.OUTCOMES, task_id="each")
    assert outcome["output"] == {"said": [f"Hello {name}" for name in names]}
    assert outcome["usage"]["tool_calls"] == 60
    connection = await asyncpg.connect(harness.dsn)
    rows = await connection.fetch("select step_id, status from steps where run_id = $1", outcome["run_id"])
    assert {row["step_id"] for row in rows} == {"say", *(f"say.{number}" for number in range(60))}
    assert {row["status"] for row in rows} == {"succeeded"}
    await connection.close()


async def test_a_handoff_survives_kills_and_its_outcome_is_the_steps(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task("desk", playbook="desk", input={"name": "Ana"}), 1)
    for noun, wanted in (
        (topics.PLAN_REQUESTS, {"playbook": "desk"}),
        (topics.PLAN_REQUESTS, {"playbook": "greet"}),
        ("calls.echo", {"step": "say"}),
    ):
        await eventually(lambda noun=noun, wanted=wanted: harness.of(noun, **wanted))
        harness.kill()  # before the parent has a plan, before its child has one, and while the child's tool is asked
        harness.start()
        await harness.work()

    async def done() -> object:
        await harness.work()  # what a kill left behind is sent again, and answered again
        return harness.of(topics.OUTCOMES, task_id="desk")

    await eventually(done)
    (outcome,) = harness.of(topics.OUTCOMES, task_id="desk")
    child = outcome["output"]["child"]
    assert (outcome["status"], child["output"]) == ("succeeded", {"said": "Hello Ana"})
    assert outcome["usage"]["tool_calls"] == 2, "its own, and that of its child"
    (of_child,) = harness.of(topics.OUTCOMES, run_id=child["run_id"])
    assert of_child["parent_run_id"] == outcome["run_id"]
    connection = await asyncpg.connect(harness.dsn)
    children = await connection.fetch("select run_id from runs where parent_run_id = $1", outcome["run_id"])
    assert [str(row["run_id"]) for row in children] == [child["run_id"]]
    await connection.close()


async def test_a_child_whose_task_is_refused_fails_its_parents_step(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task("astray", playbook="desk", input={"name": 7}))

    async def escalated() -> object:
        await harness.work()
        return harness.of(topics.ESCALATIONS, task_id="astray")

    await eventually(escalated)
    (escalation,) = harness.of(topics.ESCALATIONS, task_id="astray")
    assert escalation["reason"]["code"] == "invalid_arguments"
    assert "input.name" in escalation["reason"]["message"]


async def test_cancelling_a_parent_cancels_its_child(harness: ExecutorHarness, eventually) -> None:
    harness.kill()  # a process that has just started knows no plan
    harness.start()
    await harness.send(topics.TASKS, task("off", playbook="desk", input={"name": "Ana"}))
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS, playbook="desk"))
    (request,) = harness.of(topics.PLAN_REQUESTS, playbook="desk")
    run_id, partition = request["run_id"], request["partition"]
    await harness.answer_plans()
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS, playbook="greet"))
    child_id = harness.seen.pop(topics.PLAN_REQUESTS)[0]["run_id"]
    command = {"command_id": "off", "run_id": run_id, "action": "cancel", "principal": "user:ana"}
    await harness.send(topics.CONTROL, command, partition)
    await eventually(lambda: harness.of(topics.OUTCOMES, run_id=child_id))
    assert harness.of(topics.OUTCOMES, run_id=child_id)[0]["status"] == "cancelled"


async def test_a_client_starts_and_withdraws_no_child_runs(harness: ExecutorHarness, eventually) -> None:
    harness.seen, playbook = {}, UNPLANNED.pop()
    await harness.send(topics.TASKS, task("victim", playbook=playbook), 0)
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS, playbook=playbook))
    (request,) = harness.of(topics.PLAN_REQUESTS, playbook=playbook)
    parent = {
        "run_id": request["run_id"],
        "request_id": f"{request['run_id']}:say:1:child",
        "asked_at_ms": int(UUID(request["run_id"]).int >> 80),
        "grant": {"tokens": 10**9, "usd_micros": 10**9, "tool_calls": 10**6},
        "deadline_at": "2099-01-01T00:00:00Z",
        "ancestors": [],
    }
    claims = {"intruder": parent, "thief": parent | {"run_id": str(uuid4())}, "victim": parent | {"withdrawn": True}}
    for task_id, claimed in claims.items():
        await harness.send(topics.TASKS, task(task_id, playbook=playbook, parent=claimed), 0)
        await harness.send(topics.CHILD_TASKS, task(task_id, playbook=playbook, parent=claimed), 0)
    await harness.send(topics.TASKS, task("after-claims", playbook=playbook), 0)
    await eventually(lambda: len(harness.of(topics.PLAN_REQUESTS, playbook=playbook)) == 2)
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) >= 6)
    of_claims = [letter["reason"]["code"] for letter in harness.of(topics.DEAD_LETTERS)]
    assert (of_claims.count("forged"), of_claims.count("invalid_task")) == (3, 3)
    rejected = {outcome["task_id"]: outcome["reason"]["message"] for outcome in harness.of(topics.OUTCOMES)}
    assert rejected.keys() == {"intruder", "thief"}
    assert all("`parent`" in message for message in rejected.values())
    connection = await asyncpg.connect(harness.dsn)
    rows = await connection.fetch("select task_id, status from runs where task_id = any($1)", list(claims))
    assert [tuple(row) for row in rows] == [("victim", "planning")]
    await connection.close()


async def test_an_abort_undoes_what_was_written_even_if_the_executor_is_killed_in_between(
    harness: ExecutorHarness, eventually
) -> None:
    await harness.send(topics.TASKS, task("undo", playbook="undone"))
    await eventually(lambda: harness.of(topics.PLAN_REQUESTS, playbook="undone"))
    (request,) = harness.of(topics.PLAN_REQUESTS, playbook="undone")
    await harness.answer_plans()
    await eventually(lambda: harness.of("calls.echo", step="write"))
    await harness.answer_calls()
    await eventually(lambda: harness.of("calls.echo", step="say"))
    (call,) = harness.seen.pop("calls.echo")
    failed = {"status": "error", "error": {"code": "forbidden", "message": "no"}}
    await harness.send(topics.RESULTS, harness._reply(call) | {"result": failed}, call["partition"])
    await eventually(lambda: harness.of(topics.ESCALATIONS, task_id="undo"))
    command = {"command_id": "u", "run_id": request["run_id"], "action": "abort", "principal": "user:ana", "undo": True}
    await harness.send(topics.CONTROL, command, request["partition"])
    await eventually(lambda: harness.of("calls.echo", operation="echo.back"))
    harness.kill()
    harness.start()

    async def done() -> object:
        await harness.work()
        return [outcome for outcome in harness.of(topics.OUTCOMES, task_id="undo") if outcome["final"]]

    asked = harness.of("calls.echo", operation="echo.back")[0]
    assert (asked["arguments"], asked["idempotency_key"]) == ({"of": "x"}, f"{request['run_id']}:write:undo")
    (outcome,) = await eventually(done) or await done()
    assert (outcome["status"], outcome["reason"]["code"]) == ("failed", "aborted")
    assert "undone: write" in outcome["reason"]["message"]
