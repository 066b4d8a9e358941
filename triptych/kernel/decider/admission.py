"""Admission control: which runs may begin and which wait. It is fair between tenants, and oldest first within one.

Pure bookkeeping of the partitions that this process owns, without I/O. Only a head of each queue is held in
memory, however long the queue is; the database holds the rest. A limit of active runs is divided among the
partitions, and each owner keeps to the shares of its own, so it holds across processes without a word between them.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

HEAD = 500
"""Memory holds at most so many runs of each queue."""
ANY = "*"
"""The name that means every tenant without a limit of its own."""


class AdmissionState(StrEnum):
    """What a run is to admission."""

    WAITING = "waiting"
    ACTIVE = "active"
    AWAY = "away"
    """Over, or with a person: it takes no room and does not wait for any."""


class LimitKey(NamedTuple):
    """The key by which limits count runs."""

    tenant: str
    playbook: str


class QueueKey(NamedTuple):
    """What runs wait for together. Runs with one key wait in one queue: the first in is the first to begin."""

    partition: int
    tenant: str
    playbook: str


class WaitingRun(NamedTuple):
    """A run in its queue."""

    queue: QueueKey
    since: datetime
    run_id: UUID


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How many runs may be active: in one process, for a tenant, and for a playbook."""

    active_runs: int
    tenants: Mapping[str, int] = field(default_factory=dict)
    playbooks: Mapping[str, int] = field(default_factory=dict)

    def of_tenant(self, tenant: str) -> int | None:
        """Return the limit of a tenant in all processes together, or None when it has none."""
        return self.tenants.get(tenant, self.tenants.get(ANY))

    def of_playbook(self, playbook: str) -> int | None:
        """Return the limit of a playbook in all processes together, or None when it has none."""
        return self.playbooks.get(playbook)


def share(limit: int, partition: int, partitions: int) -> int:
    """Return the share of a limit that a partition gets. The shares of all partitions add up to the limit."""
    return limit // partitions + (partition < limit % partitions)


@dataclass(slots=True)
class _Head:
    """The first runs of a queue, oldest first, and whether the database holds more."""

    known: dict[UUID, datetime] = field(default_factory=dict)
    has_more: bool = False

    @property
    def since(self) -> datetime:
        return next(iter(self.known.values()))


