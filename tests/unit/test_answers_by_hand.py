"""What a person says that a step has answered, held to its contract before the step ends."""

from __future__ import annotations

from typing import Any

import pytest
from machine_story import NOW, RUN_ID, Story, playbook
from test_trust import FIXED, Known, answer, honest

from triptych.contracts.compiled_contract import CompiledContract
from triptych.executor.deployments import Deployment
from triptych.executor.events import CommandRefused
from triptych.executor.intake import Executor
from triptych.executor.state import RequestKind, RunStatus, StepStatus
from triptych.kernel.decider import RunMessage
from triptych.playbook.plans import PlanContext, make_plan
from triptych.schemas import (
    HANDOFF,
    CallAnswer,
    Control,
    ControlAction,
    ErrorCode,
    Json,
    PlanAnswer,
    Result,
    StepSpec,
    handoff_contract,
)

BOOK = playbook(plan=FIXED, output={"n": "${{ steps.a.data.n }}"})


def stopped() -> Story:
    """A run whose first step has failed."""
    story = Story(BOOK)
    return story.tell(answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story))).fail("a", ErrorCode.CONFLICT)


def skip(story: Story, data: Json = None, step: str | None = None) -> str | None:
    """Tell the executor what a person says; why it is refused, if it is."""
    command_id = f"c-{len(story.run.commands)}"
    command = Control(
        command_id=command_id, run_id=RUN_ID, action=ControlAction.SKIP, principal="user:ana", data=data, step=step
    )
    executor = Executor({"test": Deployment.of(BOOK)}, contracts=Known())
    transition = executor.apply(story.run, RunMessage(RUN_ID, command), 0, NOW)
    assert transition is not None
    story.run = transition.state
    refusals = [event.reason.message for event in transition.events if hasattr(event, "action")]
    return refusals[0] if refusals else None


@pytest.mark.parametrize(
    ("data", "place"),
    [({"n": "one"}, "answer.n:"), ({"m": 1}, "answer:"), ("by hand", "answer:"), ([], "answer:")],
)
def test_an_answer_outside_the_contract_is_refused_with_its_place_and_the_step_stays_open(
    data: Json, place: str
) -> None:
    story = stopped()
    refusal = skip(story, data)
    assert refusal is not None
    assert "does not fit what echo.echo answers in step a" in refusal
    assert place in refusal
    assert story.run.status is RunStatus.ESCALATED
    assert skip(story, {"n": 1}) is None
    assert story.run.state("a").result == Result.ok({"n": 1})


def test_a_step_that_a_person_has_settled_can_be_answered_again_when_the_run_stops_for_it() -> None:
    story = stopped()
    assert skip(story) is None
    assert story.run.reason is not None
    assert story.run.stopped_step == "b", "its arguments need what step a has not answered"
    assert skip(story) is None
    assert story.run.status is RunStatus.ESCALATED
    assert "playbook output" in story.run.reason.message if story.run.reason else False
    assert skip(story, {"n": 7}, "a") is None
    assert (story.run.status, story.run.output) == (RunStatus.SUCCEEDED, {"n": 7})


def test_a_step_that_has_ended_by_itself_cannot_be_answered_by_hand() -> None:
    story = Story(BOOK)
    story.tell(answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story)))
    story.tell(answer(story, CallAnswer, RequestKind.CALL, "a", result=Result.ok({"n": 1}))).fail(
        "b", ErrorCode.CONFLICT
    )
    assert "has ended (succeeded)" in (skip(story, {"n": 2}, "a") or "")
    assert story.run.state("a").status is StepStatus.SUCCEEDED


MERGED: dict[str, Any] = {"ok": 1, "empty": 0, "error": 0}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"n": 1}, "answer:"),
        (MERGED | {"branches": [{"status": "ok", "data": {"n": "one"}}]}, "answer.branches[0].data.n:"),
        (MERGED | {"branches": [{"status": "error"}, {"status": "ok"}]}, "answer.branches[1].data:"),
        (MERGED | {"branches": [{"status": "ok", "data": {"n": 1}}]}, None),
    ],
)
def test_an_answer_in_the_place_of_all_branches_is_held_to_what_they_answer(data: Json, place: str | None) -> None:
    story = stopped_fan()
    refusal = skip(story, data, "a")
    assert (refusal is None) == (place is None)
    assert (place or "") in (refusal or "")


def stopped_fan() -> Story:
    spec = StepSpec(id="a", operation="echo.echo", arguments={"n": 1}, map=[1])
    written = spec.model_dump(mode="json", exclude_none=True)
    story = Story(playbook(plan={"pattern": "fixed", "steps": [written]}))
    story.tell(answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story, spec)))
    return story.fail("a.0", ErrorCode.CONFLICT)


def test_an_answer_in_the_place_of_another_run_is_held_to_what_such_a_run_answers() -> None:
    spec = StepSpec(id="a", operation=HANDOFF, arguments={"playbook": "other"})
    written = spec.model_dump(mode="json", exclude_none=True)
    story = Story(playbook(handoffs=("other",), plan={"pattern": "fixed", "steps": [written]}))
    terms = PlanContext(
        offers={HANDOFF: CompiledContract.of(handoff_contract(("other",)))},
        max_steps=20,
        retry=story.run.playbook.retry,
    )
    story.tell(answer(story, PlanAnswer, RequestKind.PLAN, plan=make_plan([spec], terms)))
    request = story.request_of("a")
    refused = Result.failed(ErrorCode.INVALID_ARGUMENTS, "no such playbook")
    story.tell(answer(story, CallAnswer, RequestKind.CALL, "a", result=refused, child=request.child))
    assert "answer" in (skip(story, {"output": {}}) or "")
    assert skip(story, {"run_id": "by hand", "playbook": "other", "output": {}}) is None
    assert story.run.status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("extend", "refused"),
    [({"tool_calls": 0.5}, "tool_calls"), ({"usd": 0.5, "tokens": 1.5, "steps": 2}, "tokens"), ({"usd": 0.5}, "")],
)
def test_a_budget_that_is_counted_is_not_extended_by_a_part_of_one(extend: dict[str, float], refused: str) -> None:
    story = stopped().control("resume", extend=extend)
    assert (story.run.status is RunStatus.ESCALATED) is bool(refused)
    reasons = [event.reason.message for event in story.last if isinstance(event, CommandRefused)]
    assert reasons == (
        [f"only usd can be extended by a part of one; give a whole number of {refused}"] if refused else []
    )
