"""Child runs: a step that starts a run of another playbook, and the messages between parent and child. Pure.

A parent asks for a child as it asks for a tool, by a message with an id that follows from the call, and the child
answers like a tool. So a crash neither loses a child nor makes one twice.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from triptych.contracts.compiled_contract import compiled_handoff_contract
from triptych.executor import events as ev
from triptych.executor.fold import admit
from triptych.executor.state import Run, RunStatus, StepState
from triptych.executor.transition import RunTransition
from triptych.kernel.postgres.outbox import Send
from triptych.kernel.run_ids import derive_run_id, id_time_ms
from triptych.schemas import (
    MAX_HANDOFFS,
    CallAnswer,
    ChildTask,
    Control,
    ControlAction,
    Cost,
    ErrorCode,
    Grant,
    Json,
    Parent,
    Reason,
    Result,
    ResultStatus,
    Spend,
    Step,
    ToolError,
    topics,
)

WAITS = RunStatus.ESCALATED.value
GOES_ON = RunStatus.RUNNING.value
CHILD = ":child"
"""What the ids of requests end in that a child run answers."""


def handoff_refusal(run: Run, arguments: dict[str, Json]) -> Reason | None:
    """Return why a run must not hand over as these arguments say, or None when it may."""
    playbook = arguments.get("playbook")
    above = run.parent.ancestors if run.parent else ()
    if playbook not in run.playbook.handoffs:
        allowed = ", ".join(run.playbook.handoffs) or "none"
        message = f"it must not hand over to {playbook!r}; `handoffs` of {run.playbook.name} allows: {allowed}"
        return Reason(code="invalid_arguments", message=message)
    if playbook in (*above, run.playbook.name) or len(above) >= MAX_HANDOFFS:
        chain = " -> ".join((*above, run.playbook.name, str(playbook)))
        return Reason(code="loop", message=f"playbooks hand over in a circle, or too deep: {chain}")
    if not isinstance(arguments.get("input", {}), dict):
        return Reason(code="invalid_arguments", message="the input of a playbook is an object")
    return None


def grant_of(run: Run, step: Step) -> Grant:
    """Return the grant of a child run: what the step says, or the child's budgets as far as this run has them."""
    own, budgets, left = step.pin.cost, _budgets(run, step), _left(run)
    return Grant(
        tokens=_capped(own.tokens, budgets.tokens, left.tokens),
        usd_micros=_capped(own.usd_micros, budgets.usd_micros, left.usd_micros),
        tool_calls=_capped(own.tool_calls, budgets.tool_calls, left.tool_calls),
    )


def waits_for_room(run: Run, step: Step) -> bool:
    """Return whether a step waits for other child runs: what they leave of their grants may be enough for it."""
    if not any(children_of(run, request_id) for request_id in run.requests):
        return False
    own, budgets, left = step.pin.cost, _budgets(run, step), _left(run)
    return (
        own.tokens == budgets.tokens > left.tokens
        or own.usd_micros == budgets.usd_micros > left.usd_micros
        or own.tool_calls == budgets.tool_calls > left.tool_calls
    )


def _budgets(run: Run, step: Step) -> Cost:
    """Return the budgets of the child that a step starts, or nothing where they are not known."""
    known = [other.as_other for other in run.others]
    if not known:
        return Cost()
    named = step.arguments.get("playbook")
    anyone = compiled_handoff_contract(run.playbook.handoffs, known).contract.cost
    return next((other.cost for other in known if other.name == named), anyone)


def _left(run: Run) -> Cost:
    """Return what is left in the budgets after all reservations and the call that starts the child."""
    ledger = run.ledger
    return Cost(
        tokens=max(0, ledger.max_tokens - ledger.tokens - ledger.reserved_tokens),
        usd_micros=max(0, ledger.max_usd_micros - ledger.usd_micros - ledger.reserved_usd_micros),
        tool_calls=max(0, ledger.max_tool_calls - ledger.tool_calls - ledger.reserved_tool_calls - 1),
    )


def _capped(own: int, budget: int, left: int) -> int:
    """Return the smaller of budget and rest, but never less than a step states. With no rest, `shortfall` names it."""
    return own if own != budget or not left else min(own, left)


def child_of(run: Run, key: str) -> UUID:
    """Return the id of the run that a call with this key starts; it is always the same.

    When the database comes back with an older state, the parent asks for its child again. Under another id it would
    wait for a run that cannot begin, since its task is known. So the time in the id is that of the parent.
    """
    return derive_run_id(run.tenant, key, id_time_ms(run.run_id))


def task_message(run: Run, event: ev.CallRequested, child: UUID) -> Send:
    """Return the task that starts a child run: the same task each time it is sent."""
    task = task_of(run, event, child)
    return Send(topics.CHILD_TASKS, "triptych.child-task", event.request_id, task, to=child)


def task_of(run: Run, event: ev.CallRequested, child: UUID) -> ChildTask:
    """Return the task of a child run."""
    return ChildTask(
        task_id=event.idempotency_key,
        playbook=event.arguments["playbook"],
        input=event.arguments.get("input", {}),
        tenant=run.tenant,
        principal=run.principal,
        parent=_parent(run, event.request_id, child, event.reserved, event.deadline_at),
    )


def withdrawal_message(run: Run, state: StepState) -> Send:
    """Return the task of a child run as withdrawn. It takes the way of the task, so it cannot come before the task."""
    assert state.child is not None  # noqa: S101 - only child runs are withdrawn
    key = f"{run.run_id}:{state.id}:{state.call}"
    parent = _parent(run, request_id(key), state.child, Grant(), run.deadline_at)
    task = ChildTask(
        task_id=key,
        playbook=state.arguments["playbook"],
        tenant=run.tenant,
        principal=run.principal,
        parent=parent.model_copy(update={"withdrawn": True}),
    )
    return Send(topics.CHILD_TASKS, "triptych.child-task", f"{key}:withdrawn", task, to=state.child)


