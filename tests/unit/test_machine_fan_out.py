"""A step that makes a call for each item of a list: its branches live side by side and are merged in order."""

from __future__ import annotations

import pytest
from machine_story import Story, model_playbook, playbook, read, step

from triptych.executor import events as ev
from triptych.executor.messages import messages
from triptych.executor.state import RequestKind, RunStatus
from triptych.schemas import Cost, Decision, Effect, ErrorCode, Result

ITEMS = ["x", "y", "z"]


def fan(step_id: str = "each", *depends_on: str, over: object = "${{ input.items }}", **fields: object):
    arguments = {"value": "${{ item }}", "place": "${{ index }}"}
    return step(step_id, *depends_on, **{"map": over, "arguments": arguments, **fields})


def story(*steps, items: object = None, **book: object) -> Story:
    book.setdefault("parallel", 10)
    book.setdefault("output", {"all": "${{ steps.each.data }}"})
    return Story(playbook(**book), input={"items": ITEMS if items is None else items}).plan(*(steps or [fan()]))


def branches(story: Story) -> dict[str, str]:
    return {branch_id: state.status.value for branch_id, state in story.run.branches.items()}


def test_each_item_has_a_call_and_a_key_of_its_own() -> None:
    run = story().run
    assert branches(story()) == {"each.0": "running", "each.1": "running", "each.2": "running"}
    assert [run.branches[f"each.{n}"].arguments for n in range(3)] == [
        {"value": v, "place": n} for n, v in enumerate(ITEMS)
    ]
    keys = {request.event.idempotency_key for request in run.requests.values()}
    assert keys == {f"{run.run_id}:each.{n}:1" for n in range(3)}


def test_the_merge_is_in_the_order_of_the_items_whatever_ends_first() -> None:
    told = story()
    for index in (2, 0, 1):
        told.result(f"each.{index}", Result.ok({"got": index}) if index else Result.empty())
    assert told.run.status is RunStatus.SUCCEEDED
    assert told.run.output["all"] == {
        "ok": 2,
        "empty": 1,
        "error": 0,
        "branches": [
            {"item": "x", "status": "empty", "data": None},
            {"item": "y", "status": "ok", "data": {"got": 1}},
            {"item": "z", "status": "ok", "data": {"got": 2}},
        ],
    }


def test_no_more_branches_run_at_once_than_the_playbook_allows() -> None:
    told = story(fan(), step("other"), items=list(range(20)), parallel=3)
    assert list(branches(told).values()).count("running") == 3
    assert told.statuses()["other"] == "waiting"
    for index in range(17):
        told.result(f"each.{index}")
        assert sum(status == "running" for status in branches(told).values()) == 3
    assert told.result("each.17").statuses()["other"] == "running", "the room that branches leave is for other steps"


def test_a_branch_that_fails_does_not_lose_the_others() -> None:
    told = story().fail("each.1", ErrorCode.NOT_FOUND)
    assert told.run.status is RunStatus.RUNNING
    told.result("each.0").result("each.2")
    assert (told.run.status, told.run.stopped_step) == (RunStatus.ESCALATED, "each")
    assert told.run.reason is not None
    assert told.run.reason.code == "not_found"
    assert "1 of 3 branches" in told.run.reason.message
    (known,) = told.run.known_steps()
    record = known.record()
    assert [branch["status"] for branch in record.result.data["branches"]] == ["ok", "error", "ok"]
    assert record.result.data["branches"][1]["error"]["code"] == "not_found"


def test_as_many_may_fail_as_the_step_says() -> None:
    told = story(fan(max_failed=1)).fail("each.1", ErrorCode.NOT_FOUND).result("each.0").result("each.2")
    assert told.run.status is RunStatus.SUCCEEDED
    assert told.run.output["all"]["error"] == 1


def test_a_resume_runs_again_only_what_failed() -> None:
    told = story(fan(effect=Effect.IDEMPOTENT)).fail("each.1", ErrorCode.NOT_FOUND).result("each.0").result("each.2")
    told.control("resume")
    assert [request.step for request in told.run.requests.values()] == ["each.1"]
    assert told.request_of("each.1").idempotency_key.endswith(":each.1:1"), "a write keeps its key"
    assert told.result("each.1").run.status is RunStatus.SUCCEEDED
    assert told.run.output["all"]["ok"] == 3


def test_a_skip_keeps_what_the_branches_gave() -> None:
    told = story().fail("each.1", ErrorCode.NOT_FOUND).result("each.0").result("each.2").control("skip")
    assert told.run.status is RunStatus.SUCCEEDED
    assert told.run.output["all"]["ok"] == 2


def test_each_branch_has_attempts_of_its_own() -> None:
    told = story().fail("each.0", ErrorCode.UNAVAILABLE).result("each.1").result("each.2").wait(seconds=31)
    assert told.request_of("each.0").attempt == 2
    assert told.result("each.0").run.status is RunStatus.SUCCEEDED


