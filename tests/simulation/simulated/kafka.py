"""The bus: partitioned logs, groups with eager rebalances and static members, idempotent producers.

Order holds only within a partition. A batch that was not acknowledged has arrived, or has not,
or arrives later. A member that is not heard of for a session timeout loses its partitions and
learns of it later than everybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from aiokafka.errors import KafkaConnectionError

from simulated.loop import EPOCH
from triptych.kernel.errors import PublishFailed
from triptych.kernel.kafka.bus import Outgoing, TopicPartition
from triptych.kernel.kafka.topic_metadata import ClusterTopics, KnownTopic

if TYPE_CHECKING:
    from simulated.world import Process, World

SESSION_TIMEOUT_S = 10.0
HEARTBEAT_S = 2.5
REBALANCE_TIMEOUT_S = 60.0
PUBLISH_TIMEOUT_S = 15.0
IDLE_POLL_S = 0.5
IDLE_POLLS = 3
"""After so many polls that found nothing, the next one waits for as long as it is asked to."""
CLUSTER = "simulated"


class Record:
    """A record as aiokafka gives it."""

    __slots__ = ("headers", "key", "offset", "partition", "timestamp", "topic", "value")

    def __init__(self, message: Outgoing, offset: int, timestamp: int) -> None:
        self.topic, self.partition, self.offset, self.timestamp = message.topic, message.partition, offset, timestamp
        self.key, self.value, self.headers = message.key, message.value, message.headers


class Broker:
    """All topics and groups."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.logs: dict[TopicPartition, list[Record]] = {}
        self.groups: dict[str, Group] = {}
        self._readers: dict[str, list[Group]] = {}
        self.away_until = 0.0

    @property
    def is_away(self) -> bool:
        return self.world.scheduler.now < self.away_until

    def log(self, partition: TopicPartition) -> list[Record]:
        found = self.logs.get(partition)
        if found is None:
            found = self.logs[partition] = []
        return found

    def group(self, name: str, topics: Sequence[str]) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(self, topics)
            for topic in topics:
                self._readers.setdefault(topic, []).append(group)
        return group

    def append(self, message: Outgoing) -> None:
        partition = TopicPartition(message.topic, message.partition)
        log = self.log(partition)
        timestamp = int(EPOCH.timestamp() * 1000 + self.world.scheduler.now * 1000)
        log.append(Record(message, len(log), timestamp))
        for group in self._readers.get(message.topic, ()):
            for member in group.members.values():
                if partition in member.reads_at:
                    self.world.after_a_moment(member.arrive, partition)
        self.world.published(message)

    # --- producing --------------------------------------------------------------------------------

    def produce(self, process: Process, messages: Sequence[Outgoing], done: asyncio.Future[Any]) -> None:
        world = self.world
        grouped: dict[TopicPartition, list[Outgoing]] = {}
        for message in messages:
            grouped.setdefault(TopicPartition(message.topic, message.partition), []).append(message)
        fault = world.strike("publish", process)
        batches = _Batches(
            self, process, messages, done, len(grouped), refused=fault in {"ack_lost", "late", "part", "lost"}
        )
        for number, group in enumerate(grouped.values()):
            if fault == "lost" or (fault == "part" and number % 2):
                batches.over()
            elif fault == "late":
                world.scheduler.after(world.random.uniform(0.1, 8.0), batches.arrive, group)
                batches.over()
            else:
                world.after_a_moment(batches.arrive_in_time, group)


