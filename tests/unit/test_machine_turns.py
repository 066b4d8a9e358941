"""Plans by turns (ReAct, a manager with a ledger), and rounds between a maker and a checker."""

from __future__ import annotations

from machine_story import Story, playbook, read, step

from triptych.executor import events as ev
from triptych.executor.messages import messages
from triptych.executor.state import RunStatus
from triptych.schemas import Decision, Effect, ErrorCode, PlanRequest, Result, TaskLedger


def turns(pattern: str = "react", book: dict[str, object] | None = None, **plan: object) -> Story:
    plan = {"pattern": pattern, "tokens": 100, "usd": 0.01, **plan}
    return Story(playbook(plan=plan, **{"output": {"found": "${{ answer.found }}"}, **(book or {})}))


def try_something(number: int):
    return step(f"s{number}", arguments={"n": number})


def asked(story: Story) -> PlanRequest:
    (send,) = messages(story.run, [event for event in story.last if isinstance(event, ev.PlanRequested)], story.now)
    return read(send)


def test_one_step_a_turn_until_the_planner_answers() -> None:
    story = turns().plan(try_something(1)).result("s1")
    assert story.kinds()[-1] == "PlanRequested", "with what is known it plans on"
    assert [record.id for record in asked(story).known] == ["s1"]
    story.plan(try_something(2)).result("s2", Result.ok({"value": 2})).answer(found="it")
    assert story.run.status is RunStatus.SUCCEEDED
    assert story.run.output == {"found": "it"}
    assert story.run.ledger.replans == 0


def test_a_failure_is_something_learnt_and_stays_known() -> None:
    story = turns(book={"budgets": {"replans": 0}}).plan(try_something(1)).fail("s1", ErrorCode.NOT_FOUND)
    assert story.run.status is RunStatus.PLANNING, "it uses up no replan"
    assert asked(story).failure is not None
    story.plan(try_something(2)).result("s2")
    known = {record.id: record for record in asked(story).known}
    assert known["s1"].result.error.code is ErrorCode.NOT_FOUND
    assert story.answer(found=1).run.status is RunStatus.SUCCEEDED


def test_what_cannot_be_cured_by_planning_still_goes_to_a_person() -> None:
    assert turns().plan(try_something(1)).fail("s1", ErrorCode.FORBIDDEN).run.status is RunStatus.ESCALATED


def test_turns_are_capped_and_a_person_may_allow_as_many_again() -> None:
    story = turns(max_turns=2, max_stalls=9)
    assert asked(story).turns_left == 2
    for number in range(2):
        story.plan(try_something(number)).result(f"s{number}", Result.ok({"value": number}))
    assert asked(story).turns_left == 0, "it may still answer"
    story.plan(try_something(3)).result("s3", Result.ok({"value": 3}))
    assert story.run.reason is not None
    assert story.run.reason.code == "max_turns"
    assert asked(story.control("resume")).turns_left == 2


def test_turns_that_show_nothing_new_are_told_and_then_stopped_as_a_loop() -> None:
    story = turns(max_stalls=1, book={"limits": {"same_call": 9}})
    for number in range(3):
        story.plan(step(f"s{number}")).result(f"s{number}")
    assert story.run.reason is not None
    assert story.run.reason.code == "loop"
    story = turns(max_stalls=1, book={"limits": {"same_call": 9}})
    for number in range(2):
        story.plan(step(f"s{number}")).result(f"s{number}")
    assert asked(story).failure.code == "stalled"
    story.plan(step("s2", arguments={"n": 2})).result("s2")
    assert asked(story).failure is None, "something new was learnt"


def test_a_managers_ledger_is_told_again_at_each_turn() -> None:
    story = turns("manager")
    ledger = TaskLedger(facts=("the order exists (s1)",), questions=("who pays?",))
    story.plan(try_something(1), try_something(2), ledger=ledger).result("s1").result("s2")
    assert asked(story).ledger == ledger
    assert story.answer(found=1).run.task_ledger == ledger


def test_a_final_review_may_send_the_planner_on() -> None:
    story = turns(book={"review": "final"}).plan(try_something(1)).result("s1").answer(found=1)
    assert story.run.status is RunStatus.REVIEWING
    story.verdict(None, Decision.REPLAN)
    assert (story.run.status, story.run.answer) == (RunStatus.PLANNING, None)


# --- rounds -----------------------------------------------------------------------------------------


def made(**fields: object):
    arguments = {"mend": "${{ feedback == null ? 'nothing' : feedback.message }}"}
    return step("a", **{"rounds": 3, "expect": "result.data.value > 1", "arguments": arguments, **fields})


def test_what_the_checker_refuses_is_made_again_with_its_reasons() -> None:
    story = Story().plan(made()).result("a").verdict("a", Decision.RETRY, evidence=("too short",))
    assert story.kinds()[-2:] == ["RoundStarted", "CallRequested"]
    call = story.request_of("a")
    assert (call.arguments, call.attempt, call.call) == ({"mend": "said the critic"}, 1, 2)
    feedback = story.run.steps["a"].feedback
    assert (feedback["round"], feedback["evidence"], feedback["data"]) == (1, ["too short"], {"value": 1})
    assert story.result("a", Result.ok({"value": 2})).run.status is RunStatus.SUCCEEDED


def test_rounds_are_bounded_and_the_last_refusal_goes_to_a_person() -> None:
    story = Story().plan(made())
    for _ in range(3):
        story.result("a").verdict("a", Decision.REPLAN)
    assert story.run.reason is not None
    assert (story.run.status, story.run.reason.code) == (RunStatus.ESCALATED, "not_accepted")
    assert story.run.ledger.tool_calls == 3


def test_a_checker_that_is_not_sure_ends_the_rounds() -> None:
    story = Story().plan(made()).result("a").verdict("a", Decision.ESCALATE, code="low_confidence")
    assert story.run.reason.code == "low_confidence"


def test_branches_have_rounds_of_their_own() -> None:
    each = made(map=[1, 2], effect=Effect.READ)
    story = Story(playbook(parallel=2)).plan(each).result("a.0").verdict("a.0", Decision.RETRY)
    assert story.request_of("a.0").call == 2
    story.result("a.0", Result.ok({"value": 2})).result("a.1", Result.ok({"value": 3}))
    assert story.run.status is RunStatus.SUCCEEDED


def test_an_answer_that_comes_while_a_person_has_the_run_is_not_asked_for_again() -> None:
    story = turns().wait(days=1).answer(found=1)
    assert story.run.status is RunStatus.ESCALATED
    story.control("resume", extend={"wall_ms": 3_600_000})
    assert (story.run.status, story.run.answer) == (RunStatus.SUCCEEDED, {"found": 1})


def test_a_planner_may_answer_right_after_a_step_that_failed() -> None:
    story = turns("manager").plan(step("s1"), step("s2", "s1")).fail("s1", ErrorCode.NOT_FOUND).answer(found=1)
    assert (story.run.status, story.run.output) == (RunStatus.SUCCEEDED, {"found": 1})
    assert story.statuses() == {"s1": "skipped", "s2": "skipped"}
    assert story.run.steps["s1"].reason.code == "not_found"


def test_an_answer_that_comes_after_a_resume_calls_nothing_again() -> None:
    nothing_done = Result.failed(ErrorCode.NOT_FOUND, "not there", effect="none")
    story = turns().plan(step("s1", effect=Effect.ONCE)).result("s1", nothing_done).wait(days=1)
    story.control("resume", extend={"wall_ms": 3_600_000}).answer(found=1)
    assert story.run.status is RunStatus.SUCCEEDED
    assert "CallRequested" not in story.kinds()
