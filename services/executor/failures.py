"""What follows when a step has failed and is not tried again: other arguments, another plan, or a person. Pure.

Whether something is tried again before that is decided in `retries.py`.
"""

from __future__ import annotations

from typing import assert_never

from triptych.executor import events as ev
from triptych.executor.budgets import replans_exhausted
from triptych.executor.loop_detection import circular_replan
from triptych.executor.retries import FailureAction
from triptych.executor.state import Run, StepStatus
from triptych.executor.transition import RunTransition
from triptych.schemas import PlanByTurns, Reason


def fail_step(transition: RunTransition, step_id: str, action: FailureAction, reason: Reason) -> None:
    """Fail a step, and the plan with it. A branch fails alone: its step is judged when all branches have ended."""
    transition.record(ev.StepEnded(step_id, StepStatus.FAILED, reason))
    if transition.run.state(step_id).index is not None:
        return
    match action:
        case FailureAction.REPAIR if _may_repair(transition.run, step_id):
            transition.record(ev.ReplanDecided(step_id, reason, repair=True))
        case FailureAction.REPAIR | FailureAction.REPLAN:
            replan_or_escalate(transition, step_id, reason)
        case FailureAction.ESCALATE:
            transition.record(ev.RunEscalated(reason, step_id))
        case _:
            assert_never(action)


def _may_repair(run: Run, step_id: str) -> bool:
    """Once for each operation: a model that has seen the schema and missed it again has to plan differently."""
    is_new = run.steps[step_id].step.operation not in run.repaired
    return run.playbook.is_planned_by_model and is_new and not has_begun_writes(run)


def replan_or_escalate(transition: RunTransition, step_id: str | None, reason: Reason) -> None:
    """Ask for another plan, or escalate where another plan cannot help.

    A fixed plan cannot be planned differently. Nor can a plan that is in the middle of many writes: another one could
    not know which of them were done.
    """
    run = transition.run
    if not run.playbook.is_planned_by_model or has_begun_writes(run):
        transition.record(ev.RunEscalated(reason, step_id))
    elif (exhausted := replans_exhausted(run.ledger, reason)) and not _has_turns(run):
        transition.record(ev.RunEscalated(exhausted, step_id))
    elif circle := circular_replan(run, step_id, reason):
        transition.record(ev.RunEscalated(circle, step_id))
    else:
        transition.record(ev.ReplanDecided(step_id, reason))


def _has_turns(run: Run) -> bool:
    """Return whether the planner uses up turns, and no replans."""
    return isinstance(run.playbook.plan, PlanByTurns)


def has_begun_writes(run: Run) -> bool:
    """Return whether a step with many branches is in the middle of its writes."""
    return any(
        state.fan_out is not None and state.status is StepStatus.RUNNING and state.step.pin.effect.writes
        for state in run.steps.values()
    )
