"""What the decider loop asks of a service: a domain that decides, and a store that writes.

The loop knows neither; whatever is written in one statement is collected in a `Batch`.
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
from triptych.kernel.postgres.outbox import OutboxKey, OutboxRow, Send
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
    """What makes a task a repeat of another."""

    tenant: str
    task_id: str


@value
class RunMessage:
    """What a record says, and to which run. `creates` says of which kind a run is that comes of it."""

    run_id: UUID
    content: object
    creates: LimitKey | None = None
    is_child: bool = False
    """The run that comes of it belongs to one that has a place here already: it begins here, and at once."""
    task: TaskKey | None = None
    """The task that it is, if it is one."""
    witness: UUID | None = None
    """Another run, whose record says whether this is true."""
    source: str | None = None
    """The service that says that it has sent it."""
    fingerprint: bytes | None = None
    """What the task says, as a hash."""


@value
class Submission:
    """A client's task, where it lies, and what it says, as a hash."""

    record: Record[Any, Any]
    task: TaskKey
    fingerprint: bytes

    def differs(self, noted: bytes | None) -> bool:
        """Whether it is another task than the one that was noted. Of one that was not, nobody can say."""
        return noted is not None and noted != self.fingerprint


Level = Literal["info", "warning", "error"]


@value
class Notice:
    """What people who watch the log should see: one line, once it is committed."""

    level: Level
    event: str
    fields: Mapping[str, Json]
    counter: str | None = None
    """The counter of the process that grows with it."""


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
    """A record that is refused: it becomes a dead letter, and whoever sent it gets an answer.

    With a `task` it is refused only if no run has come of that task before.
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
    """What stands for a record that is dead-lettered unread: why, and what its run is told in its place."""

    error: UndecodableRecord
    message: RunMessage | None = None


class Domain(Protocol[StateT]):
    """What a service decides. All of it is synchronous and pure."""

    @property
    def nouns(self) -> tuple[str, ...]:
        """The topics it reads."""

    @property
    def tick(self) -> object:
        """The message that says that time has passed."""

    @property
    def start(self) -> object:
        """The message that says that there is room for a run that waits."""

    def given_up(self, cause: str) -> object:
        """The message that hands a run over to a person, since looking at it ends processes."""

    @property
    def limits(self) -> AdmissionLimits:
        """How many runs may be active."""

    def check_size(self, noun: str, record: Record[Any, Any]) -> None:
        """Refuse a record that cannot be read, or is too large to be unpacked. Raises UndecodableRecord."""

    def unread(
        self, noun: str, record: Record[Any, Any], error: UndecodableRecord, task: TaskKey | None = None
    ) -> UnreadRecord:
        """What is told of a record that nobody may read, as far as its key and headers say whose it is.

        `task` is what it is known to be.
        """

    def read(self, inbound: InboundRecord) -> RunMessage:
        """What a record says. Raises UndecodableRecord when it says nothing."""

    def partition(self, state: StateT) -> int:
        """The partition whose owner alone may change this run."""

    def limit_key(self, state: StateT) -> LimitKey:
        """What limits go by."""

    def admission_state(self, state: StateT) -> AdmissionState:
        """Whether it takes room, wants some, or neither."""

    def wake_at(self, state: StateT) -> datetime | None:
        """When time alone may next change this run."""

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
        """What follows from a message, or None when it changes nothing. A new run waits unless there is room.

        `witness` is the run that the message names as its witness, if there is such a run.

        Raises UndecodableRecord.
        """

    def task(self, state: StateT) -> TaskKey:
        """The task of which it came."""

    def conflict(self, submission: Submission) -> RejectedRecord:
        """The refusal of a task whose id belongs to another one."""

    def again(self, state: StateT) -> Transition[StateT]:
        """What a run that is over sends to whoever asks for it again; the run stays as it is."""


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
    """The tasks of the runs that are created; of child runs there are none."""
    repeats: list[Submission] = field(default_factory=list)
    """Tasks whose run was there before this batch or within it."""
    queued: list[UUID] = field(default_factory=list)
    dequeued: list[UUID] = field(default_factory=list)
    states: dict[UUID, StateT] = field(default_factory=dict)
    events: list[tuple[UUID, int, object]] = field(default_factory=list)
    outbox: list[OutboxRow] = field(default_factory=list)
    published: list[OutboxKey] = field(default_factory=list)
    armed: dict[UUID, tuple[int, datetime]] = field(default_factory=dict)
    disarmed: set[UUID] = field(default_factory=set)
    dead: list[DeadRecord] = field(default_factory=list)
    notices: list[tuple[UUID, Notice]] = field(default_factory=list)
    at: datetime = field(default_factory=cloudevents.utc_now)


class DeciderStore(Protocol[StateT]):
    """The service's tables. Every call is one round trip."""

    async def claim(self, partitions: Sequence[int], owner: str, cluster: ClusterTopics) -> list[PartitionClaim]:
        """Become the owner, fencing every earlier one. Offsets that mean nothing in these topics are dropped."""

    async def epochs(self, partitions: Sequence[int]) -> dict[int, int]:
        """The newest epoch of each of these partitions."""

    async def load(self, run_ids: Sequence[UUID]) -> dict[UUID, StateT]:
        """Runs folded from their journals; those that do not exist are absent."""

    async def left_behind(self, partitions: Sequence[int]) -> list[OutboxRow]:
        """Outbox rows that an earlier owner has committed and perhaps not published, in order."""

    async def readings(self, partitions: Sequence[int]) -> list[RecordsInFlight]:
        """What earlier owners had in hand, and perhaps have still."""

    async def note(self, readings: Sequence[RecordsInFlight]) -> list[RecordsInFlight]:
        """Write down what is about to be read, and return it with the number of lives that had the same in hand."""

    async def timers(self, partitions: Sequence[int]) -> list[tuple[UUID, datetime, int]]:
        """The timers of these partitions, each with its own."""

    async def active(self, partitions: Sequence[int]) -> list[tuple[UUID, QueueKey]]:
        """The active runs of these partitions."""

    async def waiting(self, partitions: Sequence[int]) -> list[WaitingRun]:
        """The head of each line of these partitions."""

    async def heads(self, queues: Sequence[QueueKey]) -> list[WaitingRun]:
        """The heads of these lines."""

    async def commit(self, batch: Batch[StateT]) -> set[UUID]:
        """Write the batch in one statement and return created runs that existed already. Raises Fenced."""

    async def answer_queries(self, batch: Batch[StateT]) -> list[RunMessage]:
        """What runs of a committed batch ask of the database, answered. Asking again must be harmless."""

    async def known(self, tasks: Collection[TaskKey]) -> dict[TaskKey, bytes | None]:
        """Those of which a run has come, and what each says, as a hash; None where nobody has noted it."""

    async def ended(self, tasks: Collection[TaskKey]) -> dict[UUID, StateT]:
        """The runs of these tasks, as far as they are over."""

    async def forget(self, published: Sequence[OutboxKey]) -> None:
        """Delete outbox rows that Kafka has acknowledged."""
