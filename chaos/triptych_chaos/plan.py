"""The plan: which faults strike what and when, drawn from a seed. Pure: the same seed gives the same plan.

Every kind is drawn once before any is drawn again, so that a short run sees all of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

SERVICES = ("executor", "planner", "critic", "kb", "helpdesk", "model", "inbox", "webhook")
UPSTREAMS = ("helpdesk-api", "model-server")
SERVERS = ("kafka", "postgres")
CALLED_BACK = "webhook"
"""The tool whose upstream calls back."""
CALLBACKS = "callbacks"
"""The address in front of the processes that are called back."""
MAX_PROCESSES = 3
LAST_START_S = 3.0
"""No fault starts so shortly before the end."""


class Kind(StrEnum):
    """What can be done to a stack."""

    KILL = "kill"
    """SIGKILL of one process."""
    PAUSE = "pause"
    """SIGSTOP for longer than its Kafka session, and mostly longer than its lease; then SIGCONT."""
    SCALE = "scale"
    """Another number of processes of a service."""
    CLOCK = "clock"
    """A worker starts again with a clock that is off by minutes."""
    CUT = "cut"
    """Open connections to a server are reset."""
    DELAY = "delay"
    """Bytes to and from a server arrive late."""
    STALL = "stall"
    """Bytes to and from a server do not arrive, and connections stay open."""
    KAFKA_RESTART = "kafka-restart"
    KAFKA_KILL = "kafka-kill"
    KAFKA_LOST = "kafka-lost"
    """The whole log is gone: a new cluster with empty topics."""
    POSTGRES_RESTART = "postgres-restart"
    POSTGRES_KILL = "postgres-kill"
    FULL_OUTBOX = "full-outbox"
    """A burst of tasks, and Kafka is suspended: what is committed cannot be published."""
    SLOW_COMMITS = "slow-commits"
    """Every flush of Postgres' write-ahead log takes longer, as on a slow disk."""
    STUTTER = "stutter"
    """A server is suspended and resumed, over and over."""
    CALLBACK_KILL = "callback-kill"
    """SIGKILL of every process of a tool while its upstream is about to call back."""


_WEIGHTS = {
    Kind.KILL: 30.0,
    Kind.PAUSE: 8.0,
    Kind.SCALE: 8.0,
    Kind.CLOCK: 4.0,
    Kind.CUT: 16.0,
    Kind.DELAY: 8.0,
    Kind.STALL: 3.0,
    Kind.KAFKA_RESTART: 1.5,
    Kind.KAFKA_KILL: 1.5,
    Kind.KAFKA_LOST: 1.0,
    Kind.POSTGRES_RESTART: 2.0,
    Kind.POSTGRES_KILL: 2.0,
    Kind.FULL_OUTBOX: 1.0,
    Kind.SLOW_COMMITS: 4.0,
    Kind.STUTTER: 3.0,
    Kind.CALLBACK_KILL: 3.0,
}
_RECOVERY_S = {
    Kind.KILL: 6.0,
    Kind.PAUSE: 6.0,
    Kind.SCALE: 10.0,
    Kind.CLOCK: 10.0,
    Kind.KAFKA_RESTART: 15.0,
    Kind.KAFKA_KILL: 15.0,
    Kind.KAFKA_LOST: 25.0,
    Kind.POSTGRES_RESTART: 15.0,
    Kind.POSTGRES_KILL: 15.0,
    Kind.FULL_OUTBOX: 10.0,
    Kind.CALLBACK_KILL: 10.0,
}
"""For so long after a fault nothing of the kind that excludes it strikes the same thing."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: at `at_s` seconds from the beginning, to `target`, for `seconds`."""

    number: int
    at_s: float
    kind: Kind
    target: str
    seconds: float = 0.0
    amount: float = 0.0
    """Processes for `scale`, seconds for `clock`, milliseconds for `delay` and `slow-commits`, a share for `cut`
    and `stutter`, tasks for `full-outbox`."""


