"""What is written as a dict says the same as what pydantic would make of it."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_story import NOW, Story, playbook, read, step
from pydantic_core import from_json

from triptych.executor import events as ev
from triptych.executor.messages import messages
from triptych.schemas import (
    Cost,
    Decision,
    Effect,
    ErrorCode,
    Grant,
    ModelCall,
    Reason,
    Recall,
    Result,
    ResultStatus,
    Spend,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\x00é", max_size=2), inner, max_size=3),
    max_leaves=8,
)
TIMES = st.datetimes(
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=2)), timezone(-timedelta(hours=5, minutes=30))])
)
GRANTS = st.builds(Grant, tokens=st.integers(0, 2**70), usd_micros=st.integers(0, 5), tool_calls=st.integers(0, 1))
RESULTS = st.one_of(
    st.builds(Result, status=st.just(ResultStatus.OK), data=JSON, age_ms=st.none() | st.integers(0, 9)),
    st.builds(Result.empty, JSON),
    st.builds(Result.failed, st.sampled_from(ErrorCode), st.text("a\x00", max_size=3), details=JSON),
)
SPENDS = st.builds(
    Spend,
    tokens=st.integers(0, 3),
    tool_calls=st.integers(0, 1),
    model_calls=st.sampled_from([(), (ModelCall(model="m"),)]),
)
REQUESTED = st.builds(
    ev.CallRequested,
    arguments=st.dictionaries(st.text("ab", max_size=2), JSON, max_size=2),
    reserved=GRANTS,
    deadline_at=TIMES,
    reissue_at=TIMES,
    child=st.none() | st.just(UUID(int=1)),
)
ANSWERED = st.builds(
    ev.CallAnswered,
    result=RESULTS,
    spend=SPENDS,
    started_at=st.none() | TIMES,
    finished_at=st.none() | TIMES,
    extended=st.none() | GRANTS,
)


REASONS = st.none() | st.builds(Reason, code=st.text(), message=st.text())
REVIEWED = st.builds(
    ev.ReviewRequested,
    step=st.none() | st.just("a"),
    reserved=GRANTS,
    deadline_at=TIMES,
    reissue_at=TIMES,
    output=st.dictionaries(st.text("ab", max_size=2), JSON, max_size=2),
)
JUDGED = st.builds(
    ev.VerdictGiven,
    step=st.none() | st.just("a"),
    decision=st.sampled_from(Decision),
    reason=REASONS,
    evidence=st.lists(st.text(), max_size=2).map(tuple),
    confidence=st.none() | st.floats(0, 1),
    spend=SPENDS,
)


@given(REQUESTED | ANSWERED | REVIEWED | JUDGED | st.builds(ev.StepEnded, reason=REASONS))
def test_the_journal_says_what_pydantic_would_write(event: ev.Event) -> None:
    name, data = ev.encode(event)
    adapter = ev._ADAPTERS[name]
    assert from_json(data) == from_json(adapter.serializer.to_json(event, exclude_none=True))


@given(REQUESTED | ANSWERED | REVIEWED)
def test_the_journal_gives_back_the_values_that_the_live_run_holds(event: ev.Event) -> None:
    name, data = ev.encode(event)
    again = ev.decode(name, data, ev.PlaybookLookup())
    assert again == event
    values = ("arguments", "output", "result")
    assert [repr(getattr(again, each, None)) for each in values] == [
        repr(getattr(event, each, None)) for each in values
    ]


@pytest.mark.parametrize("number", [1e16, 1e22, -1e23, 1.7976931348623157e308, 0.1, 5e-324, 2**64, 10**999])
def test_a_number_is_the_same_in_a_line_of_the_journal(number: float) -> None:
    event = ev.CallRequested(
        request_id="r",
        step="a",
        call=1,
        attempt=1,
        arguments={"n": number, "e+": "1e+22"},
        idempotency_key="k",
        reserved=Grant(),
        deadline_at=NOW,
        reissue_at=NOW,
    )
    (_, (name, data)) = ev.from_lines(ev.to_lines([event, event]))
    again = ev.decode(name, data, ev.PlaybookLookup())
    assert repr(again.arguments) == repr(event.arguments)


@pytest.mark.parametrize("number", [2**63 - 1, 2**64, -(2**70), 0.1, 1e16, 1e300])
def test_numbers_reach_a_tool_as_they_are(number: float) -> None:
    story = Story().plan(step("a", arguments={"n": number, "none": None}, cost=Cost(tokens=3)))
    (send,) = messages(story.run, story.last, story.now)
    assert read(send).arguments == {"n": number, "none": None}


def test_a_call_says_everything_that_its_step_says() -> None:
    spare = {"fallback": {"cached_ms": 5}}
    cost = Cost(tokens=7, usd_micros=8)
    story = Story(playbook(tier="cheap"), principal="user:ana", tenant="acme").plan(
        step("a", map=["x"], arguments={"of": "${{ item }}"}, cost=cost, fallback=[spare], effect=Effect.READ)
    )
    (send,) = messages(story.run, story.last, story.now)
    call = read(send)
    assert (call.step, call.index, call.arguments) == ("a", 0, {"of": "x"})
    assert (call.tenant, call.principal, call.tier) == ("acme", "user:ana", "cheap")
    assert (call.keep, call.cached_ms, call.recall) == (True, None, Recall.YES)
    assert call.grant == Grant(tokens=7, usd_micros=8)
    assert (call.attempt, call.timeout_ms, call.contract_hash) == (1, 1_000, "0" * 16)
    assert call.idempotency_key == f"{story.run.run_id}:a.0:1"
    assert (call.deadline_at, call.partition) == (story.run.deadline_at, 0)


def test_what_a_step_is_changed_to_is_what_is_written() -> None:
    before = step("a")
    assert from_json(before.encoded)["operation"] == "echo.echo"
    after = before.model_copy(update={"operation": "echo.other"})
    assert from_json(after.encoded) == from_json(after.to_bytes())
