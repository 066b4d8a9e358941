"""What one batch makes of several messages to the same run, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest

from triptych.kernel.decider.admission import AdmissionControl, AdmissionLimits, AdmissionState
from triptych.kernel.decider.batch import BatchBuilder, PartitionState
from triptych.kernel.decider.contract import Batch, RunMessage, Transition

RUN = UUID(int=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON, LATER = NOW + timedelta(seconds=1), NOW + timedelta(minutes=1)


class Clockwork:
    """Runs that say nothing but when time alone would change them: whenever the last message says."""

    def apply(self, _state: object, message: RunMessage, *_: object, **__: object) -> Transition[datetime | None]:
        return Transition(message.content, "run", "acme", 0, 1, (), ())

    def wake_at(self, state: datetime | None) -> datetime | None:
        return state

    def admission_state(self, _state: object) -> object:
        return None


class Queue(Clockwork):
    """Runs whose state is where they stand."""

    def admission_state(self, state: object) -> object:
        return state

    def wake_at(self, _state: object) -> None:
        return None


def batch_of(*wakes: datetime | None, armed_at: datetime | None) -> Batch[datetime | None]:
    """The batch of messages after each of which the run is to be woken at another time."""
    partition_state: PartitionState[datetime | None] = PartitionState(AdmissionControl(AdmissionLimits(1), 1))
    partition_state.cache[RUN] = SOON
    if armed_at is not None:
        partition_state.timers.arm(RUN, armed_at)
    batch: Batch[datetime | None] = Batch(at=NOW)
    builder = BatchBuilder(SimpleNamespace(domain=Clockwork(), envelope=None), partition_state, batch)
    for wake_at in wakes:
        builder.take(None, RunMessage(RUN, wake_at))
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
    ("after", "dequeued"), [(AdmissionState.WAITING, []), (AdmissionState.ACTIVE, [RUN]), (AdmissionState.AWAY, [RUN])]
)
def test_a_run_that_waits_leaves_its_queue_only_when_it_waits_no_more(
    after: AdmissionState, dequeued: list[UUID]
) -> None:
    partition_state: PartitionState[AdmissionState] = PartitionState(AdmissionControl(AdmissionLimits(1), 1))
    partition_state.cache[RUN] = AdmissionState.WAITING
    batch: Batch[AdmissionState] = Batch(at=NOW)
    BatchBuilder(SimpleNamespace(domain=Queue(), envelope=None), partition_state, batch).take(
        None, RunMessage(RUN, after)
    )
    assert batch.dequeued == dequeued
