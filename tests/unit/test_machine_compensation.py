"""A run that is aborted undoes what it has written: the latest first, each once, and says what it did."""

from __future__ import annotations

from machine_story import Story, model_playbook, playbook, read, step

from triptych.executor.messages import messages
from triptych.executor.state import RequestKind, RunStatus
from triptych.schemas import CallRequest, Decision, Effect, ErrorCode, Result, Undo

BACK = Undo(
    operation="echo.back",
    arguments={"of": "${{ arguments.n }}", "id": "${{ data.value }}"},
    contract_hash="1" * 16,
    effect=Effect.IDEMPOTENT,
    timeout_ms=1_000,
)


def write(step_id: str, *depends_on: str, n: int = 1, **fields: object):
    return step(step_id, *depends_on, **{"effect": Effect.IDEMPOTENT, "arguments": {"n": n}, "undo": BACK, **fields})


def stuck(*more, **book: object) -> Story:
    """Two writes are done, a read as well, and then something a person has to look at."""
    steps = (write("a"), write("b", "a", n=2), step("look", "b"), *more, step("stop", "look"))
    story = Story(playbook(**book)).plan(*steps)
    story.result("a", Result.ok({"value": 10})).wait(seconds=1).result("b", Result.ok({"value": 20})).result("look")
    return story.fail("stop", ErrorCode.FORBIDDEN)


def undoing(story: Story) -> CallRequest:
    (send,) = messages(story.run, [event for event in story.last if type(event).__name__ == "UndoRequested"], story.now)
    return read(send)


def test_writes_are_undone_the_latest_first_each_under_a_key_of_its_own() -> None:
    story = stuck().control("abort", undo=True)
    assert story.run.status is RunStatus.UNDOING
    asked = undoing(story)
    assert (asked.operation, asked.arguments) == ("echo.back", {"of": 2, "id": 20})
    assert asked.idempotency_key == f"{story.run.run_id}:b:undo"
    assert undoing(story.undone("b")).idempotency_key == f"{story.run.run_id}:a:undo"
    story.undone("a")
    assert story.run.status is RunStatus.FAILED
    assert story.run.reason.code == "aborted"
    assert "undone: a, b" in story.run.reason.message


def test_an_abort_keeps_what_was_written_unless_it_is_asked_to_undo() -> None:
    assert stuck().control("abort").run.status is RunStatus.FAILED
    assert stuck(on_abort="undo").control("abort").run.status is RunStatus.UNDOING


def test_what_nothing_undoes_is_named() -> None:
    story = stuck(write("c", "b", n=3, undo=None)).result("c").control("abort", undo=True).undone("b").undone("a")
    assert "written and not undone, since no compensation is declared: c" in story.run.reason.message


def test_an_undo_is_tried_again_under_the_same_key() -> None:
    story = stuck().control("abort", undo=True)
    first = undoing(story)
    story.undone("b", Result.failed(ErrorCode.UNAVAILABLE, "away")).wait(seconds=31)
    again = undoing(story)
    assert (again.attempt, again.idempotency_key) == (2, first.idempotency_key)


def test_an_undo_that_fails_goes_to_a_person_who_can_only_abort() -> None:
    story = stuck().control("abort", undo=True).undone("b", Result.failed(ErrorCode.FORBIDDEN, "no"))
    assert (story.run.status, story.run.reason.code, story.run.stopped_step) == (
        RunStatus.ESCALATED,
        "undo_failed",
        "b",
    )
    assert story.control("resume", "c-2").kinds() == ["CommandRefused"]
    story.control("abort", "c-3", undo=True).undone("b").undone("a")
    assert story.run.status is RunStatus.FAILED


def test_what_is_under_way_is_waited_for_since_it_may_be_a_write() -> None:
    story = Story(playbook()).plan(write("a"), write("b", n=2), step("stop"))
    story.result("a").fail("stop", ErrorCode.FORBIDDEN).control("abort", undo=True)
    assert [request.kind for request in story.run.requests.values()] == [RequestKind.CALL]
    story.result("b", Result.ok({"value": 2}))
    assert undoing(story).idempotency_key.endswith(":b:undo")


