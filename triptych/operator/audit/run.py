"""Checks one run: folds its journal and compares everything that was derived from it. Pure.

What it compares with are rows as the operator reads them, by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from triptych.executor import events as ev
from triptych.executor.fold import admit, evolve
from triptych.executor.projections import SHOWN_WITHIN_UNDER_LOAD, changes_hands
from triptych.executor.state import Run, StepState
from triptych.operator.audit.money import RunAccount
from triptych.operator.audit.problem import Check, Problem
from triptych.schemas import Playbook, codec

LATE_TIMER = timedelta(seconds=60)
"""So late may the timer of a run be that could not be decided the last time."""

Row = asyncpg.Record


@dataclass(frozen=True, slots=True)
class Recorded:
    """Everything that the database holds about one run."""

    run: Row
    journal: Sequence[Row]
    steps: Sequence[Row]
    timer: datetime | None


class _Broken(Exception):
    """The journal cannot be followed any further."""


def problems_of(recorded: Recorded, playbooks: ev.PlaybookLookup) -> Iterator[Problem]:
    """Find what does not agree in one run."""
    run_id, task_id = recorded.run["run_id"], recorded.run["task_id"]
    try:
        for check, message in _findings(recorded, playbooks):
            yield Problem.of(check, message, run_id, task_id)
    except _Broken as broken:
        yield Problem.of(Check.JOURNAL, str(broken), run_id, task_id)


def _findings(recorded: Recorded, playbooks: ev.PlaybookLookup) -> Iterator[tuple[Check, str]]:
    _check_sequence(recorded)
    yield from _check_end(recorded)
    playbook = _playbook(recorded, playbooks)
    account = RunAccount.of(playbook)
    run: Run | None = None
    shown: Run | None = None
    for row in recorded.journal:
        run = _folded(run, row, recorded, playbooks)
        for excess in account.book(row["type"], codec.decode(row["data"], limits=codec.STORED)):
            yield Check.BUDGET, f"after event {row['seq']} ({row['type']}): {excess}"
        if run.ledger.steps > run.ledger.max_steps or run.ledger.replans > run.ledger.max_replans:
            yield Check.BUDGET, f"after event {row['seq']}: {run.ledger.steps} steps, {run.ledger.replans} replans"
        if row["seq"] == recorded.run["seq"]:
            shown = run
            yield from _check_spend(recorded.run, account)
    assert run is not None  # noqa: S101 - a journal without events is broken, and was found to be
    yield from _check_timer(recorded.timer, run)
    if shown is None:
        yield Check.RUN, f"runs shows event {recorded.run['seq']}, and the journal ends with event {run.seq}"
        return
    yield from _differences(Check.RUN, "runs", recorded.run, _run_columns(shown))
    yield from _check_steps(recorded.steps, shown)
    yield from _check_delay(recorded, shown, playbooks)


# --- the journal ----------------------------------------------------------------------------------


def _check_sequence(recorded: Recorded) -> None:
    if not recorded.journal:
        raise _Broken("there is a row in runs and no journal")
    for expected, row in enumerate(recorded.journal, start=1):
        if row["seq"] != expected:
            raise _Broken(f"event {expected} is missing; the next one is {row['seq']}")
    first = recorded.journal[0]["type"]
    if first != ev.RunAdmitted.__name__:
        raise _Broken(f"it begins with {first} and not with an admission")


def _check_end(recorded: Recorded) -> Iterator[tuple[Check, str]]:
    """Check that only answers to requests that were open follow the end, and what they cost beyond their grant."""
    ends = [row["seq"] for row in recorded.journal if row["type"] == ev.RunEnded.__name__]
    after = recorded.journal[ends[0] :] if ends else ()
    late = sum(row["type"] in {ev.AnsweredLate.__name__, ev.Overspent.__name__} for row in after)
    if len(ends) > 1:
        yield Check.END, f"it ended {len(ends)} times, at events {', '.join(map(str, ends))}"
    elif ends and ends[0] + late != len(recorded.journal):
        yield Check.END, f"it ended at event {ends[0]}, and {len(recorded.journal) - ends[0] - late} events followed"
    elif bool(ends) != (recorded.run["finished_at"] is not None):
        yield Check.END, "runs says that it has ended and the journal does not" if not ends else "runs does not say so"


def _playbook(recorded: Recorded, playbooks: ev.PlaybookLookup) -> Playbook:
    pinned = codec.decode(recorded.journal[0]["data"], limits=codec.STORED)["playbook"]
    try:
        return playbooks.get(pinned["name"], pinned["version"])
    except LookupError as error:
        raise _Broken(str(error)) from error


def _folded(run: Run | None, row: Row, recorded: Recorded, playbooks: ev.PlaybookLookup) -> Run:
    try:
        event = ev.decode(row["type"], row["data"], playbooks)
        if run is not None:
            return evolve(run, event, row["at"])
        assert isinstance(event, ev.RunAdmitted)  # noqa: S101 - the sequence was checked
        return admit(recorded.run["run_id"], event, row["at"])
    except Exception as error:  # any error in an event is a finding, and must not end the audit
        raise _Broken(f"event {row['seq']} ({row['type']}) cannot be folded: {error!r}") from error


# --- what is derived from it ----------------------------------------------------------------------


def _check_delay(recorded: Recorded, shown: Run, playbooks: ev.PlaybookLookup) -> Iterator[tuple[Check, str]]:
    """Check that the rows are behind the journal only where, and as long as, they may be."""
    run, unshown = shown, recorded.journal[shown.seq :]
    for row in unshown:
        event = ev.decode(row["type"], row["data"], playbooks)
        run = evolve(run, event, row["at"])
        if changes_hands(run, event):
            yield Check.RUN, f"runs shows event {shown.seq} and must show event {row['seq']} ({row['type']})"
            return
    if unshown and (delay := unshown[-1]["at"] - unshown[0]["at"]) >= SHOWN_WITHIN_UNDER_LOAD:
        yield Check.RUN, f"runs shows event {shown.seq}, though another followed {delay.total_seconds():.1f} s later"


def _check_spend(row: Row, account: RunAccount) -> Iterator[tuple[Check, str]]:
    for name, used in account.used.items():
        if row[name] != used:
            yield Check.SPEND, f"runs says {row[name]} {name}, its events add up to {used}"


def _check_steps(rows: Sequence[Row], run: Run) -> Iterator[tuple[Check, str]]:
    recorded = {row["step_id"]: row for row in rows}
    for step_id, state in run.steps.items():
        if step_id not in recorded:
            yield Check.STEPS, f"step {step_id} is missing"
        else:
            yield from _differences(Check.STEPS, f"step {step_id}", recorded[step_id], _step_columns(state))
    for branch_id, branch in run.branches.items():
        if branch_id in recorded:
            yield from _differences(Check.STEPS, f"branch {branch_id}", recorded[branch_id], _step_columns(branch))
        elif branch.started_at is not None:
            yield Check.STEPS, f"branch {branch_id} is missing"
    for step_id in recorded.keys() - run.steps.keys() - run.branches.keys():
        # A later plan may drop a step; its row stays as the earlier plan left it.
        if recorded[step_id]["revision"] >= run.revision:
            yield Check.STEPS, f"step {step_id} is in no plan"


def _check_timer(due_at: datetime | None, run: Run) -> Iterator[tuple[Check, str]]:
    wake_at = run.wake_at()
    if wake_at is None and due_at is not None:
        yield Check.TIMER, f"it has a timer for {due_at:%F %T} and nothing that time could change"
    elif wake_at is not None and due_at is None:
        yield Check.TIMER, f"it has no timer, and time must wake it at {wake_at:%F %T}"
    elif wake_at is not None and due_at is not None and due_at > wake_at + LATE_TIMER:
        yield Check.TIMER, f"its timer is for {due_at:%F %T}, and time must wake it at {wake_at:%F %T}"


def _differences(check: Check, what: str, row: Row, folded: Mapping[str, Any]) -> Iterator[tuple[Check, str]]:
    for column, value in folded.items():
        if row[column] != value:
            yield check, f"{what} says {column} = {row[column]}, the journal folds to {value}"


def _run_columns(run: Run) -> dict[str, Any]:
    reason = run.public_reason
    return {
        "tenant": run.tenant,
        "task_id": run.task_id,
        "principal": run.principal,
        "playbook": run.playbook.name,
        "playbook_version": run.playbook.version,
        "partition": run.partition,
        "status": run.public_status.value,
        "reason_code": reason.code if reason else None,
        "reason_message": reason.message if reason else None,
        "revision": run.revision,
        "steps_used": run.ledger.steps,
        "replans": run.ledger.replans,
        "started_at": run.started_at,
        "updated_at": run.updated_at,
        "finished_at": run.finished_at,
        "parent_run_id": run.parent.run_id if run.parent else None,
    }


def _step_columns(state: StepState) -> dict[str, Any]:
    error = state.result.error if state.result else None
    return {
        "revision": state.revision,
        "operation": state.step.operation,
        "status": state.status.value,
        "attempts": state.attempts,
        "error_code": error.code.value if error else None,
        "started_at": state.started_at,
        "finished_at": state.ended_at,
    }
