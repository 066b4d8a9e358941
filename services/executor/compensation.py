"""Compensation: undo the writes of an aborted run, the latest first, each under a key of its own. Pure.

It is not charged to the run's budgets: those are often why the run ended, and each write is compensated at most once.
"""

from __future__ import annotations

from datetime import timedelta

from triptych.executor import events as ev
from triptych.executor.child_runs import open_children
from triptych.executor.ending import end_run
from triptych.executor.requests import REISSUE_AFTER_MS, next_request_id
from triptych.executor.retries import retry_compensation
from triptych.executor.state import CompensationStatus, RequestKind, Run, RunStatus, StepState
from triptych.executor.transition import RunTransition
from triptych.playbook.expressions import ExpressionError, render
from triptych.schemas import CallAnswer, Control, Grant, Reason, Undo

UNDO_WITHIN = timedelta(minutes=10)
"""So long a tool has for one attempt; the wall clock of the run is over or nearly so."""


def begin(transition: RunTransition, command: Control) -> None:
    """Begin to undo a run. Calls under way are waited for, since they may be writes."""
    transition.record(
        ev.UndoStarted(command.command_id, command.principal, command.note, open_children(transition.run))
    )


def advance(transition: RunTransition) -> None:
    """Undo the next step, or end the run when nothing is left to undo."""
    run = transition.run
    if run.retries or any(request.kind in (RequestKind.CALL, RequestKind.UNDO) for request in run.requests.values()):
        return
    if (state := _next(run)) is not None and state.step.pin.undo is not None:
        request(transition, state, state.step.pin.undo)
    else:
        _end(transition)


def request(transition: RunTransition, state: StepState, undo: Undo) -> None:
    """Ask for one attempt to undo a step."""
    run = transition.run
    answer, written = state.answer_to_keep, state.written
    known = {"arguments": written.arguments if written else {}, "data": answer.data if answer else None}
    try:
        arguments = render(undo.arguments, known)
    except ExpressionError as error:
        _fail(transition, state, f"its arguments cannot be made: {error}")
        return
    transition.record(
        ev.UndoRequested(
            request_id=next_request_id(run, f"undo-{state.id}", [undo.operation, arguments]),
            step=state.id,
            arguments=arguments,
            attempt=state.compensation_attempts + 1,
            idempotency_key=f"{run.run_id}:{state.id}:undo",
            reserved=Grant(),
            deadline_at=transition.now + UNDO_WITHIN,
            reissue_at=transition.now + timedelta(milliseconds=REISSUE_AFTER_MS + undo.timeout_ms),
        )
    )


def on_answer(transition: RunTransition, answer: CallAnswer, step_id: str) -> None:
    """Record the answer of one attempt, and decide what follows."""
    transition.record(ev.UndoAnswered(answer.request_id, step_id, answer.result))
    state, error = transition.run.state(step_id), answer.result.error
    if transition.run.status is not RunStatus.UNDOING or error is None or state.step.pin.undo is None:
        return
    undo = state.step.pin.undo
    if not retry_compensation(transition, state, undo.effect, error):
        _fail(transition, state, f"{undo.operation} failed with {error.code.value}: {error.message}")


def ask_again(transition: RunTransition, step_id: str) -> None:
    """Ask again to undo a step, when its retry is due."""
    state = transition.run.state(step_id)
    if state.step.pin.undo is not None:
        request(transition, state, state.step.pin.undo)


def _fail(transition: RunTransition, state: StepState, why: str) -> None:
    message = f"step {state.id} could not be undone: {why}; abort with --undo to try again, or cancel the run as it is"
    transition.record(ev.RunEscalated(Reason(code="undo_failed", message=message), state.id))


def _writes(run: Run) -> list[StepState]:
    """Return what the run has written and not undone, the latest first."""
    found = [
        state
        for state in (*run.steps.values(), *run.branches.values())
        if state.took_effect and state.compensation is not CompensationStatus.DONE
    ]
    return sorted(found, key=lambda state: state.ended_at or state.started_at or run.started_at)[::-1]


def _next(run: Run) -> StepState | None:
    return next((state for state in _writes(run) if _can_be_undone(state)), None)


def _can_be_undone(state: StepState) -> bool:
    """Return False for the write of a fallback: the step's compensation belongs to the operation that it replaced."""
    return state.answer_to_keep is not None and state.step.pin.undo is not None and state.stand_in is None


def _end(transition: RunTransition) -> None:
    run = transition.run
    assert run.undo is not None  # noqa: S101 - only a run that is being undone ends here
    undone = [
        state.id
        for state in (*run.steps.values(), *run.branches.values())
        if state.compensation is CompensationStatus.DONE
    ]
    writes = _writes(run)
    left = [state.id for state in writes if state.answer_to_keep is not None]
    unknown = [state.id for state in writes if state.answer_to_keep is None]
    parts = [f"aborted by {run.undo.principal}" + (f": {run.undo.note}" if run.undo.note else "")]
    parts.append(f"undone: {', '.join(undone) or 'nothing'}")
    if left:
        parts.append(f"written and not undone, since no compensation is declared: {', '.join(left)}")
    if unknown:
        parts.append(f"not undone, since it is unknown whether they were written: {', '.join(unknown)}")
    reason = Reason(code="aborted", message="; ".join(parts))
    end_run(transition, RunStatus.FAILED, reason, principal=run.undo.principal)
