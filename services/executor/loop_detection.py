"""Loop detection: stop a planner that repeats itself, with the reason `loop`, and never repeat a write. Pure.

The run's state counts how many steps have made the same call, whether anything was learnt since the last replan,
and which writes may have happened. Attempts and retries of one call do not count as repeats.
"""

from __future__ import annotations

from triptych.executor.fingerprint import fingerprint
from triptych.executor.state import Run, StepState
from triptych.kernel.values import changed
from triptych.schemas import Json, PlanByTurns, Reason, Result

CODE = "loop"
REPEATED_WRITE = "repeated_write"
_BY_THE_PLANNER = frozenset(
    {CODE, "stalled", "invalid_arguments", "invented_argument", "expression_error", "too_many_items", REPEATED_WRITE}
)
"""Failures that are mistakes of a plan. Of all others the answer is what matters: an upstream, or a person, said no."""


def _stopped(message: str, cause: Reason | None) -> Reason:
    """Return why a planner that makes no progress is stopped: by what it cannot change, if that is the cause."""
    if cause is None or cause.code in _BY_THE_PLANNER:
        return Reason(code=CODE, message=message)
    return Reason(code=cause.code, message=f"{cause.message}; {message}" if cause.message not in message else message)


def call_of(operation: str, arguments: Json) -> str:
    """Return what makes two calls the same."""
    return _hash(operation, arguments)


def fact_of(state: StepState, result: Result) -> str:
    """Return what a call has shown: the same call with another answer is another fact."""
    error = result.error.code.value if result.error else None
    return _hash(state.step.operation, state.arguments, result.status.value, result.data, error)


def repeated_call(run: Run, operation: str, arguments: Json) -> Reason | None:
    """Return why one more step must not make this call, or None when it may."""
    if not run.playbook.is_planned_by_model:
        return None
    allowed, call = run.playbook.same_call(operation), call_of(operation, arguments)
    if run.progress.calls.get(call, 0) < allowed:
        return None
    message = (
        f"{operation} has been called with the same arguments by {allowed} steps (limits.same_call) and is wanted "
        f"once more; resume to allow as many again, or abort"
    )
    return _stopped(message, run.progress.failed.get(call))


def repeated_write(run: Run, state: StepState, arguments: Json, key: str) -> Reason | None:
    """Return why this write must not be made under this idempotency key, or None when it may.

    The same write under another key would take effect once more. A write that certainly did nothing does not count.
    """
    acting = state.acting
    if not acting.pin.effect.writes:
        return None
    operation = acting.operation
    allowed, writers = run.playbook.same_write(operation), run.writes.get(call_of(operation, arguments), {})
    others = writers.keys() - {key}
    if len(others) < allowed:
        return None
    done_by = ", ".join(sorted(writers[other] for other in others))
    message = (
        f"{operation} in step {state.id} repeats the same write as step {done_by}, with the same arguments, so it is "
        f"not made: a run may make {allowed}. Skip the step, or raise limits.same_call_of.{operation} in the "
        f"playbook if the repeat is meant"
    )
    return Reason(code=REPEATED_WRITE, message=message)


def note_write(run: Run, state: StepState, arguments: Json, key: str) -> None:
    """Note, for the fold, that a write is asked for under this idempotency key."""
    if state.acting.pin.effect.writes:
        call = call_of(state.acting.operation, arguments)
        run.writes[call] = run.writes.get(call, {}) | {key: state.id}


def note_undone(run: Run, state: StepState, key: str) -> None:
    """Note, for the fold, that the write with this key has certainly not happened."""
    call = call_of(state.acting.operation, state.arguments)
    run.writes[call] = {other: step for other, step in run.writes.get(call, {}).items() if other != key}


def circular_replan(run: Run, step_id: str | None, cause: Reason) -> Reason | None:
    """Return why another plan would be a circle, or None when something was learnt since the last one."""
    progress = run.progress
    if len(progress.facts | {_cause(run, step_id, cause)}) > progress.facts_at_replan:
        return None
    message = (
        f"nothing was learnt since the last replan: no call had another answer, and the plan failed again with "
        f"{cause.code}: {cause.message}; resume to plan once more, or abort"
    )
    return _stopped(message, cause if step_id is not None else None)


def stalled(run: Run) -> Reason | None:
    """Return what to tell a planner whose last turn has shown nothing new."""
    if run.revision == 0 or len(run.progress.facts) > run.progress.facts_at_turn:
        return None
    return Reason(code="stalled", message="the last turn showed nothing new: plan something else, or answer")


def endless_turns(run: Run, plan: PlanByTurns) -> Reason | None:
    """Return why the planner gets no further turn, or None when it gets one."""
    progress = run.progress
    if run.revision - progress.turns_from > plan.max_turns:
        message = f"the goal was not reached in {plan.max_turns} turns (plan.max_turns); resume to allow as many again"
        return Reason(code="max_turns", message=message)
    if stalled(run) and progress.stalls >= plan.max_stalls:
        message = (
            f"{progress.stalls + 1} turns in a row showed nothing new, and {plan.max_stalls} may (plan.max_stalls); "
            "resume to go on, or abort"
        )
        return _stopped(message, run.failure)
    return None


def note_turn(run: Run) -> None:
    """Note, for the fold, that the planner is asked for its next turn."""
    if isinstance(run.playbook.plan, PlanByTurns) and run.plan_attempts == 0:
        stalls = run.progress.stalls + 1 if stalled(run) else 0
        run.progress = changed(run.progress, stalls=stalls, facts_at_turn=len(run.progress.facts))


def note_call(run: Run, operation: str, arguments: Json) -> None:
    """Note, for the fold, that a step makes its first call."""
    if run.playbook.is_planned_by_model:
        calls, call = run.progress.calls, call_of(operation, arguments)
        run.progress = changed(run.progress, calls={**calls, call: calls.get(call, 0) + 1})


def note_result(run: Run, state: StepState, result: Result) -> None:
    """Note, for the fold, that a call was answered."""
    if run.playbook.is_planned_by_model:
        run.progress = changed(run.progress, facts=run.progress.facts | {fact_of(state, result)})


def note_replan(run: Run, step_id: str | None, cause: Reason) -> None:
    """Note, for the fold, that the planner will be asked again, with what is known by now."""
    facts, failed = run.progress.facts | {_cause(run, step_id, cause)}, run.progress.failed
    if step_id is not None and (state := run.steps[step_id]).attempts:
        failed = {**failed, call_of(state.step.operation, state.arguments): cause}
    run.progress = changed(run.progress, facts=facts, facts_at_replan=len(facts), failed=failed)


def _cause(run: Run, step_id: str | None, cause: Reason) -> str:
    """Hash a failure. The result of an answered step is noted already; any other failure has only its sentence."""
    has_answer = step_id is not None and run.steps[step_id].result is not None
    return _hash(cause.code, None if has_answer else cause.message)


def _hash(*values: Json) -> str:
    return fingerprint(*values).hex()