def test_each_branch_is_held_to_the_expectation_and_reviewed_by_itself() -> None:
    told = story(fan(expect="result.data.value == item"))
    told.result("each.0", Result.ok({"value": "x"})).result("each.1", Result.ok({"value": "wrong"}))
    assert branches(told) == {"each.0": "succeeded", "each.1": "reviewing", "each.2": "running"}
    (send,) = messages(told.run, told.last, told.now)
    review = read(send)
    assert (review.index, review.item, review.step.id) == (1, "y", "each")
    told.verdict("each.1", Decision.RETRY).wait(seconds=31).result("each.1", Result.ok({"value": "y"}))
    told.result("each.2", Result.ok({"value": "wrong"})).verdict("each.2", Decision.ESCALATE)
    assert told.run.status is RunStatus.ESCALATED
    assert branches(told) == {"each.0": "succeeded", "each.1": "succeeded", "each.2": "failed"}


def test_budgets_hold_across_branches_and_a_resume_goes_on_where_they_ran_out() -> None:
    told = story(items=list(range(6)), parallel=2, budgets={"tool_calls": 4})
    for index in range(4):
        told.result(f"each.{index}")
    assert told.run.reason is not None
    assert told.run.reason.code == "budget_tool_calls"
    assert told.run.ledger.steps == 1, "it is one step, of many calls"
    told.control("resume", extend={"tool_calls": 2}).result("each.4").result("each.5")
    assert told.run.status is RunStatus.SUCCEEDED


def test_reservations_of_branches_draw_on_the_same_budget() -> None:
    told = story(fan(cost=Cost(tokens=40)), items=list(range(5)), budgets={"tokens": 100})
    assert told.run.reason is not None
    assert (told.run.reason.code, told.run.ledger.reserved_tokens) == ("budget_tokens", 80)


def test_an_empty_list_has_found_nothing() -> None:
    told = story(items=[])
    assert told.kinds() == ["PlanAccepted", "FanOutStarted", "FanInDone", "StepEnded", "RunEnded"]
    assert told.run.steps["each"].result.status == "empty"


@pytest.mark.parametrize(
    ("items", "code"), [("text", "expression_error"), ({"a": 1}, "expression_error"), ([0] * 101, "too_many_items")]
)
def test_what_cannot_be_fanned_out_over_fails_before_any_call(items: object, code: str) -> None:
    told = Story(playbook(), input={"items": items}).plan(fan())
    assert (told.run.reason.code, told.run.ledger.tool_calls) == (code, 0)


def test_branches_go_on_while_the_run_is_with_a_person_and_nothing_is_lost() -> None:
    told = story(fan(), step("other")).fail("other", ErrorCode.FORBIDDEN)
    assert told.run.status is RunStatus.ESCALATED
    told.result("each.0").result("each.1")
    assert branches(told) == {"each.0": "answered", "each.1": "answered", "each.2": "running"}
    told.control("resume").result("other").result("each.2")
    assert told.run.status is RunStatus.SUCCEEDED


def test_reads_that_failed_are_planned_anew_and_their_keys_are_not_used_again() -> None:
    told = Story(model_playbook(parallel=9), input={"items": ITEMS}).plan(fan())
    told.fail("each.0", ErrorCode.NOT_FOUND).result("each.1").result("each.2")
    assert told.kinds()[-2:] == ["ReplanDecided", "PlanRequested"]
    told.plan(fan(over=["other"]))
    assert list(branches(told)) == ["each.0"]
    assert told.request_of("each.0").idempotency_key.endswith(":each.0:2")


def test_writes_that_failed_in_part_go_to_a_person_and_not_to_the_planner() -> None:
    told = Story(model_playbook(parallel=9), input={"items": ITEMS}).plan(fan(effect=Effect.IDEMPOTENT))
    told.fail("each.0", ErrorCode.NOT_FOUND).result("each.1").result("each.2")
    assert told.run.status is RunStatus.ESCALATED


def test_no_plan_is_made_in_the_middle_of_many_writes() -> None:
    told = Story(model_playbook(parallel=9), input={"items": ITEMS}).plan(fan(effect=Effect.IDEMPOTENT), step("other"))
    told.fail("other", ErrorCode.NOT_FOUND)
    assert told.run.status is RunStatus.ESCALATED


def test_items_may_repeat_without_being_a_loop_but_the_whole_step_may_not() -> None:
    book = model_playbook(parallel=20, limits={"same_call": 1})
    told = Story(book, input={"items": ["same"] * 9}).plan(fan(), fan("again"))
    assert told.run.reason is not None
    assert (told.run.reason.code, told.run.stopped_step) == ("loop", "again")


def test_a_review_of_a_branch_carries_its_item_and_not_the_list() -> None:
    told = story(step("list"), fan("each", "list", over="${{ steps.list.data.items }}", expect="false"))
    told.result("list", Result.ok({"items": ITEMS})).result("each.0")
    (send,) = messages(told.run, [event for event in told.last if isinstance(event, ev.ReviewRequested)], told.now)
    assert read(send).steps == ()
    assert told.request(RequestKind.REVIEW, "each.0")
