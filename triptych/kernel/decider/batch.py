"""Build one batch: messages in, everything that one statement will write out.

Synchronous and without I/O. States are immutable, so a batch that is never committed leaves the
memory as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg

from triptych.kernel.decider.admission import AdmissionControl, AdmissionState, QueueKey
from triptych.kernel.decider.contract import (
    Batch,
    DeciderStore,
    Domain,
    InboundRecord,
    Notice,
    RejectedRecord,
    RunMessage,
    StateT,
    Submission,
    Transition,
)
from triptych.kernel.decider.timers import Timers
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import bus, cloudevents, dead_letters
from triptych.kernel.kafka.bus import Kafka, Outgoing, Record
from triptych.kernel.kafka.dead_letters import DeadRecord
from triptych.kernel.kafka.suspect_records import Suspicion
from triptych.kernel.postgres.outbox import Envelope, MessageKey, OutboxMessage
from triptych.kernel.process.outage import Outage
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.process.tracing import TraceContext
from triptych.schemas import topics
from triptych.schemas.base import Json

POISONED_TIMER_DELAY = timedelta(seconds=60)
FORWARDED = "triptych_forwarded"
"""The header of a record that was forwarded to another partition: `topic:partition:offset` of where it came in."""


@dataclass(frozen=True, slots=True)
class DeciderContext(Generic[StateT]):
    """What the parts of a decider share."""

    service: Service
    settings: ServiceSettings
    domain: Domain[StateT]
    store: DeciderStore[StateT]
    pool: asyncpg.Pool
    envelope: Envelope
    outage: Outage
    kafka: Kafka
    suspicion: Suspicion = field(default_factory=Suspicion)


@dataclass(slots=True)
class PartitionState(Generic[StateT]):
    """What this process remembers of the partitions that it owns."""

    admission: AdmissionControl
    cache: OrderedDict[UUID, StateT] = field(default_factory=OrderedDict)
    timers: Timers = field(default_factory=Timers)
    starts: list[UUID] = field(default_factory=list)
    """Runs that waited and are to begin with the next batch."""
    answers: list[RunMessage] = field(default_factory=list)
    """Answers of the database to runs, for the next batch."""


class BatchBuilder(Generic[StateT]):
    """Builds one batch."""

    def __init__(
        self, context: DeciderContext[StateT], partition_state: PartitionState[StateT], batch: Batch[StateT]
    ) -> None:
        self._context, self._partition_state, self.batch = context, partition_state, batch
        self.rejected: list[tuple[Record[Any, Any], RejectedRecord]] = []
        """Records that were refused. Each becomes a dead letter, unless its task has a run already."""

    def touched_partitions(self) -> set[int]:
        """Return the partitions whose ownership this batch depends on."""
        batch = self.batch
        return {
            *batch.offsets,
            *(message.partition for message in batch.outbox),
            *(self._context.domain.partition(state) for state in batch.states.values()),
            *(partition for partition, _ in batch.armed.values()),
        }

    def take(self, inbound: InboundRecord | None, message: RunMessage) -> None:
        """Decide what follows from a message; `inbound` is None when time alone is the message."""
        state = self._state(message.run_id)
        witness = self._state(message.witness) if message.witness is not None else None
        try:
            if inbound and self._is_misrouted(inbound, message, state):
                return
            partition = inbound.record.partition if inbound else -1
            has_room = (
                state is None
                and message.creates is not None
                and self._partition_state.admission.enter(
                    message.run_id, QueueKey(partition, *message.creates), at_once=message.is_child
                )
            )
            transition = self._context.domain.apply(
                state, message, partition, self.batch.at, has_room=has_room, witness=witness
            )
        except RejectedRecord as error:
            if inbound:
                self.rejected.append((inbound.record, error))
            return
        except UndecodableRecord as error:
            if inbound:
                self.dead_letter(inbound.record, error)
            return
        except Exception as error:
            # A defect of ours must not stop the partition: the record is kept, and the run's deadline stands.
            self._context.service.log.exception("a message could not be applied", run_id=str(message.run_id))
            if inbound:
                self.dead_letter(inbound.record, UndecodableRecord("internal", f"{type(error).__name__}: {error}"))
            return
        self._follow(inbound, message, state, transition)

    def _follow(
        self,
        inbound: InboundRecord | None,
        message: RunMessage,
        state: StateT | None,
        transition: Transition[StateT] | None,
    ) -> None:
        """Put down what follows from a message."""
        submission = _submission(inbound, message) if inbound else None
        if transition is None:
            self._context.service.health.count("duplicates")
            if submission:
                self.batch.repeats.append(submission)
            return
        if submission:
            self.batch.submissions[message.run_id] = submission
        self.batch.notices.extend((message.run_id, notice) for notice in transition.notices)
        self._note_waiting(message.run_id, state, transition.state)
        self._collect(message, transition)

    def _state(self, run_id: UUID) -> StateT | None:
        """Return a run as this batch has left it so far."""
        return self.batch.states.get(run_id) or self._partition_state.cache.get(run_id)

    def _note_waiting(self, run_id: UUID, before: StateT | None, after: StateT) -> None:
        """Note whether a run enters or leaves its queue. A run that gets a message and still waits keeps its place."""
        waits = self._context.domain.admission_state(after) is AdmissionState.WAITING
        if before is None:
            if waits:
                self.batch.queued.append(run_id)
        elif self._context.domain.admission_state(before) is AdmissionState.WAITING and not waits:
            self.batch.dequeued.append(run_id)

    def _collect(self, message: RunMessage, transition: Transition[StateT]) -> None:
        run_id = message.run_id
        if message.creates:
            self.batch.created.append(run_id)
        self.batch.states[run_id] = transition.state
        for offset, event in enumerate(transition.events):
            self.batch.events.append((run_id, transition.first_seq + offset, event))
        self.batch.outbox.extend(outbox_messages(self._context.envelope, run_id, transition))
        self._rearm(run_id, transition.partition, self._context.domain.wake_at(transition.state))

    def _rearm(self, run_id: UUID, partition: int, wake_at: datetime | None) -> None:
        """Move the run's timer only when it must be earlier; one that is early finds nothing due and moves on."""
        armed, disarmed = self.batch.armed, self.batch.disarmed
        armed_at = self._partition_state.timers.due_at(run_id)
        # The last of the messages to a run in this batch decides.
        armed.pop(run_id, None)
        disarmed.discard(run_id)
        if wake_at is None:
            if armed_at is not None:
                disarmed.add(run_id)
        elif armed_at is None or wake_at < armed_at or armed_at <= self.batch.at:
            armed[run_id] = (partition, wake_at)

    def rearm_untouched(self, run_id: UUID) -> None:
        """Look again later at a run whose timer fired too early, or that could not be decided."""
        state = self._partition_state.cache.get(run_id)
        later = self.batch.at + POISONED_TIMER_DELAY
        if state is None:  # its journal cannot be read here; the row stays for a process that can
            self._partition_state.timers.arm(run_id, later)
            return
        wake_at = self._context.domain.wake_at(state)
        if wake_at is None:
            self.batch.disarmed.add(run_id)
        else:
            self.batch.armed[run_id] = (
                self._context.domain.partition(state),
                wake_at if wake_at > self.batch.at else later,
            )

    def _is_misrouted(self, inbound: InboundRecord, message: RunMessage, state: StateT | None) -> bool:
        """Return whether a record came in on another partition than its run's. If so, forward it to the owner there."""
        record = inbound.record
        if state is not None:
            home = self._context.domain.partition(state)
        elif message.creates is not None and not message.is_child:
            home = self._partition_state.admission.home(message.creates, record.partition)
        else:
            return False
        if record.partition == home:
            return False
        if cloudevents.header(record.headers, FORWARDED) is not None:
            if state is None:
                return False  # the process that forwarded it has other limits; here it waits at least
            raise UndecodableRecord("wrong_partition", f"the run lives on partition {home}, and so must this record")
        origin = bus.place(record).encode()
        headers = [*((name, value or b"") for name, value in record.headers), (FORWARDED, origin)]
        if not bus.fits(record.key, record.value, headers):
            raise UndecodableRecord("wrong_partition", f"the run lives on partition {home}; too large to be forwarded")
        outgoing = Outgoing(record.topic, home, record.key or b"", headers, record.value or b"")
        self.batch.outbox.append(OutboxMessage(MessageKey(_record_uuid(record), 0), record.partition, outgoing))
        return True

    def dead_letter(self, record: Record[Any, Any], error: UndecodableRecord) -> None:
        """Make a dead letter of a record that cannot be understood, and answer its sender if an answer is due."""
        tenant = error.tenant if isinstance(error, RejectedRecord) else None
        dead = dead_letters.dead_record(self._context.service.name, record, error, self.batch.at, tenant=tenant)
        self.batch.dead.append(dead)
        outgoing = dead_letters.event(
            dead, self._context.service.name, self._context.settings.topic(topics.DEAD_LETTERS)
        )
        run_id = _record_uuid(record)
        self.batch.outbox.append(OutboxMessage(MessageKey(run_id, 0), record.partition, outgoing))
        self.batch.notices.append((run_id, _dead_letter_notice(dead, record, error)))
        known = TraceContext.of_headers(record.headers)
        for number, send in enumerate(error.replies if isinstance(error, RejectedRecord) else (), start=1):
            self.batch.outbox.append(
                self._context.envelope.wrap(
                    send,
                    run_id=run_id,
                    name=str(run_id),
                    position=number,
                    partition=record.partition,
                    tenant=dead.tenant,
                    trace=known[1] if known else None,
                )
            )