def request_id(key: str) -> str:
    """Return the id of the request that a child run answers: one for each child, also when it is sent again."""
    return f"{key}{CHILD}"


def _parent(run: Run, request: str, child: UUID, grant: Grant, deadline_at: datetime) -> Parent:
    above = run.parent.ancestors if run.parent else ()
    return Parent(
        run_id=run.run_id,
        request_id=request,
        asked_at_ms=id_time_ms(child),
        grant=grant,
        deadline_at=deadline_at,
        ancestors=(*above, run.playbook.name),
    )


# --- what a child tells its parent ----------------------------------------------------------------


def answer_message(run: Run, parent: Parent) -> Send:
    """Return the message with a child run's answer to its parent: the same each time it is made."""
    reply = answer_of(run, parent)
    return Send(topics.RESULTS, "triptych.result", f"{run.run_id}:answer", reply, to=parent.run_id)


def answer_of(run: Run, parent: Parent) -> CallAnswer:
    """Return a child run's answer to its parent."""
    assert run.reason is not None  # noqa: S101 - a run that has ended has a reason
    if run.status is RunStatus.SUCCEEDED:
        result = Result.ok({"run_id": str(run.run_id), "playbook": run.playbook.name, "output": run.output})
    else:
        message = f"run {run.run_id} of {run.playbook.name} ended as {run.status.value}: {run.reason.message}"
        result = Result.failed(ErrorCode.CANCELLED, message, child=str(run.run_id), reason=run.reason.code)
    ledger = run.ledger_at_end or run.ledger
    first = admit(run.run_id, _admission(run), run.started_at).ledger
    extended = Grant(
        tokens=ledger.max_tokens - first.max_tokens,
        usd_micros=ledger.max_usd_micros - first.max_usd_micros,
        tool_calls=ledger.max_tool_calls - first.max_tool_calls,
    )
    return CallAnswer(
        request_id=parent.request_id,
        run_id=parent.run_id,
        tenant=run.tenant,
        result=result,
        # What was under way at its end is still done, and its cost stays unknown: all that it may cost counts.
        spend=Spend(
            tokens=ledger.tokens + ledger.reserved_tokens,
            usd_micros=ledger.usd_micros + ledger.reserved_usd_micros,
            tool_calls=ledger.tool_calls + ledger.reserved_tool_calls,
        ),
        started_at=run.started_at,
        finished_at=run.finished_at,
        child=run.run_id,
        extended=extended if extended != Grant() else None,
    )


def _admission(run: Run) -> ev.RunAdmitted:
    return ev.RunAdmitted(
        tenant=run.tenant,
        task_id=run.task_id,
        principal=run.principal,
        playbook=run.playbook,
        input={},
        partition=run.partition,
        deadline_at=run.deadline_at,
        parent=run.parent,
    )


def refused_answer(task: ChildTask, child: UUID, reason: Reason) -> CallAnswer:
    """Return the answer to a parent whose child never became a run."""
    error = ToolError(
        code=ErrorCode.INVALID_ARGUMENTS, message=reason.message, details={"effect": "none", "reason": reason.code}
    )
    return CallAnswer(
        request_id=task.parent.request_id,
        run_id=task.parent.run_id,
        tenant=task.tenant,
        result=Result(status=ResultStatus.ERROR, error=error),
        child=child,
    )


def notice_message(run: Run, parent: Parent, status: str, reason: Reason | None) -> Send:
    """Word to the parent that a child run waits for a person, or goes on."""
    command = notice_of(run, parent.run_id, status, reason)
    return Send(topics.CONTROL, "triptych.control", command.command_id, command, to=parent.run_id)


def notice_of(run: Run, parent_id: UUID, status: str, reason: Reason | None) -> Control:
    """Return the notice of a child run as a command to its parent."""
    waits = f".{run.child_waits}" if run.child_waits else ""
    command_id = f"{run.run_id}:{status}:{run.escalations}{waits}"
    told = {"run_id": str(run.run_id), "status": status, "reason": reason.model_dump(mode="json") if reason else None}
    return Control(
        command_id=command_id,
        run_id=parent_id,
        action=ControlAction.CHILD,
        principal=f"run:{run.run_id}",
        data=told,
    )


def on_notice(transition: RunTransition, command: Control) -> None:
    """Record whether a child run waits for a person. A notice from a run that was not asked changes nothing."""
    told = command.data if isinstance(command.data, dict) else {}
    for request in transition.run.requests.values():
        event = request.event
        if isinstance(event, ev.CallRequested) and event.child is not None and str(event.child) == told.get("run_id"):
            if told.get("status") == WAITS:
                reason = Reason.model_validate(told.get("reason") or {"code": "escalated", "message": "no reason"})
                transition.record(ev.ChildEscalated(command.command_id, event.step, event.child, reason))
            else:
                transition.record(ev.ChildResumed(command.command_id, event.step, event.child))
            return


def children_of(run: Run, request_id: str) -> tuple[str, ...]:
    """Return the step whose child run an open request has asked for, if it has."""
    event = run.requests[request_id].event
    return (event.step,) if isinstance(event, ev.CallRequested) and event.child is not None else ()


def open_children(run: Run) -> tuple[str, ...] | None:
    """Return the steps whose child runs have not answered; None without such a step."""
    return tuple(step for request_id in run.requests for step in children_of(run, request_id)) or None
