"""A journal is told in words, in order, with what each step cost; and nothing in it is ever left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from triptych.client import JournalEntry, StepRow
from triptych.commands.common.branches import folded, folded_steps, with_branches
from triptych.commands.common.story import _TELLERS, tell
from triptych.executor.events import Event

START = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = {"revision": 1, "steps": [{"id": "find", "operation": "kb.search"}, {"id": "send", "operation": "helpdesk.reply", "depends_on": ["find"]}]}  # fmt: skip
REASON = {"code": "unavailable", "message": "it is down"}


def journal(*events: tuple[str, dict[str, Any]]) -> list[JournalEntry]:
    return [
        JournalEntry(seq, kind, START + timedelta(seconds=seq - 1), data) for seq, (kind, data) in enumerate(events, 1)
    ]


STORY = journal(
    ("RunAdmitted", {"task_id": "t-1", "tenant": "acme", "principal": "user:ana", "playbook": {"name": "p", "version": "v1"}, "input": {"a": 1}}),
    ("PlanRequested", {"request_id": "r:plan:1", "revision": 1, "reserved": {"tokens": 2000, "usd_micros": 100_000}}),
    ("PlanAccepted", {"request_id": "r:plan:1", "plan": PLAN, "spend": {"tokens": 900, "usd_micros": 4_000, "model_calls": [{"model": "m-1"}]}}),
    ("CallRequested", {"request_id": "r:find:1", "step": "find", "call": 1, "attempt": 1, "arguments": {"q": "x" * 500}, "idempotency_key": "k", "reserved": {}}),
    ("RequestReissued", {"request_id": "r:find:1"}),
    ("CallAnswered", {"request_id": "r:find:1", "step": "find", "result": {"status": "error", "error": REASON}, "worker": "kb-1", "spend": {"tokens": 7}}),
    ("RetryScheduled", {"ask": "call", "step": "find", "due_at": (START + timedelta(seconds=7)).isoformat(), "reason": REASON}),
    ("StepEnded", {"step": "find", "status": "failed", "reason": REASON}),
    ("RunEscalated", {"reason": REASON, "step": "find"}),
)  # fmt: skip


def test_every_event_becomes_one_line_in_order() -> None:
    lines = tell(STORY, width=80).lines
    assert [line.seq for line in lines] == list(range(1, len(STORY) + 1))
    assert [line.step for line in lines] == ["", "plan", "plan", "find", "find", "find", "find", "find", "find"]


def test_requests_and_answers_are_told_with_operation_attempt_worker_time_and_cost() -> None:
    text = "\n".join(line.text for line in tell(STORY, width=80).lines)
    assert "task t-1 of acme, for user:ana, becomes a run of p@v1" in text
    assert "asks the planner for revision 1, may use 2,000 tokens and $0.1000" in text
    assert "plan, revision 1: find (kb.search), send (helpdesk.reply after find)  [900 tokens, $0.0040, m-1]  after 1.0 s" in text  # fmt: skip
    assert "-> kb.search, attempt 1" in text
    assert "<- unavailable by kb-1: it is down  [7 tokens]  after 2.0 s" in text
    assert "call again in 1.0 s: unavailable: it is down" in text
    assert "ESCALATED to a person: unavailable: it is down" in text


def test_every_model_that_was_asked_is_told_with_what_kept_it_from_answering() -> None:
    calls = [{"model": "a:m", "failed": "rate_limited"}, {"model": "b:m", "failed": "", "tokens_cached": 800}]
    [line] = tell(journal(("PlanAccepted", {"plan": PLAN, "spend": {"tokens": 900, "model_calls": calls}})), 80).lines
    assert line.text.endswith("[900 tokens, a:m (rate_limited), b:m (800 from its cache)]")


def test_what_was_let_pass_of_an_answer_is_told() -> None:
    warnings = [{"place": "total", "message": "null is not a number"}, {"place": "", "message": "id is missing"}]
    result = {"status": "ok", "data": {"total": None}, "warnings": warnings}
    answered = ("CallAnswered", {"request_id": "r", "step": "find", "result": result, "spend": {}})
    [line] = tell(journal(answered), 200).lines
    assert line.text.startswith("<- ok, not as its contract says")
    assert line.tone == "yellow"
    assert any(
        "total: null is not a number" in detail and "the answer: id is missing" in detail for detail in line.details
    )


def test_costs_are_summed_for_each_step() -> None:
    costs = tell(STORY, width=80).costs
    assert (costs["plan"].tokens, costs["plan"].usd_micros) == (900, 4_000)
    assert (costs["find"].requests, costs["find"].tokens) == (1, 7)


def test_long_values_are_cut_unless_they_are_wanted_whole() -> None:
    cut = tell(STORY, width=80).lines[3].details[0]
    whole = tell(STORY, width=None).lines[3].details[0]
    assert cut.endswith("…")
    assert "x" * 500 in whole


def test_an_event_of_an_unknown_type_is_told_by_its_fields() -> None:
    [line] = tell(journal(("RunTeleported", {"to": "mars", "step": "find"})), width=80).lines
    assert (line.text, line.step) == ("RunTeleported", "find")
    assert 'to: "mars"' in line.details


def test_a_verdict_is_told_with_its_confidence_and_its_evidence() -> None:
    asked = ("ReviewRequested", {"request_id": "r:review:1", "step": None, "reserved": {}, "output": {"a": 1}})
    given = ("VerdictGiven", {"request_id": "r:review:1", "step": None, "decision": "escalate", "reason": REASON, "evidence": ["because"], "confidence": 0.4, "spend": {}})  # fmt: skip
    lines = tell(journal(asked, given), width=80).lines
    assert [line.step for line in lines] == ["review", "review"]
    assert "about the whole run" in lines[0].text
    assert lines[1].text.startswith("<- escalate, confidence 0.40: unavailable: it is down")
    assert lines[1].details == ('evidence: ["because"]',)


def test_whatever_the_executor_writes_is_told_in_words() -> None:
    assert {event.__name__ for event in get_args(Event)} == set(_TELLERS)


def test_a_write_that_an_earlier_plan_had_done_is_told_as_such() -> None:
    reused = ("CallReused", {"step": "send", "source": "reply", "arguments": {"ticket": 1}})
    text = tell(journal(("PlanAccepted", {"request_id": "r", "plan": PLAN}), reused), width=80).lines[-1].text
    assert text == "helpdesk.reply has been done by step reply of an earlier plan; its answer stands"


@pytest.mark.parametrize(
    ("standing", "told"),
    [
        ("granted", "has the business key"),
        ("held", "waits: step pay of run r-1 has the business key"),
        ("receipt", "is not made: step pay of run r-1 has done it, and its answer stands"),
        ("conflict", "is not made: step pay of run r-1 has the business key"),
    ],
)
def test_a_business_key_is_told_with_the_run_that_has_it(standing: str, told: str) -> None:
    asked = {"request_id": "r", "step": "send", "key": "invoice-7", "idempotency_key": "k"}
    answered = {"request_id": "r", "step": "send", "standing": standing, "holder": "r-1", "holder_step": "pay"}
    lines = tell(journal(("KeyRequested", asked), ("KeyAnswered", answered)), width=80).lines
    assert [line.text for line in lines] == ["wants the business key 'invoice-7'", told]


def test_waiting_for_an_open_breaker_is_told_as_no_attempt() -> None:
    waits = {"ask": "call", "step": "send", "due_at": START.isoformat(), "reason": REASON, "postponed": True}
    [line] = tell(journal(("RetryScheduled", waits)), width=80).lines
    assert line.text == "call again in 0 ms, no attempt used up: unavailable: it is down"


def test_a_write_that_another_run_has_made_is_told_with_that_run() -> None:
    told = {"request_id": "r", "step": "send", "holder": "run-2", "holder_step": "pay"}
    events = [("KeyRequested", {"request_id": "r", "step": "send", "key": "refund:7", "idempotency_key": "k"})]
    events += [("KeyAnswered", {**told, "standing": standing}) for standing in ("held", "conflict", "receipt")]
    lines = tell(journal(*events), width=80).lines
    assert lines[0].text == "wants the business key 'refund:7'"
    assert all("step pay of run run-2" in line.text for line in lines[1:])


def fan_out(size: int, broken: int) -> list[JournalEntry]:
    events: list[tuple[str, dict[str, Any]]] = [("FanOutStarted", {"step": "send", "items": list(range(size))})]
    for index in range(size):
        step, request = f"send.{index}", f"r:send.{index}:1"
        result = {"status": "error", "error": REASON} if index == broken else {"status": "ok", "data": {}}
        events += [
            ("CallRequested", {"request_id": request, "step": step, "call": 1, "attempt": 1, "arguments": {}, "idempotency_key": "k"}),
            ("CallAnswered", {"request_id": request, "step": step, "result": result, "spend": {"tokens": 2}}),
            ("StepEnded", {"step": step, "status": "failed" if index == broken else "succeeded"}),
        ]  # fmt: skip
    return journal(*events, ("FanInDone", {"step": "send"}))


def test_of_many_branches_those_are_told_that_did_not_go_well() -> None:
    lines = folded(tell(fan_out(100, broken=42), width=80).lines)
    assert [line.step for line in lines] == ["send", "send", "send.42", "send.42", "send.42", "send"]
    assert "99 branches have nothing unusual to tell" in lines[1].text


def test_of_many_branches_those_are_told_that_were_done_after_the_end_of_the_run() -> None:
    asked = [
        ("CallRequested", {"request_id": f"r{index}", "step": f"send.{index}", "call": 1, "attempt": 1, "arguments": {}, "idempotency_key": "k"})
        for index in range(20)
    ]  # fmt: skip
    withdrawn = {"status": "error", "error": {**REASON, "details": {"withdrawn": True}}}
    late = [
        ("AnsweredLate", {"request_id": f"r{index}", "step": f"send.{index}", "result": withdrawn if index else {"status": "ok"}})
        for index in range(20)
    ]  # fmt: skip
    fan = ("FanOutStarted", {"step": "send", "items": list(range(20))})
    lines = folded(tell(journal(fan, *asked, *late), width=80).lines)
    assert [line.step for line in lines if "." in line.step] == ["send.0", "send.0"]
    assert "after the end of the run" in lines[-1].text
    assert any("19 branches" in line.text for line in lines)


def test_few_branches_are_all_told() -> None:
    assert len(folded(tell(fan_out(4, broken=1), width=80).lines)) == 2 + 4 * 3


def test_a_step_costs_what_its_branches_cost_and_has_them_below_it() -> None:
    assert with_branches(tell(fan_out(100, broken=42), width=80).costs)["send"].tokens == 200
    names = ["send.10", "send.9", "send", "send.2", "find"]
    rows = [StepRow(name, 1, "kb.search", "failed", 1, None, None, None) for name in names]
    assert [row.step_id for row in folded_steps(rows)] == ["send", "send.2", "send.9", "send.10", "find"]
