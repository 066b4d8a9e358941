"""When a commit writes the rows of a run that people read, and when a later one may."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from machine_story import RUN_ID, Story, model_playbook, step

from triptych.executor.projections import LOAD, SHOWN_WITHIN, SHOWN_WITHIN_UNDER_LOAD, Projections
from triptych.executor.state import Run
from triptych.executor.store import step_row
from triptych.kernel.decider import Batch
from triptych.kernel.values import changed
from triptych.schemas import Decision, ErrorCode, Result

MS = timedelta(milliseconds=1)


def batch_of(story: Story, *, after: timedelta = timedelta(), partition: int = 0) -> Batch[Run]:
    """What the last message of a story has led to, as the executor commits it."""
    batch: Batch[Run] = Batch(at=story.now + after, epochs={partition: 1})
    batch.states[RUN_ID] = story.run
    batch.events = [(RUN_ID, number, event) for number, event in enumerate(story.last, start=1)]
    return batch


def empty(story: Story, after: timedelta, partition: int = 0, **fields: Any) -> Batch[Run]:
    return Batch(at=story.now + after, epochs={partition: 1}, **fields)


def commit(projections: Projections, batch: Batch[Run]) -> dict[UUID, set[str]]:
    update = projections.update(batch)
    projections.written(update)
    return {each.run.run_id: set(each.steps) for each in update.shown}


def under_way() -> tuple[Projections, Story]:
    """A run whose plan was accepted just now."""
    story, projections = Story(), Projections()
    assert commit(projections, batch_of(story)) == {RUN_ID: set()}
    story.plan(step("a"), step("b", depends_on=("a",)))
    assert commit(projections, batch_of(story)) == {}
    return projections, story


def test_a_run_that_begins_ends_or_changes_hands_is_shown_at_once_with_all_that_has_changed() -> None:
    projections, story = under_way()
    story.result("a")
    assert commit(projections, batch_of(story)) == {}
    story.fail("b", ErrorCode.FORBIDDEN)
    assert story.run.status == "escalated"
    assert commit(projections, batch_of(story)) == {RUN_ID: {"a", "b"}}
    story.control("resume")
    assert RUN_ID in commit(projections, batch_of(story))
    assert projections.due_at() is None


def test_what_happens_to_a_run_under_way_is_shown_within_the_time_by_whatever_is_committed_then() -> None:
    projections, story = under_way()
    assert projections.due_at() == story.now + SHOWN_WITHIN
    story.result("a")
    assert commit(projections, batch_of(story, after=SHOWN_WITHIN - MS)) == {}
    assert projections.partitions(story.now + SHOWN_WITHIN - MS) == set()
    assert projections.partitions(story.now + SHOWN_WITHIN) == {0}
    update = projections.update(empty(story, SHOWN_WITHIN))
    assert [(each.run, set(each.steps)) for each in update.shown] == [(story.run, {"a", "b"})]
    assert projections.due_at() is not None, "the update was not written"
    projections.written(update)
    assert projections.due_at() is None


def replanned(*plans: tuple[str, ...]) -> tuple[Projections, Story]:
    """A run that is planned again after the first step of each plan, all before any of it is shown."""
    story, projections = Story(model_playbook(budgets={"replans": 9})), Projections()
    commit(projections, batch_of(story))
    for number, names in enumerate(plans, start=1):
        first, *others = names
        story.plan(step(first, expect="false"), *(step(name, first) for name in others))
        assert commit(projections, batch_of(story)) == {}
        if number < len(plans):
            story.result(first, Result.ok(number))
            assert commit(projections, batch_of(story)) == {}
            story.verdict(first, Decision.REPLAN)
            assert commit(projections, batch_of(story)) == {}
    return projections, story


def rows(projections: Projections, story: Story) -> list[tuple[str, int, str]]:
    """Step, revision and status of the rows that are written when they are due."""
    (shown,) = projections.update(empty(story, SHOWN_WITHIN)).shown
    return [(row[1], row[2], row[4]) for row in (step_row(run, name) for name, run in shown.step_states())]


def test_a_step_that_a_later_plan_drops_before_it_is_shown_keeps_its_last_state() -> None:
    assert rows(*replanned(("a", "b"), ("c", "b"))) == [
        ("a", 1, "failed"),
        ("b", 2, "waiting"),
        ("c", 2, "running"),
    ]


def test_a_step_that_is_dropped_and_comes_back_is_shown_as_it_is_now() -> None:
    assert rows(*replanned(("a",), ("b",), ("a",))) == [("a", 3, "running"), ("b", 2, "failed")]


def test_a_clock_that_is_set_back_delays_nothing() -> None:
    projections, story = under_way()
    assert commit(projections, empty(story, -timedelta(hours=1))) == {RUN_ID: {"a", "b"}}


def test_only_an_owner_of_the_partition_shows_a_run() -> None:
    projections, story = under_way()
    assert commit(projections, empty(story, SHOWN_WITHIN, partition=1)) == {}
    assert commit(projections, empty(story, SHOWN_WITHIN)) == {RUN_ID: {"a", "b"}}


def test_at_the_end_of_a_claim_all_is_shown() -> None:
    projections, story = under_way()
    assert projections.partitions(None) == {0}
    assert commit(projections, empty(story, MS, shows_all=True)) == {RUN_ID: {"a", "b"}}


def test_a_new_owner_shows_what_the_one_before_has_left_with_its_first_batch() -> None:
    projections, story = under_way()
    heir = Projections()
    heir.reset([story.run])
    assert heir.partitions(story.now) == {0}
    assert commit(heir, empty(story, -timedelta(days=365))) == {RUN_ID: {"a", "b"}}
    projections.reset([])
    assert projections.due_at() is None, "what an earlier claim knew is forgotten"


def test_a_run_that_a_repeated_task_did_not_create_keeps_its_changes() -> None:
    projections, story = under_way()
    repeat = Story()
    projections.written(projections.update(batch_of(repeat)), but={RUN_ID})
    assert commit(projections, empty(story, SHOWN_WITHIN)) == {RUN_ID: {"a", "b"}}


def test_under_load_rows_may_be_later() -> None:
    projections, story = under_way()
    load = empty(story, MS)
    for number in range(LOAD):
        run_id = UUID(int=number)
        load.states[run_id] = changed(story.run, run_id=run_id)
    assert commit(projections, load) == {}
    assert commit(projections, empty(story, SHOWN_WITHIN)) == {}
    assert RUN_ID in commit(projections, empty(story, SHOWN_WITHIN_UNDER_LOAD))
