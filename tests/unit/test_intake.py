"""What a record says to the executor, without Kafka."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from hypothesis import example, given
from hypothesis import strategies as st
from machine_story import NOW, playbook

from triptych.executor.deployments import Deployment
from triptych.executor.fingerprint import fingerprint_of
from triptych.executor.intake import Executor
from triptych.executor.unreadable import sender_of
from triptych.kernel.decider import FORWARDED, InboundRecord, RejectedRecord, RunMessage
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.run_ids import id_time_ms
from triptych.schemas import Task, topics

TASK = b'{"playbook": "test", "input": {}}'


def read(offset: int, timestamp: int, headers: tuple[tuple[str, bytes], ...] = ()) -> RunMessage:
    executor = Executor({"test": Deployment.of(playbook())})
    record = ConsumerRecord("triptych.tasks", 0, offset, timestamp, 0, None, TASK, None, -1, len(TASK), headers)
    return executor.read(InboundRecord(topics.TASKS, record, TASK, NOW))


def test_a_task_without_an_id_that_is_read_again_is_the_same_run() -> None:
    assert read(7, 1_000) == read(7, 1_000)
    assert read(7, 1_000).task != read(8, 1_000).task


def test_a_task_without_an_id_is_no_repeat_of_one_that_lay_there_before_kafka_lost_everything() -> None:
    assert read(7, 1_000).task != read(7, 2_000).task


def test_a_task_without_an_id_keeps_the_one_of_its_first_place_when_it_is_forwarded() -> None:
    first = read(7, 1_000)
    assert first.task is not None
    assert read(3, 2_000, ((FORWARDED, first.task.task_id.encode()),)).task == first.task


HOUR_MS = 3_600_000


def begins_at(timestamp_ms: int) -> int:
    """The time with which the id of a task's run begins, in milliseconds from the moment of its admission."""
    return id_time_ms(read(7, round(NOW.timestamp() * 1_000) + timestamp_ms).run_id) - round(NOW.timestamp() * 1_000)


@pytest.mark.parametrize("hours", [24 * 365 * 74, 24, 1, -24 * 9, -24 * 365 * 50])
def test_a_record_with_a_time_that_cannot_be_true_begins_its_run_at_the_time_of_admission(hours: int) -> None:
    assert begins_at(hours * HOUR_MS) == 0


@pytest.mark.parametrize("ms", [60_000, 0, -1, -HOUR_MS, -24 * 7 * HOUR_MS])
def test_a_record_with_a_credible_time_has_the_same_run_whenever_it_is_read(ms: int) -> None:
    assert begins_at(ms) == ms


DEFAULTS = {
    "type": "object",
    "required": ["priority"],
    "properties": {
        "priority": {"type": "string", "default": "normal"},
        "order": {"$ref": "#/$defs/order"},
        "tags": {"items": {"properties": {"kind": {"default": None}}}},
        "notify": {"type": "object", "default": {}, "properties": {"by": {"default": "mail"}}},
        "circle": {"$ref": "#/$defs/circle"},
    },
    "allOf": [{"properties": {"channel": {"allOf": [{"default": "web"}]}}}],
    "$defs": {"order": {"properties": {"units": {"default": 1}}}, "circle": {"properties": {"next": {"$ref": "#"}}}},
}
EMPTY = {"priority": "normal", "notify": {}, "channel": "web"}


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ({}, EMPTY),
        ({"priority": "", "notify": {"by": None}}, EMPTY | {"priority": "", "notify": {"by": None}}),
        ({"order": {}}, EMPTY | {"order": {"units": 1}}),
        ({"tags": [{}, {"kind": "x"}, 5]}, EMPTY | {"tags": [{"kind": None}, {"kind": "x"}, 5]}),
        ({"notify": {}}, EMPTY | {"notify": {"by": "mail"}}),
        ({"circle": {"next": {}}}, EMPTY | {"circle": {"next": EMPTY}}),
        ({"other": [1]}, EMPTY | {"other": [1]}),
    ],
)
def test_defaults_of_the_input_schema_are_put_in_where_a_task_says_nothing(told: Any, seen: Any) -> None:
    executor = Executor({"test": Deployment.of(playbook(input=DEFAULTS))})
    body = json.dumps({"task_id": "t-1", "playbook": "test", "input": told}).encode()
    record = ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, body, None, -1, len(body), ())
    addressed = executor.read(InboundRecord(topics.TASKS, record, body, NOW))
    transition = executor.apply(None, addressed, 0, NOW)
    assert transition is not None
    assert transition.state.input == seen
    assert addressed.fingerprint == fingerprint_of(Task.model_validate_json(body)), "it stays the task that was sent"


