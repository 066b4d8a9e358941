"""What the executor asks of its workers: each request is reserved for in the budgets, then recorded.

When a budget cannot bear a request, the run is escalated instead. Nothing is sent from here; the
messages follow from the events.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from zlib import crc32

from triptych.executor import child_runs
from triptych.executor import events as ev
from triptych.executor.argument_origins import invented_argument
from triptych.executor.budgets import shortfall
from triptych.executor.failures import fail_step
from triptych.executor.loop_detection import call_of, endless_turns, repeated_call, repeated_write, stalled
from triptych.executor.retries import FailureAction
from triptych.executor.state import Run, StepState
from triptych.executor.transition import RunTransition
from triptych.playbook.expressions import ExpressionError, render
from triptych.schemas import Grant, Json, Judge, PlanByModel, PlanByTurns, Reason, Result, ResultStatus, codec

REISSUE_AFTER_MS = 30_000
"""An open request is sent again after this and its timeout; workers drop what they have seen."""
BUSINESS_KEY_MAX_CHARS = 300
KEY_ASKED_AGAIN_AFTER = timedelta(seconds=5)
"""The database answers immediately, but the process that asked may have ended by then."""
REISSUE_TIMEOUT_MAX_MS = 600_000
"""A call that is completed from outside may take days, and a request that Kafka has lost should not wait as long."""


def request_plan(transition: RunTransition) -> None:
    """Ask the planner, or accept the plan that is known already. Only a run without a plan may have a known one."""
    run = transition.run
    spec = run.playbook.plan
    grant = _grant(spec.tokens, _micros(spec.usd)) if isinstance(spec, PlanByModel) else _grant(0, 0)
    if isinstance(spec, PlanByTurns) and (end := endless_turns(run, spec)):
        transition.record(ev.RunEscalated(end))
        return
    if short := shortfall(run.ledger, grant):
        transition.record(ev.RunEscalated(short))
        return
    known = transition.known_plan if run.revision == 0 else None
    done = [(each.id, each.status.value, _content_of(each.result)) for each in run.known_steps()]
    failure = run.failure or (stalled(run) if isinstance(spec, PlanByTurns) else None)
    request_id = next_request_id(run, "plan", [done, failure.code if failure else None, run.repair])
    transition.record(
        ev.PlanRequested(
            request_id=request_id,
            revision=run.revision + 1,
            reserved=grant,
            deadline_at=run.deadline(transition.now),
            reissue_at=_reissue_at(transition.now),
            failure=failure,
            turns_left=_turns_left(run),
            repair=run.repair,
            reuses=known is not None,
        )
    )
    if known is not None:
        transition.record(ev.PlanAccepted(request_id, known.plan, worker=known.worker, made_at=known.made_at))


def _turns_left(run: Run) -> int:
    spec = run.playbook.plan
    return spec.max_turns - (run.revision - run.progress.turns_from) if isinstance(spec, PlanByTurns) else 0


def request_call(transition: RunTransition, state: StepState, granted: str | None = None) -> None:
    """Ask for a call; first for its business key, if it has one that is not granted."""
    run, step = transition.run, state.acting
    try:
        arguments = render(step.arguments, run.scope_of(state))
    except ExpressionError as error:
        reason = Reason(code="expression_error", message=f"step {state.id}, arguments: {error}")
        fail_step(transition, state.id, FailureAction.REPLAN, reason)
        return
    is_again = state.revision > 1 and state.step.pin.effect.writes
    if is_again and (done := _done_before(run, state, arguments)) is not None:
        transition.record(ev.CallReused(state.id, done, arguments))
        return
    cost = step.pin.cost
    grant = (
        child_runs.grant_of(run, step) if state.is_handoff else _grant(cost.tokens, cost.usd_micros, cost.tool_calls)
    )
    if _is_refused(transition, state, arguments, grant):
        return
    # A read that has already answered is asked again under another key: its answer was not good enough.
    has_answer = state.result is not None and state.result.status is not ResultStatus.ERROR
    call = state.call + 1 if has_answer and not state.has_key_to_keep else state.call
    key = (is_again and _key_of_open(run, state, arguments)) or _key(run, state, call)
    if _wants_key(transition, state, arguments, key, granted):
        return
    if refused := repeated_write(run, state, arguments, key):
        fail_step(transition, state.id, FailureAction.REPLAN, refused)
        return
    transition.record(
        ev.CallRequested(
            request_id=child_runs.request_id(key)
            if state.is_handoff
            else next_request_id(run, state.id, [step.operation, arguments]),
            step=state.id,
            call=call,
            attempt=state.attempts + 1,
            arguments=arguments,
            idempotency_key=key,
            child=child_runs.child_of(run, key) if state.is_handoff else None,
            business_key=granted,
            reserved=grant,
            deadline_at=run.deadline(transition.now),
            reissue_at=_reissue_at(transition.now, step.pin.timeout_ms),
        )
    )


def _is_refused(transition: RunTransition, state: StepState, arguments: dict[str, Json], grant: Grant) -> bool:
    """Return whether a call must not be asked for; then the transition has the reason, and what follows."""
    run, step = transition.run, state.acting
    if step.must_come_from and (made_up := invented_argument(run, step.must_come_from, arguments)):
        why = Reason(code=made_up.code, message=f"{step.operation} in step {state.id}: {made_up.message}")
        fail_step(transition, state.id, FailureAction.REPAIR, why)
        return True
    is_first = state.started_at is None and state.index is None
    if is_first and (circle := repeated_call(run, step.operation, arguments)):
        transition.record(ev.RunEscalated(circle, state.id))
        return True
    if state.is_handoff and (refused := child_runs.handoff_refusal(run, arguments)):
        fail_step(transition, state.id, FailureAction.REPLAN, refused)
        return True
    if short := shortfall(run.ledger, grant, steps=0 if state.counted else 1, tool_calls=1):
        transition.record(ev.RunEscalated(short, state.id))
        return True
    return False


def _wants_key(
    transition: RunTransition, state: StepState, arguments: dict[str, Json], call_key: str, granted: str | None
) -> bool:
    """Return whether a call waits for its business key, or fails without one; then the transition has the event."""
    unique = state.acting.pin.business_key
    if unique is None or not state.acting.pin.effect.writes or state.business_key is not None:
        return False
    try:
        key = render(unique.value, {"arguments": arguments})
    except ExpressionError as error:
        reason = Reason(code="expression_error", message=f"step {state.id}, business_key: {error}")
        fail_step(transition, state.id, FailureAction.REPLAN, reason)
        return True
    text = key if isinstance(key, str) else codec.encode_text(key, sort_keys=True)
    if not text.strip() or not text.isprintable() or len(text) > BUSINESS_KEY_MAX_CHARS:
        most = BUSINESS_KEY_MAX_CHARS
        message = (
            f"step {state.id}: its business key, of {len(text)} characters, is none; 1 to {most} that print are one"
        )
        fail_step(transition, state.id, FailureAction.REPLAN, Reason(code="expression_error", message=message))
        return True
    if granted == text:
        return False
    transition.record(
        ev.KeyRequested(
            request_id=next_request_id(transition.run, f"key-{state.id}", [text, call_key]),
            step=state.id,
            key=text,
            idempotency_key=call_key,
            for_ms=unique.for_ms,
            on_repeat=unique.on_repeat,
            reissue_at=transition.now + KEY_ASKED_AGAIN_AFTER,
        )
    )
    return True


def _key(run: Run, state: StepState, call: int) -> str:
    return f"{run.name}:{state.name}:{call}{f':fallback-{state.fallback}' if state.fallback else ''}"


def _key_of_open(run: Run, state: StepState, arguments: dict[str, Json]) -> str | None:
    """Return the key of the same write in an earlier plan that may have happened: it must not happen twice."""
    if state.fallback or state.is_handoff:
        return None
    return next((_key(run, each, each.call) for each in _same_writes(run, state, arguments) if not each.fallback), None)


def _done_before(run: Run, state: StepState, arguments: dict[str, Json]) -> str | None:
    """Return the step or branch of an earlier plan that made this write already, with the same arguments."""
    return next((each.id for each in _same_writes(run, state, arguments) if each.answer_to_keep is not None), None)


def _same_writes(run: Run, state: StepState, arguments: dict[str, Json]) -> Iterator[StepState]:
    """Yield the steps and branches of earlier plans whose write with the same arguments may have happened."""
    wanted = None
    for earlier in (*run.steps.values(), *run.branches.values()):
        written = earlier.written
        if written is None or written.revision >= state.revision or earlier.step.operation != state.step.operation:
            continue
        wanted = wanted or call_of(state.step.operation, arguments)
        if call_of(state.step.operation, written.arguments) == wanted:
            yield earlier


def request_step_review(transition: RunTransition, state: StepState) -> None:
    run = transition.run
    grant = _judge_grant(state.step.judge)
    if short := shortfall(run.ledger, grant):
        transition.record(ev.RunEscalated(short, state.id))
        return
    transition.record(
        ev.ReviewRequested(
            request_id=next_request_id(run, f"review-{state.id}", [_content_of(state.result)]),
            step=state.id,
            reserved=grant,
            deadline_at=run.deadline(transition.now),
            reissue_at=_reissue_at(transition.now),
        )
    )


def request_final_review(transition: RunTransition, output: dict[str, Json]) -> None:
    """Have the whole run reviewed, with the output that it would have."""
    run = transition.run
    grant = _judge_grant(run.playbook.judge)
    if short := shortfall(run.ledger, grant):
        transition.record(ev.RunEscalated(short))
        return
    transition.record(
        ev.ReviewRequested(
            request_id=next_request_id(run, "review", [output]),
            step=None,
            reserved=grant,
            deadline_at=run.deadline(transition.now),
            reissue_at=_reissue_at(transition.now),
            output=output,
        )
    )


def next_request_id(run: Run, what: str, content: list[Json]) -> str:
    """Return the id of the next request of a run. It has a checksum of what is asked.

    After Postgres was restored, a run may ask something else in the same place, under another version of its playbook
    or after another answer. Kafka still has the answer to what it asked before. That answer must not pass for this one.
    """
    checksum = crc32(codec.encode([run.playbook.version, *content], sort_keys=True, limits=codec.STORED))
    return f"{run.name}:{what}:{run.requested + 1}:{checksum:08x}"


def _content_of(result: Result | None) -> list[Json]:
    return (
        [] if result is None else [result.status.value, result.data, result.error.code.value if result.error else None]
    )


def _reissue_at(now: datetime, timeout_ms: int = 0) -> datetime:
    return now + _patience(timeout_ms)


@lru_cache
def _patience(timeout_ms: int) -> timedelta:
    return timedelta(milliseconds=REISSUE_AFTER_MS + min(timeout_ms, REISSUE_TIMEOUT_MAX_MS))


def _judge_grant(judge: Judge | None) -> Grant:
    return _grant(judge.tokens, _micros(judge.usd)) if judge else _grant(0, 0)


@lru_cache
def _grant(tokens: int, usd_micros: int, tool_calls: int = 0) -> Grant:
    """Make a grant, or reuse it: most requests have the same grant as the one before."""
    return Grant(tokens=tokens, usd_micros=usd_micros, tool_calls=tool_calls)


def _micros(usd: float) -> int:
    return round(usd * 1_000_000)
