"""Decide which rows of `runs` and `steps` a commit writes. No I/O.

The journal is the truth, and these rows are for people. A run that is admitted, starts, stops or changes hands is shown
by the commit that makes it so. What happens to a run under way may be shown by a later commit, within a stated time, so
that several changes are one row. What an owner had not written when it died, the next owner finds by `runs.seq`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import takewhile
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID

from triptych.executor import events as ev
from triptych.executor.state import Run
from triptych.kernel.decider import Batch

SHOWN_WITHIN = timedelta(milliseconds=250)
"""So old a change of a run may be that no row shows."""
SHOWN_WITHIN_UNDER_LOAD = timedelta(seconds=1)
"""The same while many runs change: they come by less often than every 250 ms, so that nothing would be saved."""
LOAD = 250
"""So many changed runs are a load."""

_CHANGES_HANDS = (ev.RunAdmitted, ev.RunStarted, ev.RunResumed, ev.ChildResumed)
_ABOUT_ALL_STEPS = (ev.PlanAccepted, ev.ReplanDecided, ev.RunEscalated, ev.RunResumed)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Unshown(NamedTuple):
    """A run that its rows do not show as it is, the steps that have changed, and the time of the first change."""

    run: Run
    steps: frozenset[str]
    since: datetime
    dropped: tuple[tuple[str, Run], ...] = ()
    """Changed steps that a later plan does not have, each with the last run that had it."""

    def step_states(self) -> list[tuple[str, Run]]:
        """Return the changed steps with the run that has them, in their order."""
        return sorted([*((step, self.run) for step in self.steps), *self.dropped], key=itemgetter(0))


class ProjectionUpdate(NamedTuple):
    """What one commit writes of the changes until then, and what it changes."""

    shown: list[Unshown]
    changes: dict[UUID, Unshown]


class Projections:
    """Remembers which runs their rows do not show yet."""

    def __init__(self) -> None:
        self._unshown: dict[UUID, Unshown] = {}
        """In the order of `since`."""

    def reset(self, behind: Iterable[Run]) -> None:
        """Begin with the runs whose rows an earlier owner has left behind; all of them are due."""
        self._unshown = {run.run_id: Unshown(run, _all_steps(run), _LONG_AGO) for run in behind}

    def due_at(self) -> datetime | None:
        """Return when the next row is due, or None when all are up to date."""
        first = next(iter(self._unshown.values()), None)
        return None if first is None else first.since + self._within

    def partitions(self, now: datetime | None) -> set[int]:
        """Return the partitions whose rows are due; without a time, all whose rows are not up to date."""
        return {each.run.partition for each in (self._unshown.values() if now is None else self._due(now))}

    def update(self, batch: Batch[Run]) -> ProjectionUpdate:
        """Return what the commit of this batch writes. It counts once it is passed to `written`."""
        steps = touched_steps(batch)
        changes = {run_id: self._changed(run, steps.get(run_id, ()), batch.at) for run_id, run in batch.states.items()}
        due = self._unshown.values() if batch.shows_all else self._due(batch.at)
        shown = {
            each.run.run_id: changes.get(each.run.run_id, each) for each in due if each.run.partition in batch.epochs
        }
        shown |= {run_id: changes[run_id] for run_id in _changed_hands(batch)}
        return ProjectionUpdate(list(shown.values()), changes)

    def written(self, update: ProjectionUpdate, *, but: Collection[UUID] = ()) -> None:
        """Take an update as written, without these runs: they were there already, and nothing of them was written."""
        self._unshown |= {run_id: each for run_id, each in update.changes.items() if run_id not in but}
        for each in update.shown:
            if each.run.run_id not in but:
                self._unshown.pop(each.run.run_id, None)

    def _changed(self, run: Run, steps: Iterable[str], at: datetime) -> Unshown:
        known = self._unshown.get(run.run_id)
        if known is None:
            return Unshown(run, frozenset(steps), at)
        if run.revision == known.run.revision and not known.dropped:  # only another plan drops steps
            return Unshown(run, known.steps.union(steps), known.since)
        last = dict(known.dropped) | dict.fromkeys(known.steps, known.run)
        dropped = tuple((step, having) for step, having in last.items() if not _has(run, step))
        return Unshown(run, frozenset(filter(partial(_has, run), known.steps)).union(steps), known.since, dropped)

    def _due(self, now: datetime) -> Iterator[Unshown]:
        """Yield what is due. A clock that was set back delays nothing."""
        within = self._within
        return takewhile(lambda each: not each.since <= now < each.since + within, self._unshown.values())

    @property
    def _within(self) -> timedelta:
        return SHOWN_WITHIN if len(self._unshown) < LOAD else SHOWN_WITHIN_UNDER_LOAD


def changes_hands(run: Run, event: object) -> bool:
    """Return whether a run that an event has led to is shown by the commit of that event, and not later.

    Only the rows of runs under way may be behind: each of those has a timer, by which its next owner finds it.
    """
    return not run.status.is_active or bool(run.children_waiting) or isinstance(event, _CHANGES_HANDS)


def touched_steps(batch: Batch[Run]) -> dict[UUID, set[str]]:
    """Return the steps that some event of this batch is about, and still in the plan."""
    touched: dict[UUID, set[str]] = {}
    for run_id, _, event in batch.events:
        run = batch.states[run_id]
        if isinstance(event, _ABOUT_ALL_STEPS):
            touched.setdefault(run_id, set()).update(_all_steps(run))
        elif (step_id := getattr(event, "step", None)) is not None and _has(run, step_id):
            touched.setdefault(run_id, set()).add(step_id)
    return touched


def _has(run: Run, step_id: str) -> bool:
    return step_id in run.steps or step_id in run.branches


def _all_steps(run: Run) -> frozenset[str]:
    """Return the steps of a run that have rows: those of its plan, and branches that have begun."""
    return frozenset(run.steps).union(step_id for step_id, branch in run.branches.items() if branch.started_at)


def _changed_hands(batch: Batch[Run]) -> set[UUID]:
    return {run_id for run_id, _, event in batch.events if changes_hands(batch.states[run_id], event)}
