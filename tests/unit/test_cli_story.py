"""A journal is told in words, in order, with what each step cost; and nothing in it is ever left out."""

from __future__ import annotations

from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from machine_story import RUN_ID, playbook, step
from pydantic_core import from_json

from triptych.client import JournalEntry, StepRow
from triptych.commands.common.branches import folded, folded_steps, with_branches
from triptych.commands.common.story import render_story
from triptych.executor import events as ev
from triptych.schemas import (
    Decision,
    ErrorCode,
    Grant,
    Misreading,
    ModelCall,
    OnRepeat,
    Plan,
    Reason,
    Result,
    ResultStatus,
    Spend,
    ToolError,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
NONE = Grant()
REASON = Reason(code="unavailable", message="it is down")
DOWN = ToolError(code=ErrorCode.UNAVAILABLE, message="it is down")
FAILED = Result(status=ResultStatus.ERROR, error=DOWN)
PLAN = Plan(
    revision=1,
    steps=(step("find", operation="kb.search"), step("send", "find", operation="helpdesk.reply")),
)


def journal(*events: ev.Event | tuple[str, dict[str, Any]]) -> list[JournalEntry]:
    """The rows of these events, one a second."""
    rows = (event if isinstance(event, tuple) else ev.encode(event) for event in events)
    return [
        JournalEntry(seq, kind, START + timedelta(seconds=seq - 1), from_json(data) if isinstance(data, str) else data)
        for seq, (kind, data) in enumerate(rows, 1)
    ]


def call(request_id: str, step_id: str, **fields: Any) -> ev.CallRequested:
    known: dict[str, Any] = {"call": 1, "attempt": 1, "arguments": {}, "idempotency_key": "k", "reserved": NONE}
    return ev.CallRequested(request_id, step_id, deadline_at=START, reissue_at=START, **(known | fields))


def answer(request_id: str, step_id: str, result: Result, tokens: int = 0) -> ev.CallAnswered:
    return ev.CallAnswered(request_id, step_id, result, Spend(tokens=tokens), worker="kb-1")


def accepted(tokens: int = 900, *calls: ModelCall) -> ev.PlanAccepted:
    return ev.PlanAccepted("r:plan:1", PLAN, Spend(tokens=tokens, usd_micros=4_000, model_calls=calls))


STORY = journal(
    ev.RunAdmitted("acme", "t-1", "user:ana", playbook(), {"a": 1}, 0, START),
    ev.PlanRequested("r:plan:1", 1, Grant(tokens=2_000, usd_micros=100_000), START, START),
    accepted(900, ModelCall(model="m-1")),
    call("r:find:1", "find", arguments={"q": "x" * 500}),
    ev.RequestReissued("r:find:1", START),
    answer("r:find:1", "find", FAILED, tokens=7),
    ev.RetryScheduled("call", "find", START + timedelta(seconds=7), REASON),
    ev.StepEnded("find", "failed", REASON),
    ev.RunEscalated(REASON, "find"),
)


def test_every_event_becomes_one_line_in_order() -> None:
    lines = render_story(STORY, width=80).lines
    assert [line.seq for line in lines] == list(range(1, len(STORY) + 1))
    assert [line.step for line in lines] == ["", "plan", "plan", "find", "find", "find", "find", "find", "find"]


def test_requests_and_answers_are_told_with_operation_attempt_worker_time_and_cost() -> None:
    text = "\n".join(line.text for line in render_story(STORY, width=80).lines)
    assert f"task t-1 of acme, for user:ana, becomes a run of test@{playbook().version}" in text
    assert "asks the planner for revision 1, may use 2,000 tokens and $0.1000" in text
    assert "plan, revision 1: find (kb.search), send (helpdesk.reply after find)  [900 tokens, $0.0040, m-1]  after 1.0 s" in text  # fmt: skip
    assert "-> kb.search, attempt 1" in text
    assert "<- unavailable by kb-1: it is down  [7 tokens]  after 2.0 s" in text
    assert "call again in 1.0 s: unavailable: it is down" in text
    assert "ESCALATED to a person: unavailable: it is down" in text


def test_every_model_that_was_asked_is_told_with_what_kept_it_from_answering() -> None:
    calls = [ModelCall(model="a:m", failed="rate_limited"), ModelCall(model="b:m", tokens_cached=800)]
    [line] = render_story(journal(accepted(900, *calls)), 80).lines
    assert line.text.endswith("[900 tokens, $0.0040, a:m (rate_limited), b:m (800 from its cache)]")


def test_what_was_let_pass_of_an_answer_is_told() -> None:
    warnings = (
        Misreading(place="total", message="null is not a number"),
        Misreading(place="", message="id is missing"),
    )
    [line] = render_story(journal(answer("r", "find", Result.ok({"total": None}, warnings))), 200).lines
    assert line.text.startswith("<- ok by kb-1, not as its contract says")
    assert line.tone == "yellow"
    assert any(
        "total: null is not a number" in detail and "the answer: id is missing" in detail for detail in line.details
    )


def test_an_answer_that_asks_for_an_endless_wait_is_told() -> None:
    busy = Result.failed(ErrorCode.RATE_LIMITED, "too many", retry_after_ms=10**18)
    [line] = render_story(journal(answer("r", "find", busy)), 80).lines
    assert "asks to wait more than 36,500 days" in line.text


def test_costs_are_summed_for_each_step() -> None:
    costs = render_story(STORY, width=80).costs
    assert (costs["plan"].tokens, costs["plan"].usd_micros) == (900, 4_000)
    assert (costs["find"].requests, costs["find"].tokens) == (1, 7)


def test_long_values_are_cut_unless_they_are_wanted_whole() -> None:
    cut = render_story(STORY, width=80).lines[3].details[0]
    whole = render_story(STORY, width=None).lines[3].details[0]
    assert cut.endswith("…")
    assert "x" * 500 in whole


def test_an_event_of_an_unknown_type_is_told_by_its_fields() -> None:
    [line] = render_story(journal(("RunTeleported", {"to": "mars", "step": "find"})), width=80).lines
    assert (line.text, line.step) == ("RunTeleported", "find")
    assert 'to: "mars"' in line.details


def test_a_known_event_with_a_value_of_a_newer_version_is_told_by_its_fields() -> None:
    [line] = render_story(journal(("FanOutStarted", {"step": "find", "items": {"from": "a stream"}})), width=80).lines
    assert (line.text, line.step) == ("FanOutStarted", "find")
    assert 'items: {"from":"a stream"}' in line.details


def test_a_verdict_is_told_with_its_confidence_and_its_evidence() -> None:
    asked = ev.ReviewRequested("r:review:1", None, NONE, START, START, {"a": 1})
    given = ev.VerdictGiven("r:review:1", None, Decision.ESCALATE, REASON, ("because",), 0.4)
    lines = render_story(journal(asked, given), width=80).lines
    assert [line.step for line in lines] == ["review", "review"]
    assert "about the whole run" in lines[0].text
    assert lines[1].text.startswith("<- escalate, confidence 0.40: unavailable: it is down")
    assert lines[1].details == ('evidence: ["because"]',)


def test_the_names_in_a_step_column_are_those_of_steps_and_phases() -> None:
    again = [ev.RetryScheduled(phase, None, START, REASON) for phase in ("plan", "review")]
    replan = ev.ReplanDecided("find", REASON)
    lines = render_story(journal(*again, replan, ev.RunStarted(START)), width=80).lines
    assert [line.step for line in lines] == ["plan", "review", "plan", ""]


def test_every_event_class_is_an_event() -> None:
    """What handles events is checked against this union, so none may be missing in it."""
    made = {name for name, each in vars(ev).items() if is_dataclass(each) and each.__module__ == ev.__name__}
    assert made - {"PlaybookVersion", "JournaledAdmission"} == {each.__name__ for each in get_args(ev.Event)}


def test_a_write_that_an_earlier_plan_had_done_is_told_as_such() -> None:
    reused = ev.CallReused("send", "reply", {"ticket": 1})
    text = render_story(journal(accepted(), reused), width=80).lines[-1].text
    assert text == "helpdesk.reply has been done by step reply of an earlier plan; its answer stands"


@pytest.mark.parametrize(
    ("standing", "told"),
    [
        ("granted", "has the business key"),
        ("held", f"waits: step pay of run {RUN_ID} has the business key"),
        ("receipt", f"is not made: step pay of run {RUN_ID} has done it, and its answer stands"),
        ("conflict", f"is not made: step pay of run {RUN_ID} has the business key"),
    ],
)
def test_a_business_key_is_told_with_the_run_that_has_it(standing: str, told: str) -> None:
    asked = ev.KeyRequested("r", "send", "invoice-7", "k", 1_000, OnRepeat.CONFLICT, START)
    answered = ev.KeyAnswered("r", "send", standing, RUN_ID, "pay")
    lines = render_story(journal(asked, answered), width=80).lines
    assert [line.text for line in lines] == ["wants the business key 'invoice-7'", told]


def test_waiting_for_an_open_breaker_is_told_as_no_attempt() -> None:
    [line] = render_story(journal(ev.RetryScheduled("call", "send", START, REASON, postponed=True)), width=80).lines
    assert line.text == "call again in 0 ms, no attempt used up: unavailable: it is down"


def fan_out(size: int, broken: int) -> list[JournalEntry]:
    events: list[ev.Event] = [ev.FanOutStarted("send", list(range(size)))]
    for index in range(size):
        name, request = f"send.{index}", f"r:send.{index}:1"
        result = FAILED if index == broken else Result.ok({})
        ended = ev.StepEnded(name, "failed" if index == broken else "succeeded")
        events += [call(request, name), answer(request, name, result, tokens=2), ended]
    return journal(*events, ev.FanInDone("send"))


def test_of_many_branches_those_are_told_that_did_not_go_well() -> None:
    lines = folded(render_story(fan_out(100, broken=42), width=80).lines)
    assert [line.step for line in lines] == ["send", "send", "send.42", "send.42", "send.42", "send"]
    assert "99 branches have nothing unusual to tell" in lines[1].text


def test_of_many_branches_those_are_told_that_were_done_after_the_end_of_the_run() -> None:
    asked = [call(f"r{index}", f"send.{index}") for index in range(20)]
    withdrawn = Result.failed(ErrorCode.UNAVAILABLE, "it is down", withdrawn=True)
    late = [
        ev.AnsweredLate(f"r{index}", f"send.{index}", withdrawn if index else Result.ok(None)) for index in range(20)
    ]
    fan = ev.FanOutStarted("send", list(range(20)))
    lines = folded(render_story(journal(fan, *asked, *late), width=80).lines)
    assert [line.step for line in lines if "." in line.step] == ["send.0", "send.0"]
    assert "after the end of the run" in lines[-1].text
    assert any("19 branches" in line.text for line in lines)


def test_few_branches_are_all_told() -> None:
    assert len(folded(render_story(fan_out(4, broken=1), width=80).lines)) == 2 + 4 * 3


def test_a_step_costs_what_its_branches_cost_and_has_them_below_it() -> None:
    assert with_branches(render_story(fan_out(100, broken=42), width=80).costs)["send"].tokens == 200
    names = ["send.10", "send.9", "send", "send.2", "find"]
    rows = [StepRow(name, 1, "kb.search", "failed", 1, None, None, None) for name in names]
    assert [row.step_id for row in folded_steps(rows)] == ["send", "send.2", "send.9", "send.10", "find"]
