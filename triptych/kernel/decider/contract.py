"""What a service gives to the decider loop: a domain that decides, and a store that writes.

The loop knows neither. A `Batch` collects everything that one statement writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

from triptych.kernel.decider.admission import AdmissionLimits, AdmissionState, LimitKey, QueueKey, WaitingRun
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.bus import Record
from triptych.kernel.kafka.dead_letters import DeadRecord
from triptych.kernel.kafka.suspect_records import RecordsInFlight
from triptych.kernel.kafka.topic_metadata import ClusterTopics
from triptych.kernel.postgres.outbox import OutboxKey, OutboxMessage, OutboxRow, Send
from triptych.kernel.process.tracing import TraceContext
from triptych.kernel.values import value
from triptych.schemas.base import Json

StateT = TypeVar("StateT")


@value
class InboundRecord:
    """A record that came in, with the body that it carries or refers to."""

    noun: str
    record: Record[Any, Any]
    body: bytes
    at: datetime
    """When it is read."""


class TaskKey(NamedTuple):
    """The key of a task. Two tasks with one key are repeats."""

    tenant: str
    task_id: str


@value
class RunMessage:
    """What a record says, and to which run. `creates` is the limit key of the run that it creates."""

    run_id: UUID
    content: object
    creates: LimitKey | None = None
    is_child: bool = False
    """The run that it creates is the child of a run on this partition. So it begins here, without waiting."""
    task: TaskKey | None = None
    """The key of the task, if the message is one."""
    witness: UUID | None = None
    """Another run, whose record shows whether this is true."""
    source: str | None = None
    """The service that is stated as its sender."""
    fingerprint: bytes | None = None
    """The hash of the task."""


@value
class Submission:
    """A client's task: its record, its key, and its hash."""

    record: Record[Any, Any]
    task: TaskKey
    fingerprint: bytes

    def differs(self, noted: bytes | None) -> bool:
        """Return whether it is another task than the one whose hash was noted. Without a hash, it is not."""
        return noted is not None and noted != self.fingerprint


Level = Literal["info", "warning", "error"]


@value
class Notice:
    """One line of the log, written once its cause is committed."""

    level: Level
    event: str
    fields: Mapping[str, Json]
    counter: str | None = None
    """The counter of the process that grows by one with it."""


@value
class Transition(Generic[StateT]):
    """A run after a message: its new state, the events that led there and what they send."""

    state: StateT
    name: str
    """The run's id as text."""
    tenant: str
    partition: int
    first_seq: int
    events: Sequence[object]
    sends: Sequence[Send]
    notices: Sequence[Notice] = ()
    trace: TraceContext | None = None
    """The trace that the run is a part of, unless that is its own."""


