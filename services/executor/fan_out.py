"""Fan-out and fan-in: a step that makes a call for each item of a list, and the result of all its branches.

Pure, like everything around it. One branch that fails does not end the others: the step is judged when
all have ended, by how many may fail.
"""

from __future__ import annotations

from triptych.executor import events as ev
from triptych.executor.budgets import shortfall
from triptych.executor.child_runs import waits_for_room
from triptych.executor.failures import fail_step
from triptych.executor.loop_detection import repeated_call
from triptych.executor.retries import FailureAction, retry_rule
from triptych.executor.state import Run, StepState, StepStatus, branch_id
from triptych.executor.transition import RunTransition
from triptych.playbook.expressions import ExpressionError, render
from triptych.schemas import Grant, Json, Reason


def open_branches(transition: RunTransition, state: StepState) -> None:
    """Open a branch for each item; they start as there is room for them."""
    run, step = transition.run, state.step
    try:
        items = render(step.map, run.scope())
    except ExpressionError as error:
        fail_step(
            transition,
            step.id,
            FailureAction.REPLAN,
            Reason(code="expression_error", message=f"step {step.id}, map: {error}"),
        )
        return
    if (unfit := _unfit(state, items)) is not None:
        fail_step(transition, step.id, FailureAction.REPLAN, unfit)
    elif circle := repeated_call(run, step.operation, [items, step.arguments]):
        transition.record(ev.RunEscalated(circle, step.id))
    elif short := shortfall(run.ledger, Grant(), steps=0 if state.counted else 1):
        transition.record(ev.RunEscalated(short, step.id))
    else:
        transition.record(ev.FanOutStarted(step.id, items))


def _unfit(state: StepState, items: Json) -> Reason | None:
    step = state.step
    if not isinstance(items, list):
        message = f"step {step.id}, map: gives no list but a {type(items).__name__}; refer to a list"
        return Reason(code="expression_error", message=message)
    if len(items) > step.max_items:
        message = (
            f"step {step.id} would make {len(items)} calls, and max_items is {step.max_items}; raise it, or map less"
        )
        return Reason(code="too_many_items", message=message)
    return None


def branch_to_start(run: Run, state: StepState) -> StepState | None:
    """Return the first branch that waits. Those before it have started, so few are looked at."""
    assert state.fan_out is not None  # noqa: S101 - only a step that has fanned out is asked
    if state.is_handoff and waits_for_room(run, state.step):
        return None
    for index in range(state.fan_out.next, len(state.fan_out.items)):
        branch = run.branches[branch_id(state.step.id, index)]
        if branch.status is StepStatus.WAITING:
            return branch
    return None


def fan_in(transition: RunTransition, state: StepState) -> None:
    """Decide about a step all of whose branches have ended or failed."""
    step, fan = state.step, state.fan_out
    assert fan is not None  # noqa: S101 - only a step that has fanned out is asked
    if fan.failed <= step.max_failed:
        transition.record(ev.StepEnded(step.id, StepStatus.SUCCEEDED))
        return
    first = next(branch for branch in transition.run.branches_of(state) if branch.is_failed)
    because = first.reason or Reason(code="tool_failed", message="no reason was given")
    message = (
        f"{fan.failed} of {len(fan.items)} branches of {step.id} failed, and {step.max_failed} may (max_failed); "
        f"the first, {first.id}: {because.message}"
    )
    fail_step(transition, step.id, _action(first), Reason(code=because.code, message=message))


def _action(first: StepState) -> FailureAction:
    """Plan again for reads alone: another plan could not know which of the writes were done."""
    if first.step.pin.effect.writes:
        return FailureAction.ESCALATE
    error = first.result.error if first.result else None
    return retry_rule(error, first.step.pin.effect).then if error else FailureAction.REPLAN
