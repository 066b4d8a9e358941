"""A turn: one message's worth of decisions about one run, and the decisions that all of them share.

Pure, like everything around it: what a turn records is folded in at once, so that the next decision
sees it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from triptych.executor import events as ev
from triptych.executor.budgets import replans_exhausted
from triptych.executor.fold import record
from triptych.executor.loop_detection import circular_replan
from triptych.executor.retries import Then
from triptych.executor.state import Ask, Run, StepStatus
from triptych.kernel.values import value
from triptych.schemas import PlanByTurns, Reason, RetryPolicy
from triptych.schemas.playbook import LONGEST_WALL_MS


@value
class Decided:
    """The run after a message, and the events that took it there; no events means nothing changed."""

    run: Run
    events: tuple[ev.Event, ...]


class Turn:
    """One message's worth of decisions: each recorded event is folded in before the next decision."""

    def __init__(self, run: Run, now: datetime) -> None:
        self.run, self.now = run.copy(), now
        self.events: list[ev.Event] = []

    def record(self, event: ev.Event) -> None:
        self.events.append(event)
        record(self.run, event, self.now)

    def decided(self) -> Decided:
        return Decided(self.run, tuple(self.events))


def fail_step(turn: Turn, step_id: str, then: Then, reason: Reason) -> None:
    """A step has failed, and with it the plan; a branch of one fails alone, and its step is judged with all of them."""
    turn.record(ev.StepEnded(step_id, StepStatus.FAILED, reason))
    if turn.run.state(step_id).index is not None:
        return
    match then:
        case Then.REPAIR if _may_repair(turn.run, step_id):
            turn.record(ev.ReplanDecided(step_id, reason, repair=True))
        case Then.REPAIR | Then.REPLAN:
            replan_or_escalate(turn, step_id, reason)
        case Then.ESCALATE:
            turn.record(ev.RunEscalated(reason, step_id))


def _may_repair(run: Run, step_id: str) -> bool:
    """Once for each operation: a model that has seen the schema and missed it again has to plan differently."""
    is_new = run.steps[step_id].step.operation not in run.repaired
    return run.playbook.is_planned_by_model and is_new and not has_begun_writes(run)


def replan_or_escalate(turn: Turn, step_id: str | None, reason: Reason) -> None:
    """A fixed plan cannot be planned differently, so its failure goes to a person.

    Nor can a plan that is in the middle of many writes: another one could not know which of them were done.
    """
    if not turn.run.playbook.is_planned_by_model or has_begun_writes(turn.run):
        turn.record(ev.RunEscalated(reason, step_id))
    elif (exhausted := replans_exhausted(turn.run.ledger, reason)) and not _has_turns(turn.run):
        turn.record(ev.RunEscalated(exhausted, step_id))
    elif circle := circular_replan(turn.run, step_id, reason):
        turn.record(ev.RunEscalated(circle, step_id))
    else:
        turn.record(ev.ReplanDecided(step_id, reason))


def _has_turns(run: Run) -> bool:
    """Who plans by turns has these to use up, and no replans."""
    return isinstance(run.playbook.plan, PlanByTurns)


def has_begun_writes(run: Run) -> bool:
    """Whether a step with many branches is in the middle of its writes."""
    return any(
        state.fan is not None and state.status is StepStatus.RUNNING and state.step.pin.effect.writes
        for state in run.steps.values()
    )


def schedule_retry(  # noqa: PLR0917
    turn: Turn,
    ask: Ask,
    step_id: str | None,
    policy: RetryPolicy,
    attempts: int,
    reason: Reason,
    after_ms: int | None,
    *,
    postponed: bool = False,
) -> None:
    """Exponential backoff with full jitter; the jitter is drawn from the run's own ids, so it replays."""
    ceiling_ms = min(policy.cap_ms, policy.base_ms * 2 ** (attempts - 1))
    seed = f"{turn.run.run_id}:{ask}:{step_id}:{turn.run.requested}".encode()
    fraction = int.from_bytes(hashlib.sha256(seed).digest()[:4]) / 2**32
    # An upstream may ask for any wait, also for one that ends beyond all dates.
    delay_ms = min(max(after_ms or 0, ceiling_ms * fraction), LONGEST_WALL_MS)
    due_at = turn.now + timedelta(milliseconds=delay_ms)
    turn.record(ev.RetryScheduled(ask.value, step_id, due_at, reason, postponed))
