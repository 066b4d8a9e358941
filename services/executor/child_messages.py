"""What parent and child runs tell each other, held to the journals of both.

A message is a hint at most. What it says of a run is taken from that run's own record, and a message that
the record does not bear out is refused. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from triptych.executor import child_runs
from triptych.executor import events as ev
from triptych.executor.state import Run, step_of
from triptych.executor.trust import ForgedRecord
from triptych.schemas import CallAnswer, ChildTask, Control, ControlAction, Parent, Playbook, Reason


@dataclass(frozen=True, slots=True)
class ChildAdmission:
    """A child's task that is fit to become a run, if its parent's record bears it out."""

    task: ChildTask
    playbook: Playbook


@dataclass(frozen=True, slots=True)
class ChildRefusal:
    """A child's task that no run can be made of. The parent hears of it, unless the run is there already."""

    task: ChildTask
    child: UUID
    reason: Reason


@dataclass(frozen=True, slots=True)
class ChildWithdrawal:
    """The parent of a child run has ended: the child is cancelled, unless it never began."""

    task: ChildTask


def asked_task(parent: Run | None, received: ChildTask, child: UUID, partition: int) -> ChildTask | None:
    """Return the task of a child run as its parent asked for it, or None when the parent no longer waits for it.

    Raises:
        ForgedRecord: the parent has not asked for this run, or not in these words.
    """
    claimed = received.parent
    if parent is None or parent.partition != partition:
        raise ForgedRecord(f"no run {claimed.run_id} on partition {partition} asks for a child run")
    request = parent.requests.get(claimed.request_id)
    if request is None and _may_have_asked(parent, claimed.request_id):
        return None
    event = request.event if request is not None else None
    if not isinstance(event, ev.CallRequested) or event.child != child:
        raise ForgedRecord(f"run {parent.run_id} has not asked for run {child}")
    asked = child_runs.task_of(parent, event, child)
    if strange := _differences(received, asked):
        raise ForgedRecord(f"run {parent.run_id} has asked for run {child} with another {', '.join(strange)}")
    return asked


def withdrawal(child: Run | None, parent: Run | None, received: ChildTask) -> Control | None:
    """Return the command that cancels a child run whose parent has ended; None when the child never began.

    Raises:
        ForgedRecord: the parent has not ended, or it is not the parent.
    """
    claimed = received.parent
    if parent is None or parent.tenant != received.tenant:
        raise ForgedRecord(f"no run {claimed.run_id} of tenant {received.tenant} withdraws its children")
    if not (parent.status.is_final or parent.undo is not None):
        raise ForgedRecord(f"run {parent.run_id} is {parent.status.value} and withdraws none of its children")
    if child is None:
        return None
    if child.parent is None or child.parent.run_id != parent.run_id:
        raise ForgedRecord(f"run {parent.run_id} withdraws run {child.run_id}, which it has not started")
    return Control(
        command_id=f"{child.parent.request_id}:withdrawn",
        run_id=child.run_id,
        action=ControlAction.CANCEL,
        principal=f"run:{parent.run_id}",
        note="the run that handed over to it has ended",
    )


def child_refusal(parent: Run, child: Run | None, received: ChildRefusal) -> CallAnswer | None:
    """Return the answer to a parent whose task cannot become a run. If the run exists already, that run answers.

    Raises:
        ForgedRecord: the parent has not asked for this run, or not in these words.
    """
    if asked_task(parent, received.task, received.child, parent.partition) is None:
        return None
    refused = child_runs.refused_answer(received.task, received.child, received.reason)
    if child is None:
        return refused
    return child_answer(parent, child, refused) if child.status.is_final else None


def child_answer(parent: Run, child: Run | None, received: CallAnswer) -> CallAnswer:
    """Return the answer of a child run, from its own record.

    Raises:
        ForgedRecord: it is not the parent's child, or it has not ended.
    """
    child = _child_of(parent, child, received.child)
    if not child.status.is_final or child.parent is None:
        raise ForgedRecord(f"run {child.run_id} is {child.status.value} and has not answered yet")
    return child_runs.answer_of(child, child.parent)


def child_notice(parent: Run, child: Run | None, received: Control) -> Control:
    """Return the notice of a child run to its parent, from its own record.

    Raises:
        ForgedRecord: it is not the parent's child.
    """
    child = _child_of(parent, child, received.data.get("run_id") if isinstance(received.data, dict) else None)
    because = child.waits_because
    return child_runs.notice_of(child, parent.run_id, child_runs.WAITS if because else child_runs.GOES_ON, because)


def _child_of(parent: Run, child: Run | None, received: object) -> Run:
    if child is None or child.parent is None or child.parent.run_id != parent.run_id:
        raise ForgedRecord(f"run {parent.run_id} has started no run {received}")
    return child


def _may_have_asked(parent: Run, request_id: str) -> bool:
    """Return whether a request may have been open once. A run that has planned again does not know all of them."""
    name, _, rest = request_id.partition(":")
    if name != parent.name or not rest.endswith(child_runs.CHILD):
        return False
    return parent.revision > 1 or step_of(rest.partition(":")[0]) in parent.steps


def _differences(received: ChildTask, asked: ChildTask) -> list[str]:
    """Return the fields in which a task is not the one that was asked for.

    It may be older, so its deadline is not compared.
    """
    fields = [
        name for name in ("tenant", "task_id", "principal", "playbook", "input") if _differ(received, asked, name)
    ]
    return fields + [
        f"parent.{name}" for name in ("grant", "ancestors") if _differ(received.parent, asked.parent, name)
    ]


def _differ(received: ChildTask | Parent, asked: ChildTask | Parent, name: str) -> bool:
    return bool(getattr(received, name) != getattr(asked, name))
