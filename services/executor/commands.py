"""What people tell a run: cancel, abort, resume, skip. One that does not fit is journaled and changes nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from triptych.executor import compensation
from triptych.executor import events as ev
from triptych.executor.child_runs import on_notice, open_children
from triptych.executor.ending import end_run
from triptych.executor.state import Run, RunStatus, StepState, step_of
from triptych.executor.transition import RunTransition
from triptych.schemas import Control, ControlAction, Reason

LATEST_DEADLINE = datetime(9000, 1, 1, tzinfo=UTC)
"""However often a run gets more time: a date beyond the year 9999 cannot be computed."""


@dataclass(frozen=True, slots=True)
class InvalidCommand:
    """A person's command that says something which its run cannot take, and why."""

    command: Control
    why: str


def on_command(transition: RunTransition, message: Control | InvalidCommand) -> None:
    """Do what a person says, once."""
    command = message.command if isinstance(message, InvalidCommand) else message
    if command.command_id in transition.run.commands:
        return
    if isinstance(message, InvalidCommand):
        _refuse(transition, command, message.why)
    else:
        _on_control(transition, command)


def step_to_skip(run: Run, command: Control) -> StepState | None:
    """Return the step that a command names, or else the step that has stopped the run."""
    step_id = command.step or (step_of(run.stopped_step) if run.stopped_step else None)
    return run.steps.get(step_id) if step_id else None


def _on_control(transition: RunTransition, command: Control) -> None:
    run = transition.run
    is_escalated = run.status is RunStatus.ESCALATED
    match command.action:
        case ControlAction.CHILD:
            on_notice(transition, command)
        case ControlAction.CANCEL:
            _end_by_command(transition, command, RunStatus.CANCELLED, "cancelled")
        case ControlAction.ABORT if is_escalated and (command.undo or run.playbook.on_abort == "undo"):
            compensation.begin(transition, command)
        case ControlAction.ABORT if is_escalated:
            _end_by_command(transition, command, RunStatus.FAILED, "aborted")
        case ControlAction.RESUME | ControlAction.SKIP if is_escalated and run.undo is not None:
            _refuse(
                transition, command, "it has been undone in part, so it cannot go on; abort it, with --undo or without"
            )
        case ControlAction.RESUME | ControlAction.SKIP if is_escalated and (odd := _fractions(command)):
            _refuse(transition, command, f"only usd can be extended by a part of one; give a whole number of {odd}")
        case ControlAction.RESUME if is_escalated:
            _resume(transition, command)
        case ControlAction.SKIP if is_escalated:
            _skip(transition, command)
        case _:
            _refuse(transition, command, _wrong_state(run, command))


def _fractions(command: Control) -> str:
    """Name the budgets of whole numbers that a command extends by a fraction."""
    return ", ".join(name for name, more in command.extend.items() if name != "usd" and not more.is_integer())


def _wrong_state(run: Run, command: Control) -> str:
    waiting = [
        f"{request.event.child} of step {step}"
        for step in run.children_waiting
        for request in run.requests.values()
        if isinstance(request.event, ev.CallRequested) and request.step == step
    ]
    if waiting:
        return f"it waits for the run {', '.join(waiting)}, which is escalated: {command.action.value} that one"
    return f"the run is {run.status.value}; {command.action.value} needs an escalated run"


def _end_by_command(transition: RunTransition, command: Control, status: RunStatus, code: str) -> None:
    message = f"{code} by {command.principal}" + (f": {command.note}" if command.note else "")
    end_run(
        transition,
        status,
        Reason(code=code, message=message),
        command_id=command.command_id,
        principal=command.principal,
        children=open_children(transition.run),
    )


def _resume(transition: RunTransition, command: Control) -> None:
    run = transition.run
    stood_still = transition.now - (run.escalated_at or transition.now)
    extra = timedelta(milliseconds=command.extend.get("wall_ms", 0))
    # Waiting for a person does not use up the wall clock.
    deadline_at = min(run.deadline_at + stood_still + extra, LATEST_DEADLINE)
    transition.record(
        ev.RunResumed(
            command_id=command.command_id,
            principal=command.principal,
            deadline_at=deadline_at,
            note=command.note,
            extend=command.extend,
        )
    )


def _skip(transition: RunTransition, command: Control) -> None:
    state = step_to_skip(transition.run, command)
    if state is None:
        names = ", ".join(transition.run.steps) or "none, there is no plan yet"
        _refuse(transition, command, f"name a step of the plan to skip; the steps are: {names}")
    elif state.status.has_ended and not state.is_overridden:
        _refuse(transition, command, f"step {state.id} has ended ({state.status.value}); there is nothing to skip")
    elif any(request.step and step_of(request.step) == state.id for request in transition.run.requests.values()):
        _refuse(transition, command, f"step {state.id} is still under way; wait for its answer, or cancel the run")
    else:
        transition.record(
            ev.StepOverridden(command.command_id, command.principal, state.id, command.data, command.note)
        )
        _resume(transition, command)


def _refuse(transition: RunTransition, command: Control, message: str) -> None:
    reason = Reason(code="command_refused", message=message)
    transition.record(ev.CommandRefused(command.command_id, command.principal, command.action.value, reason))