class RejectedRecord(UndecodableRecord):
    """A record that is refused: it becomes a dead letter, and its sender gets an answer.

    With a `task` it is refused only if no run of that task exists.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        tenant: str,
        replies: tuple[Send, ...],
        task: TaskKey | None = None,
        fingerprint: bytes | None = None,
    ) -> None:
        super().__init__(code, message)
        self.tenant, self.replies, self.task, self.fingerprint = tenant, replies, task, fingerprint


@dataclass(frozen=True, slots=True)
class UnreadRecord:
    """What replaces a record that is dead-lettered unread: the error, and a message to its run."""

    error: UndecodableRecord
    message: RunMessage | None = None


class Domain(Protocol[StateT]):
    """The decisions of a service. All of them are synchronous and pure."""

    @property
    def nouns(self) -> tuple[str, ...]:
        """Return the nouns of the topics that it reads."""

    @property
    def tick(self) -> object:
        """Return the message that says that time has passed."""

    @property
    def start(self) -> object:
        """Return the message that says that a waiting run may begin."""

    def given_up(self, cause: str) -> object:
        """Return the message that hands a run over to a person, because looking at the run ends processes."""

    @property
    def limits(self) -> AdmissionLimits:
        """Return how many runs may be active."""

    def check_size(self, noun: str, record: Record[Any, Any]) -> None:
        """Refuse a record that cannot be read, or is too large to be unpacked. Raises UndecodableRecord."""

    def unread(
        self, noun: str, record: Record[Any, Any], error: UndecodableRecord, task: TaskKey | None = None
    ) -> UnreadRecord:
        """Return what to do with a record that must not be read, as far as its key and headers tell whose it is.

        `task` is the task that it is known to be.
        """

    def read(self, inbound: InboundRecord) -> RunMessage:
        """Decode a record. Raises UndecodableRecord when it cannot be understood."""

    def partition(self, state: StateT) -> int:
        """Return the partition whose owner alone may change this run."""

    def limit_key(self, state: StateT) -> LimitKey:
        """Return the key by which limits count this run."""

    def admission_state(self, state: StateT) -> AdmissionState:
        """Return whether the run takes room, waits for room, or does neither."""

    def wake_at(self, state: StateT) -> datetime | None:
        """Return when time alone may next change this run."""

    def apply(
        self,
        state: StateT | None,
        message: RunMessage,
        partition: int,
        now: datetime,
        *,
        has_room: bool,
        witness: StateT | None,
    ) -> Transition[StateT] | None:
        """Return what follows from a message, or None when it changes nothing. A new run waits unless there is room.

        `witness` is the run that the message names as its witness, if such a run exists.

        Raises UndecodableRecord.
        """

    def task(self, state: StateT) -> TaskKey:
        """Return the task that created this run."""

    def conflict(self, submission: Submission) -> RejectedRecord:
        """Return the refusal of a task whose id belongs to another task."""

    def again(self, state: StateT) -> Transition[StateT]:
        """Return what a run that is over sends to a client that asks again. The run stays as it is."""


@dataclass(frozen=True, slots=True)
class PartitionClaim:
    """A partition that this process owns, in which epoch, and where to go on reading."""

    partition: int
    epoch: int
    offsets: dict[str, int]


@dataclass(slots=True)
class Batch(Generic[StateT]):
    """Everything that one statement writes."""

    epochs: dict[int, int] = field(default_factory=dict)
    offsets: dict[int, dict[str, int]] = field(default_factory=dict)
    created: list[UUID] = field(default_factory=list)
    submissions: dict[UUID, Submission] = field(default_factory=dict)
    """The tasks of the runs that are created. A child run does not have one."""
    repeats: list[Submission] = field(default_factory=list)
    """Tasks that have a run already, from before this batch or from within it."""
    queued: list[UUID] = field(default_factory=list)
    dequeued: list[UUID] = field(default_factory=list)
    states: dict[UUID, StateT] = field(default_factory=dict)
    events: list[tuple[UUID, int, object]] = field(default_factory=list)
    outbox: list[OutboxMessage] = field(default_factory=list)
    number: int = 0
    """Its place among the batches of its session."""
    published: list[OutboxKey] = field(default_factory=list)
    armed: dict[UUID, tuple[int, datetime]] = field(default_factory=dict)
    disarmed: set[UUID] = field(default_factory=set)
    dead: list[DeadRecord] = field(default_factory=list)
    notices: list[tuple[UUID, Notice]] = field(default_factory=list)
    at: datetime = field(default_factory=cloudevents.utc_now)
    shows_all: bool = False
    """Whether the rows that people read are brought up to date with it, also where they may be late."""

    def outbox_rows(self) -> list[OutboxRow]:
        """Return its messages by the partitions whose owner publishes them."""
        rows: dict[int, list[OutboxMessage]] = {}
        for message in self.outbox:
            rows.setdefault(message.partition, []).append(message)
        return [
            OutboxRow(OutboxKey(partition, self.epochs[partition], self.number), messages)
            for partition, messages in rows.items()
        ]


class DeciderStore(Protocol[StateT]):
    """The service's tables. Every call is one round trip."""

    async def claim(self, partitions: Sequence[int], owner: str, cluster: ClusterTopics) -> list[PartitionClaim]:
        """Become the owner, fencing every earlier one. Offsets that mean nothing in these topics are dropped."""

    async def epochs(self, partitions: Sequence[int]) -> dict[int, int]:
        """Return the newest epoch of each of these partitions."""

    async def load(self, run_ids: Sequence[UUID]) -> dict[UUID, StateT]:
        """Return runs folded from their journals; those that do not exist are absent."""

    async def catch_up(self, partitions: Sequence[int]) -> None:
        """Find the rows that people read and that earlier owners of these partitions have left behind the journals.

        What was known of others is forgotten. A commit writes them.
        """

    def projections_due_at(self) -> datetime | None:
        """Return when the next row that people read is due, or None when all are up to date."""

    def projected_partitions(self, now: datetime | None) -> set[int]:
        """Return the partitions for which such rows are due; without a time, for which any are not up to date."""

    async def left_behind(self, partitions: Sequence[int]) -> list[OutboxRow]:
        """Return outbox rows that an earlier owner has committed and perhaps not published, in order.

        What they hold of a run that was never created is left out: its task had a run already.
        """

    async def readings(self, partitions: Sequence[int]) -> list[RecordsInFlight]:
        """Return what earlier owners were reading when they ended, and perhaps still read."""

    async def note(self, readings: Sequence[RecordsInFlight]) -> list[RecordsInFlight]:
        """Write down what is about to be read, and return it with the number of processes that have read the same."""

    async def timers(self, partitions: Sequence[int]) -> list[tuple[UUID, datetime, int]]:
        """Return the timers of these partitions: run, due time and partition."""

    async def active(self, partitions: Sequence[int]) -> list[tuple[UUID, QueueKey]]:
        """Return the active runs of these partitions."""

    async def waiting(self, partitions: Sequence[int]) -> list[WaitingRun]:
        """Return the head of each queue of these partitions."""

    async def heads(self, queues: Sequence[QueueKey]) -> list[WaitingRun]:
        """Return the heads of these queues."""

    async def commit(self, batch: Batch[StateT]) -> set[UUID]:
        """Write the batch in one statement and return created runs that existed already. Raises Fenced."""

    async def answer_queries(self, batch: Batch[StateT], duplicates: Collection[UUID]) -> list[RunMessage]:
        """Answer what runs of a committed batch ask of the database. Asking again must be harmless.

        The `duplicates` of the batch ask nothing: their tasks have other runs.
        """

    async def known(self, tasks: Collection[TaskKey]) -> dict[TaskKey, bytes | None]:
        """Return the tasks that have a run, each with its hash; None where no hash was noted."""

    async def ended(self, tasks: Collection[TaskKey]) -> dict[UUID, StateT]:
        """Return the runs of these tasks, as far as they are over."""

    async def forget(self, published: Sequence[OutboxKey]) -> None:
        """Delete outbox rows that Kafka has acknowledged."""