class _Batches:
    """What one call to publish has under way."""

    def __init__(
        self,
        broker: Broker,
        process: Process,
        messages: Sequence[Outgoing],
        done: asyncio.Future[Any],
        open_batches: int,
        *,
        refused: bool,
    ) -> None:
        self._broker, self._process, self._messages = broker, process, messages
        self._done, self._open, self._refused = done, open_batches, refused

    def arrive_in_time(self, group: Sequence[Outgoing]) -> None:
        self.arrive(group)
        self.over()

    def arrive(self, group: Sequence[Outgoing]) -> None:
        world = self._broker.world
        unheard = (
            self._broker.is_away or self._process.is_cut_off or (self._process.is_dead and world.random.random() < 0.5)
        )
        if unheard:
            self._refused = True
        else:
            for message in group:
                self._broker.append(message)

    def over(self) -> None:
        self._open -= 1
        if self._open:
            return
        world = self._broker.world
        if self._refused:
            failure = PublishFailed(self._messages[0].topic, len(self._messages), TimeoutError())
            delay = world.random.choice((0.01, 1.0, PUBLISH_TIMEOUT_S))
            world.scheduler.after(delay, self._done.get_loop().resolve, self._done, failure)
        else:
            world.after_a_moment(self._done.get_loop().resolve, self._done, None)


