"""What one batch makes of several messages to the same run, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest

from triptych.kernel.decider.admission import Admission, Limits, Standing
from triptych.kernel.decider.batch import Assembly, Memory
from triptych.kernel.decider.contract import Addressed, Batch, Transition

RUN = UUID(int=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON, LATER = NOW + timedelta(seconds=1), NOW + timedelta(minutes=1)


class Clockwork:
    """Runs that say nothing but when time alone would change them: whenever the last message says."""

    def apply(self, _state: object, message: Addressed, *_: object, **__: object) -> Transition[datetime | None]:
        return Transition(message.content, "run", "acme", 0, 1, (), ())

    def wake_at(self, state: datetime | None) -> datetime | None:
        return state

    def standing(self, _state: object) -> object:
        return None


class Queue(Clockwork):
    """Runs whose state is where they stand."""

    def standing(self, state: object) -> object:
        return state

    def wake_at(self, _state: object) -> None:
        return None


def batch_of(*wakes: datetime | None, armed_at: datetime | None) -> Batch[datetime | None]:
    """The batch of messages after each of which the run is to be woken at another time."""
    memory: Memory[datetime | None] = Memory(Admission(Limits(1), 1))
    memory.cache[RUN] = SOON
    if armed_at is not None:
        memory.timers.arm(RUN, armed_at)
    batch: Batch[datetime | None] = Batch(at=NOW)
    assembly = Assembly(SimpleNamespace(domain=Clockwork(), envelope=None), memory, batch)
    for wake_at in wakes:
        assembly.take(None, Addressed(RUN, wake_at))
    return batch


@pytest.mark.parametrize(
    ("wakes", "armed_at", "armed", "disarmed"),
    [
        ((None,), SOON, {}, {RUN}),
        ((None, SOON), LATER, {RUN: (0, SOON)}, set()),
        ((None, LATER), SOON, {}, set()),
        ((SOON, None), None, {}, set()),
        ((SOON, None), LATER, {}, {RUN}),
        ((SOON, LATER), None, {RUN: (0, LATER)}, set()),
    ],
)
def test_after_several_messages_in_a_batch_a_run_has_the_timer_that_the_last_of_them_wants(
    wakes: tuple[datetime | None, ...],
    armed_at: datetime | None,
    armed: dict[UUID, tuple[int, datetime]],
    disarmed: set[UUID],
) -> None:
    batch = batch_of(*wakes, armed_at=armed_at)
    assert (batch.armed, batch.disarmed) == (armed, disarmed)


@pytest.mark.parametrize(
    ("after", "dequeued"), [(Standing.WAITING, []), (Standing.ACTIVE, [RUN]), (Standing.AWAY, [RUN])]
)
def test_a_run_that_waits_leaves_its_line_only_when_it_waits_no_more(after: Standing, dequeued: list[UUID]) -> None:
    memory: Memory[Standing] = Memory(Admission(Limits(1), 1))
    memory.cache[RUN] = Standing.WAITING
    batch: Batch[Standing] = Batch(at=NOW)
    Assembly(SimpleNamespace(domain=Queue(), envelope=None), memory, batch).take(None, Addressed(RUN, after))
    assert batch.dequeued == dequeued