def outbox_messages(envelope: Envelope, run_id: UUID, transition: Transition[Any]) -> list[OutboxMessage]:
    """Return the messages of a transition. Their positions follow from the event that they belong to."""
    base = transition.first_seq * 1_000
    return [
        envelope.wrap(
            send,
            run_id=run_id,
            name=transition.name,
            position=base + number,
            partition=transition.partition,
            tenant=transition.tenant,
            trace=transition.trace,
        )
        for number, send in enumerate(transition.sends)
    ]


def _dead_letter_notice(dead: DeadRecord, record: Record[Any, Any], error: UndecodableRecord) -> Notice:
    task = error.task if isinstance(error, RejectedRecord) else None
    named: dict[str, Json] = {} if task is None else {"task_id": task.task_id}
    return Notice("warning", "record dead-lettered", dead_letters.about(dead, record) | named, "dead_letters")


def _submission(inbound: InboundRecord, message: RunMessage) -> Submission | None:
    """Return the client's task that this message is, or None if it is not a task."""
    if message.task is None or message.fingerprint is None:
        return None
    return Submission(inbound.record, message.task, message.fingerprint)


def _record_uuid(record: Record[Any, Any]) -> UUID:
    """Return a stable id for messages that belong to a record and not to a run."""
    return uuid5(NAMESPACE_URL, f"kafka:{bus.place(record)}")
