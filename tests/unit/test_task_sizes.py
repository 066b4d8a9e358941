"""A task that is too large, or wrong in a million places, costs little and is answered."""

from __future__ import annotations

import time
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from machine_story import NOW, playbook
from pydantic_core import from_json

from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor
from triptych.json_schema import JsonSchema, describe_errors
from triptych.kernel.decider import InboundRecord, RejectedRecord, TaskKey
from triptych.kernel.errors import UndecodableRecord
from triptych.schemas import topics

TICKETS = {
    "type": "object",
    "required": ["tickets"],
    "properties": {
        "tickets": {"type": "array", "items": {"type": "object", "required": ["id", "text", "customer"]}},
    },
}
BUSY_FOR_S = 2.5
"""A message may hold the decider for 250 ms; ten times that on a busy machine."""


def record(value: bytes, *headers: tuple[str, bytes]) -> ConsumerRecord[Any, Any]:
    return ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, value, None, -1, len(value), headers)


def executor(**limits: int) -> Executor:
    small = playbook(name="small", input=TICKETS)
    large = playbook(name="large", limits=limits or None)
    return Executor({one.name: Deployment.of(one) for one in (small, large)})


def rejection(one: Executor, value: bytes, *headers: tuple[str, bytes]) -> tuple[RejectedRecord, dict[str, Any]]:
    arrived = record(value, *headers)

    def take() -> None:
        one.check_size(topics.TASKS, arrived)
        one.read(InboundRecord(topics.TASKS, arrived, value, NOW))

    with pytest.raises(RejectedRecord) as caught:
        take()
    return caught.value, from_json(caught.value.replies[0].body.to_bytes())


def test_a_task_over_the_limit_is_rejected_by_name_with_limit_size_and_cure() -> None:
    value = b'{"task_id":"t-1","playbook":"small","tenant":"acme","input":{"tickets":["%s"]}}' % (b"x" * 300_000)
    error, outcome = rejection(executor(), value)
    assert (outcome["task_id"], outcome["tenant"], outcome["playbook"]) == ("t-1", "acme", "small")
    assert (outcome["status"], outcome["reason"]["code"]) == ("rejected", "input_too_large")
    for said in (f"{len(value):,}", "262,144", "limits.input_bytes"):
        assert said in outcome["reason"]["message"]
    assert error.task == TaskKey("acme", "t-1"), "a repeat of a task that has its run is never refused"


def test_a_playbook_may_raise_the_limit_and_lower_it() -> None:
    value = b'{"task_id":"t-1","playbook":"large","input":{"text":"%s"}}'
    raised, lowered = executor(input_bytes=1_048_576), executor(input_bytes=2_000)
    large, small = value % (b"x" * 600_000), value % (b"x" * 3_000)
    assert raised.read(InboundRecord(topics.TASKS, record(large), large, NOW)).task == TaskKey("default", "t-1")
    assert rejection(lowered, small)[1]["reason"]["code"] == "input_too_large"
    other = large.replace(b'"large"', b'"small"')
    assert rejection(raised, other)[1]["reason"]["code"] == "input_too_large", "one playbook's limit is not another's"


@pytest.mark.parametrize(
    "start", [b"", b'{"input":{"a":"', b"[[[[[[", b"{" * 2_000, b"\xff\xfe", b'{"task_id":"' + b"x" * 70_000]
)
def test_a_task_over_the_limit_whose_head_says_nothing_is_rejected_under_its_place(start: bytes) -> None:
    _, outcome = rejection(executor(), start + b"[" * 400_000, ("ce_tenant", b"acme"))
    assert (outcome["task_id"], outcome["tenant"]) == ("triptych.tasks:0:7:1000", "acme")


def test_a_task_over_the_limit_is_told_by_its_id_where_that_stands_behind_the_input() -> None:
    value = b'{"playbook":"small","input":{"task_id":"no","a":[%s0]},"tenant":"acme","task_id":"t-1"}' % (
        b"0," * 400_000
    )
    _, outcome = rejection(executor(), value)
    assert (outcome["task_id"], outcome["tenant"]) == ("t-1", "acme")


def test_a_structured_event_over_the_limit_is_rejected_before_it_is_unpacked() -> None:
    value = b'{"specversion":"1.0","data":{"task_id":"t-1","input":{"a":"%s"}}}' % (b"x" * 900_000)
    with pytest.raises(RejectedRecord):
        executor().check_size(topics.TASKS, record(value, ("content-type", b"application/cloudevents+json")))


def test_an_answer_larger_than_any_that_a_worker_sends_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(UndecodableRecord) as caught:
        executor().check_size(topics.RESULTS, record(b"x" * (8 * 1_048_576 + 1)))
    assert caught.value.code == "record_too_large"


def test_a_million_errors_of_an_input_are_not_built() -> None:
    value = b'{"task_id":"t-1","playbook":"small","input":{"tickets":[%s{}]}}' % (b"{}," * 86_000)
    started = time.monotonic()
    _, outcome = rejection(executor(), value)
    assert time.monotonic() - started < BUSY_FOR_S
    assert outcome["reason"]["message"].startswith('input.tickets[0]: "id" is a required property')


ITEM = {"type": "object", "required": ["a", "b", "c"]}
LIST = {"type": "array", "items": ITEM}
MANY: list[Any] = [{}] * 86_000


@pytest.mark.parametrize(
    ("schema", "content", "place"),
    [
        ({"properties": {"t": {"oneOf": [LIST, LIST, LIST]}}}, {"t": MANY}, "input.t: "),
        ({"properties": {"t": {"anyOf": [{"type": "string"}, LIST]}}}, {"t": MANY}, "input.t: "),
        ({"anyOf": [{"required": ["x"]}, {"properties": {"t": LIST}}]}, {"t": MANY}, "input: "),
        ({"properties": {"t": LIST}}, {"t": [{"a": 1, "b": 1, "c": 1}] * 9_000 + [{}]}, "input.t[9000]: "),
        (
            {"properties": {"t": {"items": {"$ref": "#/$defs/one"}}}, "$defs": {"one": ITEM}},
            {"t": MANY},
            "input.t[0]: ",
        ),
        ({"properties": {"t": {"type": "string"}}}, {"t": MANY}, "input.t: "),
        ({"properties": {"t": {"uniqueItems": True}}}, {"t": [[str(n)] for n in range(30_000)] + [["1"]]}, "input.t: "),
        ({"properties": {"t": {"enum": ["a"]}}}, {"t": "x" * 250_000}, "input.t: "),
        ({"properties": {"t": {"enum": ["a"]}}, "required": ["u"]}, {"t": "x"}, "input.t: "),
    ],
)
def test_a_large_input_that_does_not_fit_is_told_with_its_place_in_bounded_time(
    schema: dict[str, Any], content: dict[str, Any], place: str
) -> None:
    started = time.monotonic()
    problems = [
        describe_errors([schema_error], "input") for schema_error in JsonSchema.of(schema).schema_errors(content)
    ]
    assert time.monotonic() - started < BUSY_FOR_S
    assert 1 <= len(problems) <= 5
    assert any(problem.startswith(place) for problem in problems), problems
    assert sum(map(len, problems)) < 4_000
