"""Whether the answer of a model may come from, or go to, the cache of the service that asks it. Pure.

By default (`cache: reads`), no cache is used where a write waits for the answer. An answer to another run never
decides what this run does to the world.
"""

from __future__ import annotations

from collections import defaultdict

from triptych.executor.state import Run
from triptych.schemas import Caching, Recall


def recall_of_call(run: Run, step_id: str, call: int) -> Recall:
    """Return what a call of this step may take from the cache. A second call means that the first answer was bad."""
    if not _may_be_kept(run, step_id):
        return Recall.NO
    return Recall.YES if call == 1 else Recall.RENEW


def recall_of_review(run: Run, step_id: str | None) -> Recall:
    """Return what a judgement of this step, or of the whole run, may take from the cache."""
    return Recall.YES if _may_be_kept(run, step_id) else Recall.NO


def _may_be_kept(run: Run, step_id: str | None) -> bool:
    match run.playbook.cache:
        case Caching.ALL:
            return True
        case Caching.OFF:
            return False
        case Caching.READS:
            # A later plan of a model may do anything with an answer.
            return not run.playbook.is_planned_by_model and not _leads_to_write(run, step_id)


def _leads_to_write(run: Run, step_id: str | None) -> bool:
    """Return whether the step, or one that waits for it, writes. For the whole run: whether any step writes."""
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