def refusal(body: bytes, *headers: tuple[str, bytes]) -> tuple[str, str, Any]:
    """The code and message of a task's dead letter, and the outcome beside it if there is one."""
    record = ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, body, None, -1, len(body), headers)
    with pytest.raises(UndecodableRecord) as refused:
        Executor({"test": Deployment.of(playbook())}).read(
            InboundRecord(topics.TASKS, record, cloudevents.body(dict(headers), body), NOW)
        )
    replies = refused.value.replies if isinstance(refused.value, RejectedRecord) else ()
    return refused.value.code, refused.value.message, replies[0].body if replies else None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"NaN", "NaN is not a JSON number (at /input/x)"),
        (b"[1e400]", "a number is too large for a double (at /input/x/0)"),
        (b"1" * 5_000, "a number has more than 1,000 digits (at /input/x)"),
        (rb'"great \ud83d"', "the text holds half of a surrogate pair; send the whole character (at /input/x)"),
        (rb'{"te\ud83d": 1}', "the text holds half of a surrogate pair; send the whole character (at /input/x/te?)"),
        (b"[" * 100 + b"]" * 100, "lists and objects are nested deeper than 101 levels (at byte 163)"),
        (b"[" * 5_000, "lists and objects are nested deeper than 101 levels (at byte 163)"),
        (b'{"a": 1, "a": 2}', "the name a stands twice in an object (at /input/x)"),
        (b"[1 2]", "the text is not JSON: expecting ',' delimiter (at byte 67)"),
        (b'"', "the text is not JSON: unterminated string starting (at byte 64)"),
        (b'"\xff"', "the text is not UTF-8 (at byte 65)"),
    ],
)
def test_a_task_that_json_cannot_carry_on_is_rejected_under_its_own_id_with_the_place(
    content: bytes, told: str
) -> None:
    body = b'{"task_id":"t-1","playbook":"test","tenant":"acme","input":{"x":' + content + b"}}"
    code, message, outcome = refusal(body)
    assert (code, message) == ("invalid_json", told)
    assert (outcome.task_id, outcome.tenant, outcome.playbook, outcome.status) == ("t-1", "acme", "test", "rejected")
    assert outcome.reason.message == told


def test_half_a_character_in_a_task_id_is_replaced_so_that_the_refusal_can_be_told() -> None:
    _, message, outcome = refusal(rb'{"task_id":"\ud83d-1","playbook":"test"}')
    assert outcome.task_id == "\ufffd-1"
    assert "(at /task_id)" in message


TASK_1 = b'{"task_id":"t-1","playbook":"test","input":{}}'
EVENT = b'{"specversion":"1.0","type":"x","source":"y","id":"1","data":%s}' % TASK_1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (EVENT, "send it with the header `content-type: application/cloudevents+json`"),
        (b"\x00\x00\x00\x00\x07" + TASK_1, "the five bytes of a schema registry"),
        (TASK_1.decode().encode("utf-16"), "the record is UTF-16; send JSON in UTF-8"),
        (json.dumps(TASK_1.decode()).encode(), "encode the task once, not twice"),
    ],
)
def test_a_task_in_another_form_is_rejected_under_its_own_id_and_told_the_cure(body: bytes, told: str) -> None:
    _, message, outcome = refusal(body)
    assert told in message
    assert (outcome.task_id, outcome.status) == ("t-1", "rejected")


def test_an_event_in_structured_mode_is_refused_with_the_place_of_what_is_wrong_in_it() -> None:
    event = EVENT.replace(b'"input":{}', b'"input":{"x":NaN}')
    _, message, outcome = refusal(event, ("content-type", b"application/cloudevents+json"))
    assert (message, outcome.task_id) == ("NaN is not a JSON number (at /data/input/x)", "t-1")


@pytest.mark.parametrize("name", ["content-type", "Content-Type", "content_type"])
def test_an_event_in_structured_mode_is_known_by_its_header_in_any_letters(name: str) -> None:
    assert cloudevents.body({name: b"application/cloudevents+json"}, EVENT) == TASK_1


@pytest.mark.parametrize("body", [b"\xff\x00", b"hello", b'{"x":', b"\x00\x00"])
def test_what_says_nothing_of_itself_is_a_dead_letter_alone(body: bytes) -> None:
    code, _, outcome = refusal(body)
    assert (code, outcome) == ("not_json", None)


def test_a_task_with_a_byte_order_mark_and_any_integer_is_read() -> None:
    body = b'\xef\xbb\xbf{"playbook":"test","input":{"order":12345678901234567890123}}'
    record = ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, body, None, -1, len(body), ())
    admission = (
        Executor({"test": Deployment.of(playbook())}).read(InboundRecord(topics.TASKS, record, body, NOW)).content
    )
    assert admission.task.input == {"order": 12345678901234567890123}


@given(st.binary(max_size=80) | st.text('{}[]:,"\\task_idat 1', max_size=60).map(str.encode))
@example(b'{"task_id":"')
@example(b'{"task_id":{"a":"b"},"playbook"::"c"}')
@example(b"}}}}{{{")
def test_any_bytes_on_the_topic_of_tasks_are_refused_and_nothing_worse(body: bytes) -> None:
    with suppress(UndecodableRecord):
        record = ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, body, None, -1, len(body), ())
        Executor({"test": Deployment.of(playbook())}).read(InboundRecord(topics.TASKS, record, body, NOW))
    sender_of(body)


@pytest.mark.parametrize("piece", [b'"', b'\\"', b"{", b'{"data":', b'"a":"b",', b"\\"])
def test_whose_a_task_is_takes_time_that_grows_as_the_task_does(piece: bytes) -> None:
    def seconds(count: int) -> float:
        began = time.process_time()
        sender_of(b'{"' + piece * count)
        return time.process_time() - began

    short = min(seconds(20_000) for _ in range(3))
    assert seconds(200_000) < 60 * short + 0.5


@pytest.mark.parametrize("piece", [b":", b"{", b'"":', b'"', b"[]", b'{"a":', b"}"])
def test_whose_a_task_is_is_looked_for_in_a_bounded_number_of_places(piece: bytes) -> None:
    began = time.process_time()
    sender_of(b'{"' + piece * (4_000_000 // len(piece)))
    assert time.process_time() - began < 0.5


def test_whose_a_task_is_may_stand_behind_a_long_list() -> None:
    body = b'{"input": {"list": [' + b"1," * 300_000 + b'NaN]}, "playbook": "test", "task_id": "last"}'
    sender = sender_of(body)
    assert sender is not None
    assert (sender.task_id, sender.playbook) == ("last", "test")