class AdmissionControl:
    """The room for active runs in one process, and the queues of runs that wait for it."""

    def __init__(self, limits: AdmissionLimits, partitions: int) -> None:
        self._limits, self._partitions = limits, partitions
        self._active: dict[UUID, QueueKey] = {}
        self._of_tenant: Counter[str] = Counter()
        self._tenant_at: Counter[tuple[int, str]] = Counter()
        self._playbook_at: Counter[tuple[int, str]] = Counter()
        self._beginning: set[UUID] = set()
        self._heads: dict[QueueKey, _Head] = {}
        self._is_behind = False

    @property
    def active(self) -> int:
        """How many runs take room."""
        return len(self._active)

    @property
    def has_queues(self) -> bool:
        """Whether any run waits."""
        return bool(self._heads)

    def load(self, active: Iterable[tuple[UUID, QueueKey]], waiting: Iterable[WaitingRun]) -> None:
        """Load what the database holds of the claimed partitions: at most `HEAD` runs of each queue, oldest first."""
        for run_id, queue in active:
            self.occupy(run_id, queue)
        self.fill((), waiting)

    def home(self, kind: LimitKey, partition: int) -> int:
        """Return the partition of a new run: the one where it came in, if that has a share of every limit."""
        limits = (self._limits.of_tenant(kind.tenant), self._limits.of_playbook(kind.playbook))
        sharing = min((limit for limit in limits if limit is not None), default=self._partitions)
        return partition if partition < sharing else partition % sharing

    def enter(self, run_id: UUID, queue: QueueKey, *, at_once: bool = False) -> bool:
        """Return whether a new run may begin now, and take its room. It overtakes no run that waits in its queue.

        A run that another run waits for may always begin (`at_once`). If it had to wait, and the runs that hold the
        room waited for runs like this one, no run would make progress.
        """
        if run_id in self._active:
            return True
        if not at_once and (self._is_behind or queue in self._heads or not self._has_room(queue, least=0)):
            return False
        self.occupy(run_id, queue)
        self._beginning.add(run_id)
        return True

    def take(self, limit: int) -> list[UUID]:
        """Choose at most `limit` runs to begin: each time the oldest of the tenant with the fewest active runs."""
        queues: dict[str, list[QueueKey]] = defaultdict(list)
        for queue, head in self._heads.items():
            if head.known and self._has_room(queue, least=1):
                queues[queue.tenant].append(queue)
        tenants = [(self._of_tenant[tenant], self._oldest(queues[tenant]), tenant) for tenant in queues]
        heapq.heapify(tenants)
        taken: list[UUID] = []
        while tenants and len(taken) < limit and len(self._active) < self._limits.active_runs:
            _, (_, queue), tenant = heapq.heappop(tenants)
            if self._can_begin(queue):  # another tenant may have taken the last room of its playbook since
                taken.append(self._begin_first(queue))
            queues[tenant] = [each for each in queues[tenant] if self._can_begin(each)]
            if queues[tenant]:
                heapq.heappush(tenants, (self._of_tenant[tenant], self._oldest(queues[tenant]), tenant))
        self._is_behind = bool(tenants)
        return taken

    def confirm(self, run_id: UUID) -> bool:
        """Note that an active run was committed. Return False when it takes no room yet."""
        self._beginning.discard(run_id)
        return run_id in self._active

    def occupy(self, run_id: UUID, queue: QueueKey) -> None:
        """Take room for a run even if none is free: it was active before, or a person told it to go on."""
        self._active[run_id] = queue
        self._count(queue, 1)

    def release(self, run_id: UUID) -> None:
        """Free the room of a run. This does nothing if the run holds none."""
        if (queue := self._active.pop(run_id, None)) is not None:
            self._count(queue, -1)

    def enqueue(self, waiting: WaitingRun) -> None:
        """Put a new run at the end of its queue."""
        head = self._heads.setdefault(waiting.queue, _Head())
        if not head.has_more and len(head.known) < HEAD:
            head.known[waiting.run_id] = waiting.since
        else:
            head.has_more = True

    def leave(self, run_id: UUID, queue: QueueKey) -> None:
        """Take a run out of its queue."""
        if (head := self._heads.get(queue)) is not None:
            head.known.pop(run_id, None)
            self._drop_if_empty(queue)

    def cancel_unconfirmed(self, but: Collection[UUID] = ()) -> None:
        """Give up runs that took room and are not in the batch. `but` these: their commit is not known yet."""
        for run_id in self._beginning.difference(but):
            self.give_up(run_id)

    def give_up(self, run_id: UUID) -> None:
        """Give up a run that took room and was not committed. A committed run keeps its room."""
        if run_id in self._beginning:
            self._beginning.remove(run_id)
            self.release(run_id)

    def short(self) -> list[QueueKey]:
        """Return queues with less than half a head in memory, while the database holds more."""
        return [queue for queue, head in self._heads.items() if head.has_more and len(head.known) < HEAD // 2]

    def fill(self, queues: Collection[QueueKey], waiting: Iterable[WaitingRun]) -> None:
        """Set the heads of these queues as the database holds them, at most `HEAD` runs of each, oldest first."""
        heads = {queue: _Head() for queue in queues}
        for queue, since, run_id in waiting:
            heads.setdefault(queue, _Head()).known[run_id] = since
        for queue, head in heads.items():
            head.has_more = len(head.known) >= HEAD
            self._heads[queue] = head
            self._drop_if_empty(queue)

    def _oldest(self, queues: Collection[QueueKey]) -> tuple[datetime, QueueKey]:
        return min((self._heads[queue].since, queue) for queue in queues)

    def _can_begin(self, queue: QueueKey) -> bool:
        return queue in self._heads and bool(self._heads[queue].known) and self._has_room(queue, least=1)

    def _begin_first(self, queue: QueueKey) -> UUID:
        run_id = next(iter(self._heads[queue].known))
        self.leave(run_id, queue)
        self.occupy(run_id, queue)
        self._beginning.add(run_id)
        return run_id

    def _has_room(self, queue: QueueKey, *, least: int) -> bool:
        """Return whether one more run of this queue may be active. A partition without a share gets `least`.

        `least` is 0 for a new run, since it belongs on another partition, and 1 for a run that has waited there since a
        limit was higher.
        """
        tenants, playbooks = self._limits.of_tenant(queue.tenant), self._limits.of_playbook(queue.playbook)
        return (
            len(self._active) < self._limits.active_runs
            and self._is_below(tenants, self._tenant_at[queue.partition, queue.tenant], queue, least)
            and self._is_below(playbooks, self._playbook_at[queue.partition, queue.playbook], queue, least)
        )

    def _is_below(self, limit: int | None, active: int, queue: QueueKey, least: int) -> bool:
        return limit is None or active < max(least, share(limit, queue.partition, self._partitions))

    def _count(self, queue: QueueKey, by: int) -> None:
        for counter, key in (
            (self._of_tenant, queue.tenant),
            (self._tenant_at, (queue.partition, queue.tenant)),
            (self._playbook_at, (queue.partition, queue.playbook)),
        ):
            counter[key] += by  # type: ignore[index]
            if not counter[key]:  # type: ignore[index]
                del counter[key]

    def _drop_if_empty(self, queue: QueueKey) -> None:
        head = self._heads[queue]
        if not head.known and not head.has_more:
            del self._heads[queue]
