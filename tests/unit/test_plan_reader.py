"""Plans that were read before are known again, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import orjson
import pytest
from pydantic import ValidationError

from triptych.executor.plan_reader import MAX_KNOWN, PlanReader
from triptych.schemas import PlanAnswer
from triptych.schemas.codec import InvalidJson

PIN = {"contract_hash": "0" * 16, "version": "1", "effect": "read", "timeout_ms": 1_000, "cost": {}}
PLAN = {"revision": 1, "steps": [{"id": "a", "operation": "echo.echo", "pin": PIN}]}


def _answer(plan: Any = PLAN, **fields: Any) -> bytes:
    return orjson.dumps(
        {"request_id": "r", "run_id": str(uuid4()), "tenant": "default", "worker": "planner-1", **fields, "plan": plan}
    )


def test_equal_plans_are_one_object_and_everything_beside_them_is_read() -> None:
    reader = PlanReader()
    first, second = reader.read(_answer(request_id="first")), reader.read(_answer(request_id="second"))
    assert first.plan is second.plan
    assert (first.request_id, second.request_id) == ("first", "second")
    assert first.run_id != second.run_id


def test_an_answer_read_the_short_way_is_the_answer_read_the_long_way() -> None:
    reader = PlanReader()
    body = _answer(spend={"tokens": 7, "usd_micros": 9})
    assert reader.read(body) == reader.read(body) == PlanAnswer.model_validate_json(body)


def test_what_stands_after_a_plan_is_not_forgotten() -> None:
    reader = PlanReader()
    for worker in ("one", "two"):
        after = _answer()[:-1] + b',"started_at":"2026-01-01T00:00:00Z","code":"' + worker.encode() + b'"}'
        assert reader.read(after).code == worker
        assert reader.read(after).started_at is not None


def test_a_known_plan_in_an_answer_that_is_no_answer_is_refused() -> None:
    reader = PlanReader()
    body = _answer()
    reader.read(body)
    with pytest.raises(ValidationError):
        reader.read(body.replace(b'"run_id":"', b'"run_id":"x'))
    with pytest.raises(InvalidJson):
        reader.read(b"[" + body)


def test_a_plan_inside_something_else_is_not_the_answers_plan() -> None:
    reader = PlanReader()
    reader.read(_answer())
    hidden = orjson.dumps({"request_id": "r", "run_id": str(uuid4()), "tenant": "default", "x": {"plan": PLAN}})
    assert reader.read(hidden).plan is None
    assert reader.read(hidden[:-1] + b"}").plan is None


def test_it_remembers_a_limited_number_of_plans() -> None:
    reader = PlanReader()
    plans = [{**PLAN, "revision": number} for number in range(1, MAX_KNOWN + 2)]
    first = reader.read(_answer(plans[0])).plan
    for plan in plans[1:]:
        reader.read(_answer(plan))
    again = reader.read(_answer(plans[0])).plan
    assert again == first
    assert again is not first


def test_the_json_of_a_plan_is_part_of_its_answers_json() -> None:
    answer = PlanReader().read(_answer())
    assert answer.plan is not None
    encoded = answer.plan.encoded
    assert answer.plan.encoded is encoded
    assert encoded in answer.to_bytes()
    assert b"encoded" not in answer.to_bytes()