@dataclass(slots=True)
class _Drawing:
    """What has been drawn so far leaves its mark: how many processes there are, and what is busy until when."""

    dice: random.Random
    processes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SERVICES, 1))
    busy_until_s: dict[str, float] = field(default_factory=dict)

    def is_free(self, name: str, at_s: float) -> bool:
        return self.busy_until_s.get(name, 0.0) <= at_s

    def draw(self, number: int, at_s: float, kind: Kind, ends_s: float) -> Fault | None:
        """Draw one fault of this kind, or None when no target is free."""
        target = self._target(kind, at_s)
        if target is None:
            return None
        seconds, amount = self._parameters(kind, target)
        if kind in (Kind.KAFKA_LOST, Kind.FULL_OUTBOX) and at_s + seconds + 10 > ends_s:
            return None
        if kind is Kind.SCALE:
            self.processes[target] = int(amount)
        if kind not in (Kind.CUT, Kind.DELAY):
            self.busy_until_s[target] = at_s + seconds + _RECOVERY_S.get(kind, 2.0)
        return Fault(number, round(at_s, 2), kind, target, seconds, amount)

    def _target(self, kind: Kind, at_s: float) -> str | None:
        match kind:
            case Kind.CUT | Kind.DELAY:
                return self.dice.choice(SERVERS)
            case Kind.KILL:
                names = [*self._units(), *UPSTREAMS]
            case Kind.PAUSE:
                names = self._units()
            case Kind.SCALE | Kind.CALLBACK_KILL:
                services = SERVICES if kind is Kind.SCALE else (CALLED_BACK,)
                names = [name for name in services if all(self.is_free(unit, at_s) for unit in self._units_of(name))]
            case Kind.CLOCK:
                names = [unit for unit in self._units() if not unit.startswith("executor")]
            case Kind.KAFKA_RESTART | Kind.KAFKA_KILL | Kind.KAFKA_LOST | Kind.FULL_OUTBOX:
                names = ["kafka"]
            case Kind.POSTGRES_RESTART | Kind.POSTGRES_KILL | Kind.SLOW_COMMITS:
                names = ["postgres"]
            case Kind.STALL:
                names = [*SERVERS, CALLBACKS]
            case Kind.STUTTER:
                names = list(SERVERS)
        free = [name for name in names if self.is_free(name, at_s)]
        return self.dice.choice(free) if free else None

    def _parameters(self, kind: Kind, target: str) -> tuple[float, float]:  # noqa: PLR0911 - one arm a kind
        """Draw how long the fault lasts, and its amount."""
        dice = self.dice
        match kind:
            case Kind.PAUSE:
                return round(dice.uniform(11.0, 20.0), 1), 0.0
            case Kind.SCALE:
                return 0.0, dice.choice([n for n in range(1, MAX_PROCESSES + 1) if n != self.processes[target]])
            case Kind.CLOCK:
                # A callback that was signed more than five minutes ago is refused, as it has to be.
                most_s = 240.0 if target.startswith(CALLED_BACK) else 600.0
                return 0.0, dice.choice([-1, 1]) * round(dice.uniform(60.0, most_s))
            case Kind.CUT:
                return 0.0, round(dice.uniform(0.2, 1.0), 2)
            case Kind.DELAY:
                return round(dice.uniform(3.0, 10.0), 1), round(dice.uniform(10.0, 300.0))
            case Kind.STALL:
                return round(dice.uniform(3.0, 14.0), 1), 0.0
            case Kind.FULL_OUTBOX:
                return round(dice.uniform(12.0, 20.0), 1), 150
            case Kind.SLOW_COMMITS:
                return round(dice.uniform(5.0, 20.0), 1), round(dice.uniform(20.0, 100.0))
            case Kind.STUTTER:
                return round(dice.uniform(5.0, 12.0), 1), round(dice.uniform(0.3, 0.8), 2)
            case _:
                return 0.0, 0.0

    def _units(self) -> list[str]:
        return [unit for service in SERVICES for unit in self._units_of(service)]

    def _units_of(self, service: str) -> list[str]:
        return [unit_name(service, index) for index in range(1, self.processes[service] + 1)]


def unit_name(service: str, index: int) -> str:
    """Return the supervisor's name of the index-th process (from 1) of a service."""
    return service if index == 1 else f"{service}-{index}"


def instance_name(unit: str) -> str:
    """Return the name that a process gives itself."""
    return unit if unit[-1].isdigit() else f"{unit}-1"


def plan(seed: int, seconds: float, interval_s: float, weights: Mapping[Kind, float] = _WEIGHTS) -> list[Fault]:
    """Draw all faults of a run of `seconds`, in order; one every `interval_s` on average."""
    dice = random.Random(seed)
    drawing = _Drawing(dice)
    first = list(weights)
    dice.shuffle(first)
    first.sort(key=lambda kind: _RECOVERY_S.get(kind, 0.0), reverse=True)  # what takes long has to begin early
    faults: list[Fault] = []
    at_s = min(5.0, seconds / 10)
    while at_s < seconds - LAST_START_S:
        candidates = [*first, *dice.choices(list(weights), list(weights.values()), k=20)]
        for kind in candidates:
            fault = drawing.draw(len(faults) + 1, at_s, kind, seconds)
            if fault is not None:
                faults.append(fault)
                if kind in first:
                    first.remove(kind)
                break
        at_s += min(3 * interval_s, max(0.2, dice.expovariate(1 / interval_s)))
    return faults
