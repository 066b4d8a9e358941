"""The same write twice in a run is two effects, and has to be meant."""

from __future__ import annotations

import pytest
from machine_story import Story, model_playbook, playbook, step

from triptych.executor import events as ev
from triptych.executor.state import RunStatus
from triptych.schemas import Effect, ErrorCode, Playbook, Result

REFUND = {"effect": Effect.ONCE, "arguments": {"order": "A-1", "cents": 1000}}


def asked(story: Story) -> list[str]:
    return [event.step for event, _ in story.journal or () if isinstance(event, ev.CallRequested)]


def reason_of(story: Story) -> str | None:
    return story.run.reason.code if story.run.reason else None


@pytest.mark.parametrize("effect", [Effect.ONCE, Effect.IDEMPOTENT])
@pytest.mark.parametrize("depends_on", [(), ("a",)], ids=["beside", "after"])
def test_the_same_write_in_two_steps_is_made_once_and_the_second_is_refused_by_name(
    effect: Effect, depends_on: tuple[str, ...]
) -> None:
    write = REFUND | {"effect": effect}
    story = Story().plan(step("a", **write), step("b", *depends_on, **write)).result("a")
    assert asked(story) == ["a"]
    assert (story.run.status, reason_of(story)) == (RunStatus.ESCALATED, "repeated_write")
    message = story.run.reason.message
    assert all(part in message for part in ("echo.echo in step b", "step a", "limits.same_call_of.echo.echo", "Skip"))


def test_a_plan_of_a_model_is_told_and_may_go_on_without_the_repeat() -> None:
    story = Story(model_playbook()).plan(step("a", **REFUND), step("b", "a", **REFUND)).result("a")
    assert story.run.status is RunStatus.PLANNING
    assert story.run.failure.code == "repeated_write"
    assert asked(story) == ["a"]


def test_arguments_are_compared_as_json_values() -> None:
    plan = [step("a", **REFUND), step("b", "a", effect=Effect.ONCE, arguments={"cents": 1000.0, "order": "A-1"})]
    assert asked(Story().plan(*plan).result("a")) == ["a"], "1000.0 and 1000 are one number"
    plan = [step(name, effect=Effect.ONCE, arguments={"n": n}) for name, n in (("a", 1), ("b", True), ("c", "1"))]
    assert asked(Story().plan(*plan)) == ["a", "b", "c"], "1, true and a text are not"


def test_branches_with_equal_items_are_repeats_too() -> None:
    book = playbook(parallel=9)
    fan = step("each", effect=Effect.ONCE, arguments={"order": "${{ item }}"}, map=["A-1", "A-2", "A-1"])
    story = Story(book).plan(fan).result("each.0").result("each.1")
    assert asked(story) == ["each.0", "each.1"]
    assert (story.run.status, reason_of(story)) == (RunStatus.ESCALATED, "repeated_write")


def test_a_branch_and_a_step_repeat_each_other() -> None:
    fan = step("each", effect=Effect.ONCE, arguments={"order": "${{ item }}"}, map=["A-1"])
    single = step("one", "each", effect=Effect.ONCE, arguments={"order": "A-1"})
    story = Story(playbook()).plan(fan, single).result("each.0")
    assert asked(story) == ["each.0"]


def test_a_write_that_may_have_happened_counts() -> None:
    story = Story(playbook(parallel=9)).plan(step("a", retry={"max_attempts": 1}, **REFUND), step("b", "a", **REFUND))
    story.fail("a", ErrorCode.TIMEOUT).control("skip", step="a", data={"value": 1})
    assert asked(story) == ["a"]
    assert reason_of(story) == "repeated_write"


def test_a_write_that_certainly_did_nothing_does_not_count() -> None:
    undone = Result.failed(ErrorCode.NOT_FOUND, "no such order", effect="none")
    story = Story(playbook()).plan(step("a", **REFUND), step("b", "a", **REFUND)).result("a", undone)
    story.control("skip", step="a", data={"value": 1})
    assert asked(story) == ["a", "b"]


def test_a_person_who_resumes_does_not_make_it_twice_and_one_who_skips_lets_the_run_end() -> None:
    story = Story().plan(step("a", **REFUND), step("b", "a", **REFUND)).result("a").control("resume")
    assert (asked(story), reason_of(story)) == (["a"], "repeated_write")
    story.control("skip", "c-2", step="b", data={"value": 1})
    assert story.run.status is RunStatus.SUCCEEDED


def test_attempts_of_one_step_are_no_repeats() -> None:
    story = Story().plan(step("a", **REFUND)).fail("a", ErrorCode.UNAVAILABLE).wait(seconds=31)
    assert asked(story) == ["a", "a"]
    assert story.request_of("a").attempt == 2


@pytest.mark.parametrize(
    "limits", [{"same_call": 2}, {"same_call_of": {"echo.echo": 2}}, {"same_call": 1, "same_call_of": {"echo.echo": 2}}]
)
def test_the_playbook_may_say_that_a_repeat_is_meant(limits: dict[str, object]) -> None:
    plan = [step(name, **REFUND) for name in "abc"]
    story = Story(playbook(limits=limits, parallel=9)).plan(*plan)
    assert asked(story) == ["a", "b"]


def test_the_same_read_is_still_no_repeat_in_a_fixed_plan() -> None:
    assert asked(Story().plan(step("a"), step("b"))) == ["a", "b"]


def test_a_playbook_that_says_nothing_of_repeats_keeps_its_version() -> None:
    said = {"name": "p", "goal": "g", "input": {}, "tools": ("echo.*",), "plan": {"pattern": "model"}}
    versions = {
        Playbook.model_validate(said | {"limits": limits}, strict=False).version
        for limits in (
            {"active_runs": 2},
            {"active_runs": 2, "same_call": None},
            {"active_runs": 2, "same_call_of": {}},
        )
    }
    assert len(versions) == 1
