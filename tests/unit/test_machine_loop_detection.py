"""A model that plans in circles is stopped, and one that gets on is not."""

from __future__ import annotations

import pytest
from machine_story import Story, model_playbook, playbook, step

from triptych.executor.state import RunStatus
from triptych.schemas import Decision, Effect, ErrorCode, Result

FOUR_TIMES_THE_SAME = [step(name) for name in "abcd"]


def reason_of(story: Story) -> str | None:
    return story.run.reason.code if story.run.reason else None


def test_the_same_call_by_more_steps_than_allowed_is_a_loop() -> None:
    story = Story(model_playbook(parallel=10)).plan(*FOUR_TIMES_THE_SAME)
    assert (story.run.status, reason_of(story), story.run.stopped_step) == (RunStatus.ESCALATED, "loop", "d")
    assert "limits.same_call" in story.run.reason.message


def test_how_often_is_the_playbooks_to_say() -> None:
    story = Story(model_playbook(limits={"same_call": 4})).plan(*FOUR_TIMES_THE_SAME)
    assert story.run.status is RunStatus.RUNNING
    story = Story(model_playbook(limits={"same_call": 1})).plan(step("a"), step("b"))
    assert reason_of(story) == "loop"


def test_another_argument_makes_another_call() -> None:
    story = Story(model_playbook(parallel=10)).plan(*(step(str(f"s{n}"), arguments={"n": n}) for n in range(9)))
    assert story.run.status is RunStatus.RUNNING


def test_attempts_and_retries_of_one_call_are_no_repeats() -> None:
    book = model_playbook(limits={"same_call": 1})
    story = Story(book).plan(step("a", expect="false", retry={"max_attempts": 6}))
    for _ in range(2):
        story.fail("a", ErrorCode.UNAVAILABLE).wait(seconds=31)
    story.result("a").verdict("a", Decision.RETRY).wait(seconds=31)
    breaker = Result.failed(ErrorCode.UNAVAILABLE, "open", retry_after_ms=1_000, postponed="breaker")
    story.result("a", breaker).wait(seconds=31)
    assert story.request_of("a").attempt == 4


def test_repeats_are_counted_across_replans() -> None:
    story = Story(model_playbook(limits={"same_call": 1})).plan(step("a"))
    story.fail("a", ErrorCode.NOT_FOUND).plan(step("b"))
    assert reason_of(story) == "not_found", "why the call did not help says more than that it is repeated"
    assert "limits.same_call" in story.run.reason.message
    story = Story(model_playbook(limits={"same_call": 1}, review="final")).plan(step("a"))
    story.result("a").verdict(None, Decision.REPLAN).plan(step("b"))
    assert reason_of(story) == "loop"


def test_what_the_author_of_a_fixed_plan_repeats_is_no_loop() -> None:
    assert Story(playbook(parallel=10)).plan(*FOUR_TIMES_THE_SAME).run.status is RunStatus.RUNNING


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ErrorCode.NOT_FOUND, "not_found"),
        (ErrorCode.CONFLICT, "conflict"),
        (ErrorCode.INVALID_ARGUMENTS, "loop"),
    ],
)
def test_a_replan_after_which_nothing_was_learnt_ends_the_run_with_what_stood_in_its_way(
    code: ErrorCode, reason: str
) -> None:
    story = Story(model_playbook(limits={"same_call": 9}, budgets={"replans": 9})).plan(step("a"))
    story.fail("a", code)
    assert story.run.status is RunStatus.PLANNING, "the first failure is news"
    story.plan(step("b")).fail("b", code)
    assert reason_of(story) == reason
    assert "nothing was learnt since the last replan" in story.run.reason.message


@pytest.mark.parametrize(("details", "reason"), [({}, "identity"), ({"declined": True}, "declined")])
def test_a_person_who_says_no_is_no_matter_of_credentials(details: dict[str, bool], reason: str) -> None:
    story = Story(model_playbook()).plan(step("a"))
    story.result("a", Result.failed(ErrorCode.FORBIDDEN, "not this one", **details))
    assert (story.run.status, reason_of(story)) == (RunStatus.ESCALATED, reason)


@pytest.mark.parametrize(("code", "reason"), [(ErrorCode.NOT_FOUND, "not_found"), (None, "loop")])
def test_turns_that_lead_nowhere_end_with_what_stood_in_their_way(code: ErrorCode | None, reason: str) -> None:
    plan = {"pattern": "react", "tokens": 10, "usd": 0.001, "max_stalls": 0}
    story = Story(playbook(plan=plan, limits={"same_call": 9}))
    for name in "ab":
        story.plan(step(name))
        story.fail(name, code) if code else story.result(name)
    assert reason_of(story) == reason


def test_a_replan_after_which_something_else_was_tried_is_none() -> None:
    story = Story(model_playbook(budgets={"replans": 9})).plan(step("a"))
    for number in range(5):
        story.fail("a", ErrorCode.NOT_FOUND).plan(step("a", arguments={"n": number}))
    assert story.run.status is RunStatus.RUNNING


def test_a_final_review_that_is_never_content_is_a_loop() -> None:
    story = Story(model_playbook(review="final", limits={"same_call": 9}, budgets={"replans": 9})).plan(step("a"))
    story.result("a").verdict(None, Decision.REPLAN).plan(step("b"))
    assert story.run.status is RunStatus.RUNNING, "a verdict is news"
    story.result("b").verdict(None, Decision.REPLAN)
    assert reason_of(story) == "loop"


def test_a_person_who_resumes_a_loop_gives_it_another_round() -> None:
    story = Story(model_playbook(limits={"same_call": 1})).plan(step("a"), step("b", effect=Effect.IDEMPOTENT))
    assert reason_of(story) == "loop"
    assert story.control("resume").result("a").result("b").run.status is RunStatus.SUCCEEDED
