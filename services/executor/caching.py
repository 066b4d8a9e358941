"""Whether the answer of a model may come from, or go to, the cache of the service that asks it. Pure.

By default (`cache: reads`) it may not where a write waits for it: what a run does to the world is never
decided by an answer that was given to another run.
"""

from __future__ import annotations

from collections import defaultdict

from triptych.executor.state import Run
from triptych.schemas import Caching, Recall


def recall_of_call(run: Run, step_id: str, call: int) -> Recall:
    """What a call of this step may take from the cache. From the second call on, the answer was not good enough."""
    if not _may_be_kept(run, step_id):
        return Recall.NO
    return Recall.YES if call == 1 else Recall.RENEW


def recall_of_review(run: Run, step_id: str | None) -> Recall:
    """What a judgement of this step, or of the whole run, may take from the cache."""
    return Recall.YES if _may_be_kept(run, step_id) else Recall.NO


def _may_be_kept(run: Run, step_id: str | None) -> bool:
    match run.playbook.cache:
        case Caching.ALL:
            return True
        case Caching.OFF:
            return False
        case Caching.READS:
            # Nobody knows what a later plan of a model will do with an answer.
            return not run.playbook.is_planned_by_model and not _leads_to_write(run, step_id)


def _leads_to_write(run: Run, step_id: str | None) -> bool:
    """Whether the step writes, or any step that waits for it, directly or not; for the whole run, whether any does."""
    writes = {name for name, state in run.steps.items() if state.step.pin.effect.writes}
    if step_id is None or not writes:
        return bool(writes)
    waiting: defaultdict[str, list[str]] = defaultdict(list)
    for name, state in run.steps.items():
        for needed in state.step.depends_on:
            waiting[needed].append(name)
    seen, left = {step_id}, [step_id]
    while left:
        name = left.pop()
        if name in writes:
            return True
        fresh = [other for other in waiting[name] if other not in seen]
        seen.update(fresh)
        left.extend(fresh)
    return False