def test_every_branch_that_wrote_is_undone() -> None:
    each = write("each", map=[1, 2], arguments={"n": "${{ item }}"}, max_failed=1)
    story = Story(playbook()).plan(each, step("stop", "each")).result("each.0").fail("each.1", ErrorCode.NOT_FOUND)
    story.fail("stop", ErrorCode.FORBIDDEN).control("abort", undo=True).undone("each.0")
    assert story.run.status is RunStatus.FAILED


def test_a_run_that_wrote_nothing_ends_at_once() -> None:
    story = Story(playbook()).plan(step("stop")).fail("stop", ErrorCode.FORBIDDEN).control("abort", undo=True)
    assert "undone: nothing" in story.run.reason.message


def test_neither_the_clock_nor_the_budgets_keep_a_run_from_undoing() -> None:
    story = stuck(budgets={"tool_calls": 4, "wall_ms": 60_000}).wait(hours=1).control("abort", undo=True)
    story.wait(hours=1).undone("b").wait(hours=1).undone("a")
    assert story.run.status is RunStatus.FAILED


def test_a_cancel_ends_the_undoing() -> None:
    assert stuck().control("abort", undo=True).control("cancel", "c-2").run.status is RunStatus.CANCELLED


def test_a_plan_that_comes_while_a_run_is_undone_changes_nothing_of_what_is_undone() -> None:
    story = Story(model_playbook()).plan(write("a", expect="false")).result("a").verdict("a", Decision.REPLAN)
    story.wait(days=1).control("abort", undo=True)
    assert (undoing(story).idempotency_key, story.run.status) == (f"{story.run.run_id}:a:undo", RunStatus.UNDOING)
    story.plan(step("c"))
    assert set(story.run.steps) == {"a"}
    story.undone("a")
    assert "undone: a" in story.run.reason.message


def test_what_a_later_plan_leaves_out_is_still_undone() -> None:
    story = Story(model_playbook()).plan(write("a", expect="false")).result("a").verdict("a", Decision.REPLAN)
    story.plan(step("c")).fail("c", ErrorCode.FORBIDDEN).control("abort", undo=True)
    assert undoing(story).idempotency_key == f"{story.run.run_id}:a:undo"
    assert "undone: a" in story.undone("a").run.reason.message


def test_a_plan_that_comes_after_an_undo_has_failed_changes_nothing_either() -> None:
    story = Story(model_playbook()).plan(write("a", expect="false")).result("a").verdict("a", Decision.REPLAN)
    story.wait(days=1).control("abort", undo=True).undone("a", Result.failed(ErrorCode.FORBIDDEN, "no"))
    story.plan(write("a", n=2)).control("abort", "c-2", undo=True)
    assert undoing(story).arguments == {"of": 1, "id": 1}


def test_what_a_later_plan_gives_the_name_of_to_something_else_is_still_undone() -> None:
    story = Story(model_playbook()).plan(write("a", expect="false")).result("a").verdict("a", Decision.REPLAN)
    story.plan(step("a", operation="echo.other")).fail("a", ErrorCode.FORBIDDEN).control("abort", undo=True)
    assert undoing(story).arguments == {"of": 1, "id": 1}
    assert "undone: a~1" in story.undone("a~1").run.reason.message


def test_what_is_undone_is_what_was_written_and_not_what_a_person_said_of_it() -> None:
    story = Story(playbook()).plan(write("a", expect="false"), step("stop", "a")).result("a", Result.ok({"value": 7}))
    story.verdict("a", Decision.ESCALATE).control("skip", data={"value": 9})
    story.fail("stop", ErrorCode.FORBIDDEN).control("abort", "c-2", undo=True)
    assert undoing(story).arguments == {"of": 1, "id": 7}


def test_a_write_that_was_asked_for_again_and_refused_is_still_undone() -> None:
    story = Story(playbook()).plan(write("a", expect="false")).result("a", Result.ok({"value": 7}))
    story.verdict("a", Decision.RETRY).wait(seconds=31).fail("a", ErrorCode.FORBIDDEN).control("abort", undo=True)
    assert undoing(story).arguments == {"of": 1, "id": 7}


def test_what_nobody_knows_the_outcome_of_is_named_and_not_taken_for_written() -> None:
    story = Story(playbook()).plan(write("a")).fail("a", ErrorCode.IN_DOUBT).control("abort", undo=True)
    assert "not undone, since it is unknown whether they were written: a" in story.run.reason.message
    assert "no compensation is declared" not in story.run.reason.message