class Group:
    """A consumer group: who is in it, who has which partitions, and how far they say they are."""

    def __init__(self, broker: Broker, topics: Sequence[str]) -> None:
        self._broker, self._topics = broker, topics
        self.members: dict[str, Membership] = {}
        self.committed: dict[TopicPartition, int] = {}
        self._assignments: dict[str, list[TopicPartition]] = {}
        self._joined: dict[str, None] = {}
        self.generation = 0
        self.is_rebalancing = False

    def join(self, member: Membership) -> None:
        """Handle a request to join."""
        known = self.members.get(member.instance)
        self.members[member.instance] = member
        if known is not None and not self.is_rebalancing and member is not known:
            self.assign(member)  # a static member that came back in time
        else:
            self._rebalance(member)

    def leave(self, member: Membership) -> None:
        """Remove a member that was silent for too long."""
        if self.members.get(member.instance) is member:
            del self.members[member.instance]
            self._assignments.pop(member.instance, None)
            self._joined.pop(member.instance, None)
            self._rebalance(None)

    def _rebalance(self, joined: Membership | None) -> None:
        if not self.is_rebalancing:
            self.is_rebalancing = True
            self._joined = {}
            self.generation += 1
            world = self._broker.world
            world.scheduler.after(REBALANCE_TIMEOUT_S, self._expire, self.generation)
            for member in self.members.values():
                if member is not joined:
                    world.scheduler.after(world.random.uniform(0.0, HEARTBEAT_S), member.heartbeat)
        if joined is not None:
            self._joined[joined.instance] = None
        self._complete()

    def _expire(self, generation: int) -> None:
        if self.is_rebalancing and generation == self.generation:
            for instance in [name for name in self.members if name not in self._joined]:
                del self.members[instance]
                self._assignments.pop(instance, None)
            self._complete()

    def _complete(self) -> None:
        if any(instance not in self._joined for instance in self.members):
            return
        self.is_rebalancing = False
        names = sorted(self.members)
        self._assignments = {name: [] for name in names}
        if names:
            count = self._broker.world.partitions
            for topic in self._topics:
                for partition in range(count):  # ranges, as the assignor of that name gives them
                    owner = names[partition * len(names) // count]
                    self._assignments[owner].append(TopicPartition(topic, partition))
        for name in names:
            self.assign(self.members[name])

    def assign(self, member: Membership) -> None:
        world = self._broker.world
        world.after_a_moment(member.assigned, self.generation, self._assignments.get(member.instance, []))

    def awaits(self, member: Membership) -> bool:
        """Tell whether this member has joined already, and others have not."""
        return self.is_rebalancing and self.members.get(member.instance) is member and member.instance in self._joined

    def counts(self, member: Membership) -> bool:
        """Tell whether the group knows this member, and does not rebalance."""
        return not self.is_rebalancing and self.members.get(member.instance) is member


class Membership:
    """A consumer in a group, as `triptych.kernel.kafka.bus.Subscription` shows it."""

    def __init__(self, process: Process, topics: Sequence[str], group: str, listener: Any) -> None:
        self.process, self._listener = process, listener
        self._world = process.world
        self._broker = process.world.broker
        self.instance = process.instance
        self._group = self._broker.group(group, topics)
        self.reads_at: dict[TopicPartition, int] = {}
        self._visible: dict[TopicPartition, int] = {}
        self._waiter: asyncio.Future[Any] | None = None
        self._coordination = asyncio.Lock()
        self._is_closed = False
        self._generation = -1
        self._idle_polls = 0

    # --- what a loop sees -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._world.pause_briefly(self.process)
        if self._broker.is_away or self.process.is_cut_off:
            raise KafkaConnectionError("no broker answers")
        self.process.memberships.append(self)
        self._world.after_a_moment(self._ask_to_join)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._is_closed = True
        self.reads_at = {}
        if not self.process.is_dead:  # a static member does not say good-bye
            self._world.scheduler.after(SESSION_TIMEOUT_S, self._group.leave, self)

    @property
    def consumer(self) -> Membership:
        return self

    async def poll(self, timeout_ms: int, only: Sequence[TopicPartition] = ()) -> dict[TopicPartition, list[Record]]:
        if self._broker.is_away or self.process.is_cut_off:
            polled: dict[TopicPartition, list[Record]] = {}
        else:
            polled = self._take(only)
        is_idle = self._idle_polls >= IDLE_POLLS
        if not polled and timeout_ms > 0:
            wait_s = timeout_ms / 1000 if is_idle else min(timeout_ms / 1000, IDLE_POLL_S)
            self._waiter = waiter = self.process.loop.create_future()
            self._world.scheduler.after(wait_s, self._give_up, waiter)
            polled = await waiter or {}
        # Also when it has waited as long as it asked for: it wanted to be awake then, and does something now.
        if polled or is_idle:
            self._idle_polls = 0
        elif timeout_ms > 0:  # one that does not wait has something to do, and something to clear up after it
            self._idle_polls += 1
        return polled

    @staticmethod
    def positions() -> dict[TopicPartition, int]:
        """Do nothing: a simulated log holds only records."""
        return {}

    async def commit(self, offsets: dict[TopicPartition, int]) -> bool:
        await self._world.pause_briefly(self.process)
        is_heard = self._group.counts(self) and not self._broker.is_away and not self.process.is_cut_off
        if is_heard:
            self._group.committed.update(offsets)
        return is_heard

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition in self.reads_at:
            self.reads_at[partition] = offset
            self._visible.pop(partition, None)
            self._fetch(partition)

    def assignment(self) -> set[TopicPartition]:
        return set(self.reads_at)

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await self._world.pause_briefly(self.process)
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await self._world.pause_briefly(self.process)
        return {partition: len(self._broker.log(partition)) for partition in partitions}

    # --- what happens to it -----------------------------------------------------------------------

    @property
    def _is_reachable(self) -> bool:
        process = self.process
        return not (
            self._is_closed or process.is_dead or process.is_paused or process.is_cut_off or self._broker.is_away
        )

    def _fetch(self, partition: TopicPartition) -> None:
        """Ask for the records of a partition. Later records come without a request."""
        if self._broker.log(partition):
            self._world.after_a_moment(self.arrive, partition)

    def arrive(self, partition: TopicPartition) -> None:
        """Note that the records of a partition have been fetched."""
        if partition not in self.reads_at or process_is_deaf(self.process) or self._broker.is_away:
            return
        self._visible[partition] = len(self._broker.log(partition))
        if self._waiter is not None and (taken := self._take()):
            waiter, self._waiter = self._waiter, None
            self.process.loop.resolve(waiter, taken)

    def catch_up(self) -> None:
        """Note that the broker can be reached again."""
        for partition in self.reads_at:
            self._fetch(partition)
        self._world.scheduler.after(self._world.random.uniform(0.0, HEARTBEAT_S), self.heartbeat)

    def fall_silent(self) -> None:
        """Fall silent; the group waits for the session to time out."""
        self._world.scheduler.after(SESSION_TIMEOUT_S, self._time_out)

    def _time_out(self) -> None:
        if self._broker.is_away:
            self._world.scheduler.at(self._broker.away_until + SESSION_TIMEOUT_S, self._time_out)
        elif not self._is_reachable:
            self._group.leave(self)

    def heartbeat(self) -> None:
        """Learn the state of the group."""
        if not self._is_reachable:
            return
        if not self._group.counts(self):
            self.process.loop.create_task(self._rejoin())
        elif self._generation != self._group.generation:
            self._group.assign(self)

    def assigned(self, generation: int, partitions: list[TopicPartition]) -> None:
        if self._is_reachable and self._generation != generation == self._group.generation:
            self._generation = generation
            self.process.loop.create_task(self._take_up(generation, list(partitions)))

    async def _rejoin(self) -> None:
        async with self._coordination:
            if self._group.counts(self) or self._group.awaits(self):
                return
            if self.reads_at and self._listener is not None:
                await self._listener.on_partitions_revoked(set(self.reads_at))
            self.reads_at, self._visible = {}, {}
            self._world.after_a_moment(self._ask_to_join)

    def _ask_to_join(self) -> None:
        if self._is_reachable:
            self._group.join(self)
        elif not self._is_closed and not self.process.is_dead:
            self._world.scheduler.after(1.0, self._ask_to_join)

    async def _take_up(self, generation: int, partitions: list[TopicPartition]) -> None:
        async with self._coordination:
            if generation != self._group.generation or self._is_closed:
                return
            self.reads_at = {partition: self._group.committed.get(partition, 0) for partition in partitions}
            self._visible = {}
            for partition in partitions:
                self._fetch(partition)
            if self._listener is not None:
                await self._listener.on_partitions_assigned(set(partitions))
            self._idle_polls = 0
            if self._waiter is not None:  # a loop that was idle has something to look at now
                self._world.scheduler.after(IDLE_POLL_S, self._give_up, self._waiter)

    def _take(self, only: Sequence[TopicPartition] = ()) -> dict[TopicPartition, list[Record]]:
        taken: dict[TopicPartition, list[Record]] = {}
        if not self._visible:
            return taken
        left = self._world.batch_max_records
        for partition, position in self.reads_at.items():
            if only and partition not in only:
                continue
            end = min(self._visible.get(partition, 0), position + left)
            if end > position:
                taken[partition] = self._broker.log(partition)[position:end]
                self.reads_at[partition] = end
                left -= end - position
                if end == self._visible[partition]:
                    del self._visible[partition]
        return taken

    def _give_up(self, waiter: asyncio.Future[Any]) -> None:
        if self._waiter is waiter:
            self._waiter = None
            self.process.loop.resolve(waiter, None)


def process_is_deaf(process: Process) -> bool:
    """Tell whether nothing from the broker arrives."""
    return process.is_dead or process.is_cut_off


class Kafka:
    """One process's way to the broker, in place of `triptych.kernel.kafka.bus.Kafka`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def subscribe(
        self, topics: Sequence[str], group: str, listener: Any = None, *, one_owner: bool = False
    ) -> Membership:
        del one_owner  # the broker gives ranges, and all topics have as many partitions
        return Membership(self._process, topics, group, listener)

    def publisher(self) -> Publisher:
        return Publisher(self._process)

    async def describe(self, topics: Sequence[str]) -> ClusterTopics:
        world = self._process.world
        await world.pause_briefly(self._process)
        if world.broker.is_away or self._process.is_cut_off:
            raise KafkaConnectionError("no broker answers")
        return ClusterTopics(CLUSTER, dict.fromkeys(topics, KnownTopic("1", world.partitions)))


class Publisher:
    """A producer, in place of `triptych.kernel.kafka.bus.Publisher`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return None

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        if messages:
            done = self._process.loop.create_future()
            self._process.world.broker.produce(self._process, messages, done)
            await done
