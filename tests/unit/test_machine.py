"""The state machine, as a product person would tell it: what happens to a run, in which order, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from machine_story import NOW, RUN_ID, Story, model_playbook, playbook, read, step

from triptych.executor import events as ev
from triptych.executor.fold import evolve
from triptych.executor.messages import final_outcome, messages
from triptych.executor.projections import touched_steps
from triptych.executor.state import RequestKind, RunStatus, StepStatus
from triptych.schemas import (
    CallAnswer,
    Cost,
    Decision,
    Effect,
    ErrorCode,
    Fallback,
    Pin,
    Plan,
    PlanAnswer,
    Reason,
    Result,
    Spend,
    StandIn,
    ToolError,
    VerdictAnswer,
)


def test_a_task_becomes_a_run_that_waits_for_its_plan() -> None:
    story = Story()
    assert story.kinds() == ["RunAdmitted", "PlanRequested"]
    assert story.run.status is RunStatus.PLANNING


def test_a_run_of_one_step_succeeds_when_its_result_arrives() -> None:
    story = Story(playbook(output={"got": "${{ steps.a.data.value }}"})).plan(step("a"))
    assert story.statuses() == {"a": "running"}
    story.result("a")
    assert story.kinds() == ["CallAnswered", "StepEnded", "RunEnded"]
    assert story.run.status is RunStatus.SUCCEEDED
    assert story.run.output == {"got": 1}


def test_a_plan_of_another_revision_than_was_asked_for_is_asked_for_again() -> None:
    story = Story()
    other = Plan(revision=2**40, steps=(step("a"),))
    story.tell(PlanAnswer(run_id=RUN_ID, tenant="default", request_id=story.request(RequestKind.PLAN), plan=other))
    assert story.kinds() == ["PlanRefused", "RetryScheduled"]
    story.wait(seconds=1).plan(step("a")).result("a")
    assert story.run.status is RunStatus.SUCCEEDED


def test_steps_wait_for_what_they_depend_on_and_branches_run_side_by_side() -> None:
    story = Story().plan(step("a"), step("b"), step("c", "a", "b"))
    assert story.statuses() == {"a": "running", "b": "running", "c": "waiting"}
    story.result("b")
    assert story.statuses()["c"] == "waiting"
    story.result("a")
    assert story.statuses()["c"] == "running"


def test_no_more_steps_run_at_once_than_the_playbook_allows() -> None:
    story = Story(playbook(parallel=2)).plan(*(step(name) for name in "abcd"))
    assert list(story.statuses().values()).count("running") == 2
    story.result("a")
    assert story.statuses() == {"a": "succeeded", "b": "running", "c": "running", "d": "waiting"}


def test_a_step_whose_condition_is_false_is_skipped_and_its_dependents_go_on() -> None:
    story = Story(input={"vip": False}).plan(step("a", when="input.vip"), step("b", "a"))
    assert story.statuses() == {"a": "skipped", "b": "running"}


def test_arguments_are_rendered_from_the_input_and_earlier_results() -> None:
    story = Story(input={"name": "Ana"}).plan(
        step("a", arguments={"hello": "Hello ${{ input.name }}"}),
        step("b", "a", arguments={"n": "${{ steps.a.data }}"}),
    )
    assert story.run.steps["a"].arguments == {"hello": "Hello Ana"}
    assert story.result("a").run.steps["b"].arguments == {"n": {"value": 1}}


def test_found_nothing_is_not_a_failure() -> None:
    assert Story().plan(step("a")).result("a", Result.empty()).run.status is RunStatus.SUCCEEDED


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.RATE_LIMITED, ErrorCode.INTERNAL])
def test_a_passing_failure_is_tried_again_after_a_backoff_under_the_same_key(code: ErrorCode) -> None:
    story = Story().plan(step("a", effect=Effect.IDEMPOTENT))
    first = story.run.requests[story.request(RequestKind.CALL, "a")].event
    story.fail("a", code)
    assert story.kinds() == ["CallAnswered", "RetryScheduled"]
    assert not story.run.requests
    story.wait(seconds=1)
    second = story.run.requests[story.request(RequestKind.CALL, "a")].event
    assert second.idempotency_key == first.idempotency_key
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.request_id != second.request_id


def test_a_retry_waits_at_least_as_long_as_the_upstream_asked() -> None:
    story = Story().plan(step("a")).fail("a", ErrorCode.RATE_LIMITED, retry_after_ms=5_000)
    assert story.wait(seconds=4).run.requests == {}
    assert story.wait(seconds=1.1).request(RequestKind.CALL, "a")


@pytest.mark.parametrize("wait_ms", [10**18, 600_001])
def test_an_upstream_that_asks_for_a_longer_wait_than_the_run_has_is_not_waited_for(wait_ms: int) -> None:
    story = Story(playbook(budgets={"wall_ms": 600_000})).plan(step("a"))
    story.fail("a", ErrorCode.RATE_LIMITED, retry_after_ms=wait_ms)
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == "tool_unavailable"
    assert "and the run has 600 s left" in story.run.reason.message


def test_an_upstream_that_asks_for_a_wait_within_the_time_of_the_run_is_waited_for() -> None:
    story = Story(playbook(budgets={"wall_ms": 600_000})).plan(step("a"))
    story.fail("a", ErrorCode.RATE_LIMITED, retry_after_ms=599_000).wait(seconds=599.5)
    assert story.request(RequestKind.CALL, "a")


def test_when_attempts_are_used_up_the_run_escalates_and_stays_resumable() -> None:
    story = Story(playbook(retry={"max_attempts": 2})).plan(step("a", retry={"max_attempts": 2}))
    story.fail("a", ErrorCode.UNAVAILABLE).wait(seconds=31).fail("a", ErrorCode.UNAVAILABLE)
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == "tool_unavailable"
    story.control("resume")
    assert story.run.status is RunStatus.RUNNING
    assert story.result("a").run.status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ErrorCode.UNAUTHENTICATED, "identity"),
        (ErrorCode.FORBIDDEN, "identity"),
        (ErrorCode.IN_DOUBT, "in_doubt"),
        (ErrorCode.INVALID_ARGUMENTS, "invalid_arguments"),
        (ErrorCode.BUDGET_EXCEEDED, "budget_tokens"),
    ],
)
def test_what_a_retry_cannot_cure_goes_to_a_person_at_once(code: ErrorCode, reason: str) -> None:
    story = Story().plan(step("a")).fail("a", code)
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == reason
    assert story.run.stopped_step == "a"


def test_refused_arguments_are_repaired_once_and_then_planned_anew() -> None:
    story = Story(model_playbook(budgets={"replans": 1})).plan(step("a")).fail("a", ErrorCode.INVALID_ARGUMENTS)
    assert story.run.repair == "a"
    assert story.run.ledger.replans == 0, "a repair is no replan"
    story.plan(step("a", arguments={"value": 2})).fail("a", ErrorCode.INVALID_ARGUMENTS)
    assert (story.run.repair, story.run.ledger.replans) == (None, 1)
    story.plan(step("b", arguments={"value": 3})).fail("b", ErrorCode.INVALID_ARGUMENTS)
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason.code == "budget_replans"


def test_a_read_in_the_wrong_shape_is_tried_again_but_a_write_is_not() -> None:
    assert Story().plan(step("a")).fail("a", ErrorCode.CONTRACT_VIOLATION).kinds()[-1] == "RetryScheduled"
    write = Story().plan(step("a", effect=Effect.ONCE)).fail("a", ErrorCode.CONTRACT_VIOLATION)
    assert write.run.status is RunStatus.ESCALATED


def test_a_duplicate_answer_changes_nothing() -> None:
    story = Story().plan(step("a"), step("b", "a"))
    request_id = story.request(RequestKind.CALL, "a")
    story.result("a")
    before = story.run
    again = CallAnswer(request_id=request_id, run_id=RUN_ID, tenant="default", result=Result.ok({"value": 2}))
    assert story.tell(again).last == ()
    assert story.run == before


def test_nothing_changes_a_finished_run() -> None:
    story = Story().plan(step("a")).result("a")
    assert story.control("cancel").last == ()
    assert story.wait(days=1).last == ()
    assert story.run.wake_at() is None


def test_an_expectation_that_holds_needs_no_critic_and_one_that_does_not_asks_it() -> None:
    story = Story().plan(step("a", expect="result.data.value == 1")).result("a")
    assert story.run.status is RunStatus.SUCCEEDED
    story = Story().plan(step("a", expect="result.data.value == 2")).result("a")
    assert story.statuses() == {"a": "reviewing"}
    assert story.verdict("a", Decision.CONTINUE).run.status is RunStatus.SUCCEEDED


def test_every_step_is_reviewed_when_the_playbook_says_so() -> None:
    story = Story(playbook(review="every_step")).plan(step("a")).result("a")
    assert story.statuses() == {"a": "reviewing"}


def test_the_whole_run_is_reviewed_at_the_end_when_the_playbook_says_so() -> None:
    story = Story(playbook(review="final", output={"v": "${{ steps.a.data.value }}"})).plan(step("a")).result("a")
    assert story.run.status is RunStatus.REVIEWING
    story.verdict(None, Decision.CONTINUE)
    assert story.run.status is RunStatus.SUCCEEDED
    assert story.run.output == {"v": 1}


def test_a_verdict_to_retry_asks_a_read_anew_under_another_key() -> None:
    story = Story().plan(step("a", expect="false"))
    first = story.run.requests[story.request(RequestKind.CALL, "a")].event
    story.result("a").verdict("a", Decision.RETRY).wait(seconds=1)
    second = story.run.requests[story.request(RequestKind.CALL, "a")].event
    assert second.idempotency_key != first.idempotency_key


def test_a_verdict_to_retry_never_gives_a_write_another_key() -> None:
    story = Story().plan(step("a", expect="false", effect=Effect.IDEMPOTENT))
    first = story.run.requests[story.request(RequestKind.CALL, "a")].event
    story.result("a").verdict("a", Decision.RETRY).wait(seconds=1)
    assert story.run.requests[story.request(RequestKind.CALL, "a")].event.idempotency_key == first.idempotency_key


def test_a_replan_waits_for_what_is_under_way_and_keeps_what_has_ended() -> None:
    story = Story(model_playbook()).plan(step("a"), step("b", expect="false"), step("c"))
    story.result("a").result("b").verdict("b", Decision.REPLAN)
    assert not [request for request in story.run.requests.values() if request.kind is RequestKind.PLAN]
    story.result("c")
    assert story.kinds() == ["CallAnswered", "StepEnded", "PlanRequested"]
    story.plan(step("b", arguments={"n": 2}), step("d", "a", arguments={"n": 2}))
    assert story.statuses() == {"a": "succeeded", "c": "succeeded", "b": "running", "d": "running"}
    assert story.run.ledger.replans == 1


def test_a_step_that_is_planned_again_gets_another_key_because_its_arguments_may_differ() -> None:
    story = Story(model_playbook()).plan(step("a", effect=Effect.IDEMPOTENT))
    first = story.run.requests[story.request(RequestKind.CALL, "a")].event
    refused = Result.failed(ErrorCode.INVALID_ARGUMENTS, "not so", effect="none")
    story.result("a", refused).plan(step("a", effect=Effect.IDEMPOTENT))
    assert story.run.requests[story.request(RequestKind.CALL, "a")].event.idempotency_key != first.idempotency_key


@pytest.mark.parametrize("effect", [Effect.IDEMPOTENT, Effect.ONCE])
@pytest.mark.parametrize("code", [ErrorCode.INVALID_ARGUMENTS, ErrorCode.NOT_FOUND, ErrorCode.CONFLICT])
def test_a_write_that_may_have_happened_is_not_planned_again_whatever_code_it_failed_with(
    code: ErrorCode, effect: Effect
) -> None:
    story = Story(model_playbook()).plan(step("a", effect=effect)).fail("a", code)
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == code.value


def test_a_refusal_after_an_attempt_that_may_have_happened_is_not_planned_again() -> None:
    story = Story(model_playbook()).plan(step("a", effect=Effect.IDEMPOTENT)).fail("a", ErrorCode.TIMEOUT)
    story.wait(seconds=60).result("a", Result.failed(ErrorCode.INVALID_ARGUMENTS, "not so", effect="none"))
    assert story.run.status is RunStatus.ESCALATED


def test_replans_are_capped() -> None:
    story = Story(model_playbook(budgets={"replans": 1})).plan(step("a")).fail("a", ErrorCode.NOT_FOUND)
    story.plan(step("a")).fail("a", ErrorCode.NOT_FOUND)
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == "budget_replans"


def test_a_planner_that_cannot_plan_escalates_and_one_that_is_away_is_asked_again() -> None:
    story = Story(model_playbook())
    away = ToolError(code=ErrorCode.UNAVAILABLE, message="no model")
    answer = PlanAnswer(request_id=story.request(RequestKind.PLAN), run_id=RUN_ID, tenant="default", error=away)
    assert story.tell(answer).kinds() == ["PlanRefused", "RetryScheduled"]
    story.wait(seconds=10)
    bad = ToolError(code=ErrorCode.INVALID_ARGUMENTS, message="three times wrong")
    story.tell(
        PlanAnswer(
            request_id=story.request(RequestKind.PLAN), run_id=RUN_ID, tenant="default", error=bad, code="plan_invalid"
        )
    )
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == "plan_invalid"


def test_money_is_reserved_before_a_call_and_settled_after_it() -> None:
    cost = Cost(tokens=100, usd_micros=500_000)
    story = Story(playbook(budgets={"usd": 0.8, "tokens": 1000})).plan(step("a", cost=cost), step("b", cost=cost))
    assert story.run.ledger.reserved_usd_micros == 500_000
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == "budget_usd"
    story.result("a", spend=Spend(tokens=10, usd_micros=1_000))
    assert (story.run.ledger.usd_micros, story.run.ledger.reserved_usd_micros) == (1_000, 0)
    assert story.control("resume").statuses()["b"] == "running"


@pytest.mark.parametrize(
    ("budgets", "code"),
    [({"steps": 1}, "budget_steps"), ({"tool_calls": 1}, "budget_tool_calls")],
)
def test_a_budget_that_is_used_up_escalates_and_more_of_it_lets_the_run_go_on(
    budgets: dict[str, int], code: str
) -> None:
    story = Story(playbook(budgets=budgets)).plan(step("a"), step("b", "a")).result("a")
    assert story.run.reason is not None
    assert story.run.reason.code == code
    name = next(iter(budgets))
    assert story.control("resume", extend={name: 1}).result("b").run.status is RunStatus.SUCCEEDED


def test_the_wall_clock_stops_a_run_but_not_while_a_person_has_it() -> None:
    story = Story(playbook(budgets={"wall_ms": 10_000})).plan(step("a")).wait(seconds=10)
    assert story.run.reason is not None
    assert story.run.reason.code == "budget_wall_ms"
    story.wait(hours=5).control("resume", extend={"wall_ms": 2_000})
    assert story.wait(seconds=1).run.status is RunStatus.RUNNING
    assert story.wait(seconds=2).run.status is RunStatus.ESCALATED


def test_an_answer_that_comes_while_a_person_has_the_run_is_kept() -> None:
    story = Story().plan(step("a"), step("b")).fail("a", ErrorCode.FORBIDDEN).result("b")
    assert story.statuses() == {"a": "failed", "b": "answered"}
    story.control("resume")
    assert story.statuses() == {"a": "running", "b": "succeeded"}


def test_a_kept_answer_is_settled_before_anything_new_starts() -> None:
    story = Story(playbook(parallel=1)).plan(step("a", effect=Effect.ONCE), step("b"))
    story.wait(minutes=11).result("a").control("resume", extend={"wall_ms": 600_000})
    assert story.statuses() == {"a": "succeeded", "b": "running"}


def test_a_plan_that_comes_after_a_resume_is_carried_out_and_no_other_is_asked_for() -> None:
    story = Story(model_playbook()).plan(step("a")).fail("a", ErrorCode.INVALID_ARGUMENTS)
    story.wait(minutes=11).control("resume", extend={"wall_ms": 600_000})
    story.plan(step("b"))
    assert story.statuses()["b"] == "running"
    assert story.result("b").run.status is RunStatus.SUCCEEDED


def test_a_person_can_settle_a_step_by_hand() -> None:
    story = Story(playbook(output={"v": "${{ steps.a.data.value }}"})).plan(step("a")).fail("a", ErrorCode.IN_DOUBT)
    story.control("skip", data={"value": 42})
    assert story.run.status is RunStatus.SUCCEEDED
    assert story.run.output == {"v": 42}


def test_a_person_can_abort_an_escalated_run_and_cancel_any_live_one() -> None:
    escalated = Story().plan(step("a")).fail("a", ErrorCode.IN_DOUBT).control("abort")
    assert escalated.run.status is RunStatus.FAILED
    running = Story().plan(step("a")).control("cancel", note="changed my mind")
    assert running.run.status is RunStatus.CANCELLED
    assert "user:ana" in running.run.reason.message if running.run.reason else False


def test_a_command_that_does_not_fit_is_refused_and_a_repeated_one_is_dropped() -> None:
    story = Story().plan(step("a"))
    assert story.control("resume").kinds() == ["CommandRefused"]
    assert story.control("resume").last == ()
    story.fail("a", ErrorCode.IN_DOUBT).control("resume", "c-2").fail("a", ErrorCode.IN_DOUBT)
    assert story.control("resume", "c-2").last == ()
    assert story.run.status is RunStatus.ESCALATED


def test_a_request_that_nobody_answers_is_sent_again_under_the_same_id() -> None:
    story = Story(playbook(budgets={"wall_ms": 3_600_000})).plan(step("a"))
    request_id = story.request(RequestKind.CALL, "a")
    story.wait(seconds=40)
    assert story.last == (ev.RequestReissued(request_id, story.run.requests[request_id].reissue_at),)


def test_a_request_that_may_take_days_is_sent_again_after_minutes() -> None:
    week = Pin(contract_hash="0" * 16, effect=Effect.READ, timeout_ms=7 * 86_400_000)
    story = Story(playbook(budgets={"wall_ms": 8 * 86_400_000})).plan(step("a").model_copy(update={"pin": week}))
    story.wait(seconds=700)
    assert story.kinds() == ["RequestReissued"]


def test_a_review_that_fails_is_asked_again_and_then_escalates() -> None:
    story = Story().plan(step("a", expect="false")).result("a")
    error = ToolError(code=ErrorCode.UNAVAILABLE, message="no model")
    for _ in range(3):
        story.verdict("a", None, error=error)
        assert story.run.status is RunStatus.RUNNING
        story.wait(seconds=16)
    story.verdict("a", None, error=error)
    assert story.run.reason is not None
    assert story.run.reason.code == "critic_unavailable"


def test_a_plan_with_a_hole_escalates_instead_of_waiting_for_ever() -> None:
    story = Story().plan(step("a", "ghost"))
    assert story.run.status is RunStatus.ESCALATED
    assert story.run.reason is not None
    assert story.run.reason.code == "plan_invalid"


def test_an_active_run_always_has_something_to_wait_for() -> None:
    story = Story().plan(step("a"))
    assert story.run.wake_at() is not None
    assert replace(story.run, requests={}).wake_at() == story.run.deadline_at


def test_a_journal_reads_back_as_the_run_that_wrote_it() -> None:
    story = Story(model_playbook(review="final")).plan(step("a", expect="false"), step("b", judge={"criteria": "good"}))
    story.result("a").verdict("a", Decision.REPLAN).fail("b", ErrorCode.TIMEOUT).wait(seconds=31).result("b")
    story.verdict("b", Decision.CONTINUE, confidence=0.9, evidence=("it is",)).plan(step("c"))
    story.fail("c", ErrorCode.IN_DOUBT).control("skip", data=1).verdict(None, Decision.CONTINUE)
    lookup = ev.PlaybookLookup((story.run.playbook,))
    decoded = [(ev.decode(*ev.encode(event), lookup), at) for event, at in story.journal]
    assert [event for event, _ in decoded] == [event for event, _ in story.journal]
    assert story.run.status is RunStatus.SUCCEEDED
    assert StepStatus.SKIPPED in {state.status for state in story.run.steps.values()}


def test_a_write_that_took_effect_keeps_its_key_whatever_is_planned_later() -> None:
    story = Story(model_playbook()).plan(step("a", effect=Effect.IDEMPOTENT, expect="false"))
    first = story.run.requests[story.request(RequestKind.CALL, "a")].event
    story.result("a").verdict("a", Decision.REPLAN)
    story.plan(step("a", effect=Effect.IDEMPOTENT, arguments={"other": True}))
    assert story.run.requests[story.request(RequestKind.CALL, "a")].event.idempotency_key == first.idempotency_key


def test_a_write_whose_outcome_is_open_keeps_its_key_when_another_step_makes_the_planner_plan_again() -> None:
    story = Story(model_playbook()).plan(step("a", effect=Effect.IDEMPOTENT), step("b"))
    first = story.run.requests[story.request(RequestKind.CALL, "a")].event
    story.fail("a", ErrorCode.TIMEOUT).fail("b", ErrorCode.NOT_FOUND).plan(step("a", effect=Effect.IDEMPOTENT))
    assert story.run.requests[story.request(RequestKind.CALL, "a")].event.idempotency_key == first.idempotency_key


def test_a_later_plan_does_not_repeat_a_write_under_another_name() -> None:
    write = {"effect": Effect.ONCE, "arguments": {"to": "ana"}}
    story = Story(model_playbook()).plan(step("a", **write), step("b", "a")).result("a").fail("b", ErrorCode.NOT_FOUND)
    story.plan(step("again", **write), step("c", "again"))
    assert story.kinds() == ["PlanAccepted", "CallReused", "StepEnded", "CallRequested"]
    assert story.statuses() == {"a": "succeeded", "again": "succeeded", "c": "running"}
    assert story.run.ledger.tool_calls == 3


def test_a_write_that_was_answered_while_a_person_had_the_run_is_not_done_again_by_a_later_plan() -> None:
    write = {"effect": Effect.ONCE, "arguments": {"to": "ana"}}
    story = Story(model_playbook()).plan(step("a", **write), step("b")).fail("b", ErrorCode.NOT_FOUND)
    story.wait(days=1).result("a").control("resume", extend={"wall_ms": 3_600_000})
    assert story.statuses()["a"] == "succeeded"
    story.plan(step("again", **write))
    assert "CallReused" in story.kinds()
    assert "CallRequested" not in story.kinds()


def test_a_write_that_was_done_and_not_accepted_is_not_done_again_under_another_name() -> None:
    write = {"effect": Effect.ONCE, "arguments": {"to": "ana"}}
    story = Story(model_playbook()).plan(step("a", **write, expect="false")).result("a").verdict("a", Decision.REPLAN)
    story.plan(step("again", **write))
    assert "CallRequested" not in story.kinds()


def test_a_write_whose_outcome_is_open_keeps_its_key_under_another_name() -> None:
    write = {"effect": Effect.IDEMPOTENT, "arguments": {"to": "ana"}}
    story = Story(model_playbook()).plan(step("a", **write), step("b"))
    first = story.request_of("a")
    story.fail("a", ErrorCode.TIMEOUT).fail("b", ErrorCode.NOT_FOUND).plan(step("again", **write))
    assert story.request_of("again").idempotency_key == first.idempotency_key
    assert story.result("again").run.status is RunStatus.SUCCEEDED


def test_a_plan_may_do_the_same_write_twice_if_the_playbook_says_so() -> None:
    write = {"effect": Effect.ONCE, "arguments": {"to": "ana"}}
    story = Story(playbook(limits={"same_call": 2})).plan(step("a", **write), step("b", "a", **write)).result("a")
    assert story.statuses() == {"a": "succeeded", "b": "running"}


def test_waiting_for_an_open_breaker_uses_up_no_attempt_but_does_not_go_on_for_ever() -> None:
    story = Story(playbook(budgets={"wall_ms": 3_600_000})).plan(step("a", retry={"max_attempts": 2}))
    refused = Result.failed(ErrorCode.UNAVAILABLE, "open", retry_after_ms=1_000, postponed="breaker")
    for attempt in (1, 2):
        for _ in range(10):
            story.result("a", refused).wait(seconds=2)
        assert story.run.steps["a"].attempts == attempt
        story.result("a", refused).wait(seconds=31)
    assert story.run.status is RunStatus.ESCALATED


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.RATE_LIMITED, ErrorCode.TIMEOUT])
def test_an_outage_uses_up_no_tool_calls_however_often_a_person_resumes(code: ErrorCode) -> None:
    story = Story(playbook(budgets={"tool_calls": 1, "wall_ms": 60_000})).plan(step("a", retry={"max_attempts": 2}))
    for number in range(3):
        story.fail("a", code).wait(seconds=2).fail("a", code)
        assert (story.run.reason.code, story.run.ledger.tool_calls) == ("tool_unavailable", 0)
        story.control("resume", command_id=f"resume-{number}")
    assert story.result("a").run.status is RunStatus.SUCCEEDED
    assert story.run.ledger.tool_calls == 1


def test_a_run_may_get_the_most_time_there_is_any_number_of_times() -> None:
    story = Story(playbook()).plan(step("a", retry={"max_attempts": 1}))
    for number in range(300):
        story.fail("a", ErrorCode.UNAVAILABLE)
        story.control("resume", command_id=f"resume-{number}", extend={"wall_ms": 1e12})
    assert story.result("a").run.status is RunStatus.SUCCEEDED


def test_a_failure_of_the_tool_itself_uses_up_a_tool_call() -> None:
    story = Story(playbook(budgets={"tool_calls": 1, "wall_ms": 60_000})).plan(step("a", retry={"max_attempts": 2}))
    assert story.fail("a", ErrorCode.INTERNAL).wait(seconds=2).run.reason.code == "budget_tool_calls"


def test_a_write_that_may_have_happened_is_told_of_when_later_attempts_certainly_did_nothing() -> None:
    story = Story(playbook()).plan(step("a", effect=Effect.ONCE))
    story.result("a", Result.failed(ErrorCode.UNAVAILABLE, "the server broke off"))
    story.wait(seconds=20)
    for _ in range(story.run.state("a").step.retry.max_attempts - 1):
        story.result("a", Result.failed(ErrorCode.UNAVAILABLE, "nothing was called", effect="none")).wait(seconds=20)
    assert story.run.reason is not None
    assert story.run.reason.message.endswith("nothing was called; an earlier attempt may have taken effect")


def test_a_call_that_a_breaker_refused_is_given_back_once_also_when_it_is_the_last() -> None:
    story = Story(playbook(budgets={"wall_ms": 3_600_000})).plan(step("a", retry={"max_attempts": 1}))
    refused = Result.failed(ErrorCode.UNAVAILABLE, "open", retry_after_ms=1_000, postponed="breaker")
    while story.run.status is not RunStatus.ESCALATED:
        story.result("a", refused).wait(seconds=2)
        assert story.run.ledger.tool_calls in (0, 1)
    assert story.run.ledger.tool_calls == 0


def test_a_journal_from_before_outages_were_given_back_is_read_as_it_was_counted() -> None:
    refused = {
        "status": "error",
        "error": {"code": "unavailable", "message": "open", "details": {"postponed": "breaker"}},
    }
    story = Story().plan(step("a"))
    answered = ev.decode(
        "CallAnswered",
        json.dumps({"request_id": story.request(RequestKind.CALL, "a"), "step": "a", "result": refused}),
        ev.PlaybookLookup(),
    )
    run = evolve(story.run, answered, NOW)
    assert run.ledger.tool_calls == 1
    later = ev.RetryScheduled("call", "a", NOW, Reason(code="breaker_refused", message="open"), postponed=True)
    assert evolve(run, later, NOW).ledger.tool_calls == 0


def spare(**fallback: object) -> StandIn:
    pin = step("x").pin if "operation" in fallback else None
    return StandIn(fallback=Fallback.model_validate(fallback), pin=pin)


def test_fallbacks_follow_each_other_when_an_upstream_stays_down() -> None:
    spares = (spare(operation="echo.other"), spare(cached_ms=1_000), spare(data={"value": 0}))
    story = Story().plan(step("a", retry={"max_attempts": 2}, fallback=spares))
    story.fail("a", ErrorCode.UNAVAILABLE).wait(seconds=31).fail("a", ErrorCode.TIMEOUT)
    assert story.kinds()[-2:] == ["FallbackTaken", "CallRequested"]
    assert (story.run.steps["a"].acting.operation, story.run.steps["a"].attempts) == ("echo.other", 1)
    open_breaker = Result.failed(ErrorCode.UNAVAILABLE, "open", retry_after_ms=1_000, postponed="breaker")
    story.result("a", open_breaker)
    assert read(messages(story.run, story.last, story.now)[-1]).cached_ms == 1_000
    story.fail("a", ErrorCode.UNAVAILABLE)
    assert story.run.status is RunStatus.SUCCEEDED, "a kept answer is asked for once"
    (use,) = final_outcome(story.run).body.fallbacks
    assert (use.step, use.used) == ("a", "degraded result")


@pytest.mark.parametrize(
    ("code", "details", "is_stood_in_for"),
    [
        (ErrorCode.UNAVAILABLE, {"effect": "none"}, True),
        (ErrorCode.UNAVAILABLE, {}, False),
        (ErrorCode.UNAUTHENTICATED, {"effect": "none"}, False),
    ],
)
def test_nothing_stands_in_for_a_write_that_may_have_happened(code, details, is_stood_in_for) -> None:
    write = step("a", effect=Effect.ONCE, retry={"max_attempts": 1}, fallback=(spare(operation="echo.other"),))
    story = Story().plan(write).result("a", Result.failed(code, "gone", **details))
    assert ("FallbackTaken" in story.kinds()) is is_stood_in_for


FOUND = {"hits": [{"id": "cus_1", "name": "Ana"}, {"id": "cus_7", "name": "Bo"}]}


@pytest.mark.parametrize(
    ("customer", "sources"),
    [
        ("${{ steps.find.data.hits[1].id }}", ("steps.find",)),
        ("cus_7", ("steps.find",)),
        ("cus_7", ("echo.echo",)),
        ("cus_9", ("steps.find", "input")),
        (["cus_1", "cus_7"], ("steps.find",)),
        (None, ("steps.find",)),
    ],
)
def test_an_argument_that_was_seen_where_it_has_to_come_from_is_sent(
    customer: object, sources: tuple[str, ...]
) -> None:
    update = step("update", "find", arguments={"customer": {"id": customer}}, must_come_from={"customer.id": sources})
    story = Story(input={"customer": "cus_9"}).plan(step("find"), update).result("find", Result.ok(FOUND))
    assert story.request(RequestKind.CALL, "update")


@pytest.mark.parametrize("customer", ["cus_42", 7, ["cus_1", "cus_42"]])
def test_a_plausible_argument_that_nobody_has_given_is_refused_before_the_call(customer: object) -> None:
    update = step("update", "find", arguments={"id": customer}, must_come_from={"id": ("steps.find",)})
    story = Story(model_playbook()).plan(step("find"), update).result("find", Result.ok(FOUND))
    assert story.kinds()[-2:] == ["ReplanDecided", "PlanRequested"]
    assert (story.run.failure.code, story.run.repair) == ("invented_argument", "update")
    for told in ("argument id", "steps.find", "'cus_1', 'cus_7'"):
        assert told in story.run.failure.message


def test_an_earlier_attempt_that_may_have_happened_keeps_a_write_from_being_stood_in_for() -> None:
    write = step("a", effect=Effect.IDEMPOTENT, retry={"max_attempts": 2}, fallback=(spare(operation="echo.other"),))
    story = Story().plan(write).fail("a", ErrorCode.TIMEOUT).wait(seconds=31)
    story.result("a", Result.failed(ErrorCode.UNAVAILABLE, "cannot be reached", effect="none"))
    assert "FallbackTaken" not in story.kinds()
    assert story.run.status is RunStatus.ESCALATED


def test_what_stood_in_for_a_write_and_may_have_happened_still_stands_in_after_a_resume() -> None:
    write = step("a", effect=Effect.IDEMPOTENT, retry={"max_attempts": 1}, fallback=(spare(operation="echo.other"),))
    story = Story().plan(write).result("a", Result.failed(ErrorCode.UNAVAILABLE, "gone", effect="none"))
    story.fail("a", ErrorCode.TIMEOUT).control("resume")
    assert story.run.steps["a"].acting.operation == "echo.other"


@pytest.mark.parametrize("part", ["rate", "bulkhead"])
def test_a_call_without_room_waits_as_long_as_it_takes_and_uses_up_nothing(part: str) -> None:
    story = Story(playbook(budgets={"tool_calls": 1, "wall_ms": 60_000})).plan(step("a"))
    refused = Result.failed(ErrorCode.RATE_LIMITED, "full", retry_after_ms=1_000, postponed=part)
    for _ in range(20):
        story.result("a", refused).wait(seconds=2)
    assert (story.run.steps["a"].attempts, story.run.ledger.tool_calls) == (1, 1)
    assert story.result("a").run.status is RunStatus.SUCCEEDED
    late = Story(playbook(budgets={"wall_ms": 60_000})).plan(step("a"))
    assert late.result("a", refused).wait(seconds=61).run.reason.code == "budget_wall_ms"


def test_a_worker_that_lacks_money_or_tokens_escalates_as_the_budget_that_is_short() -> None:
    for budget in ("usd", "tokens"):
        story = (
            Story().plan(step("a")).result("a", Result.failed(ErrorCode.BUDGET_EXCEEDED, "too little", budget=budget))
        )
        assert story.run.reason is not None
        assert story.run.reason.code == f"budget_{budget}"


def test_an_answer_of_another_kind_than_was_asked_for_changes_nothing() -> None:
    story = Story()
    about = {"run_id": story.run.run_id, "tenant": "default"}
    story.tell(CallAnswer(request_id=story.request(RequestKind.PLAN), result=Result.ok({}), **about))
    assert story.last == ()
    story.plan(step("a"))
    story.tell(VerdictAnswer(request_id=story.request(RequestKind.CALL, "a"), decision=Decision.CONTINUE, **about))
    story.tell(PlanAnswer(request_id=story.request(RequestKind.CALL, "a"), answer={}, **about))
    assert (story.last, story.statuses()) == ((), {"a": "running"})


def test_the_row_of_a_step_that_waits_no_longer_for_its_retry_is_written_when_another_step_leads_to_a_replan() -> None:
    story = Story(model_playbook()).plan(step("a"), step("b")).fail("a", ErrorCode.UNAVAILABLE)
    assert story.statuses()["a"] == "retrying"
    story.fail("b", ErrorCode.NOT_FOUND)
    assert story.statuses()["a"] == "waiting"
    batch = SimpleNamespace(states={RUN_ID: story.run}, events=[(RUN_ID, 0, event) for event in story.last])
    assert touched_steps(batch)[RUN_ID] == {"a", "b"}


@pytest.mark.parametrize("other", ["echo.echo", "echo.other"])
def test_a_plan_that_gives_the_name_of_a_write_to_something_else_does_not_do_the_write_again(other: str) -> None:
    write = {"effect": Effect.ONCE, "arguments": {"to": "ana"}}
    story = Story(model_playbook()).plan(step("a", **write, expect="false")).result("a").verdict("a", Decision.REPLAN)
    story.plan(step("a", operation=other, effect=Effect.ONCE), step("again", **write))
    assert story.statuses() == {"a": "running", "again": "succeeded"}


def test_a_write_whose_outcome_is_open_keeps_its_key_when_a_plan_gives_its_name_to_something_else() -> None:
    write = {"effect": Effect.IDEMPOTENT, "arguments": {"to": "ana"}}
    story = Story(model_playbook()).plan(step("a", **write), step("b"))
    first = story.request_of("a")
    story.fail("a", ErrorCode.TIMEOUT).fail("b", ErrorCode.NOT_FOUND).plan(
        step("a", operation="echo.other", effect=Effect.IDEMPOTENT), step("again", **write)
    )
    assert story.request_of("again").idempotency_key == first.idempotency_key
    assert story.request_of("a").idempotency_key != first.idempotency_key


def test_a_verdict_to_retry_what_was_not_called_goes_to_a_person() -> None:
    write = {"effect": Effect.ONCE, "arguments": {"to": "ana"}}
    story = Story(model_playbook(review="every_step")).plan(step("a", **write)).result("a")
    story.verdict("a", Decision.REPLAN).plan(step("again", **write)).verdict("again", Decision.RETRY)
    assert story.kinds() == ["VerdictGiven", "StepEnded", "RunEscalated"]
    written = step("a", fallback=[StandIn(fallback=Fallback(data={"n": 1}))], retry={"max_attempts": 1})
    story = Story(playbook(review="every_step")).plan(written).fail("a", ErrorCode.UNAVAILABLE)
    assert story.verdict("a", Decision.RETRY).kinds() == ["VerdictGiven", "StepEnded", "RunEscalated"]
