"""A record that kills its reader: the process is gone in the middle of its own code, each time.

It draws from a seed of its own, so that the other faults of a schedule are drawn as they are without it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simulated.loop import ProcessLoop
from triptych.executor.intake import Executor
from triptych.kernel.kafka.bus import Outgoing
from triptych.schemas import topics

if TYPE_CHECKING:
    from simulated.world import World

MARK = b"deadly"
SHARE = 0.06
"""In so many schedules there is one."""


class Deadly:
    """Publishes the record, in some schedules."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._random = world, random.Random(f"deadly {seed}")  # noqa: S311
        self.is_there = self._random.random() < SHARE
        self.bodies: set[bytes] = set()
        """What was published, and is not to be read."""
        self.read = 0
        """How many processes have died of it."""

    def begin(self) -> None:
        """Let the record come at some moment."""
        if self.is_there:
            noun = self._random.choice((topics.TASKS, topics.RESULTS, topics.CONTROL))
            at_s, partition = self._random.uniform(0.2, 6.0), self._random.randrange(self._world.partitions)
            self._world.fault_count += 1
            self._world.faults[f"deadly record on {noun}"] += 1
            self._world.scheduler.after(at_s, self._publish, noun, partition)

    def _publish(self, noun: str, partition: int) -> None:
        body = MARK + noun.encode()
        self.bodies.add(body)
        headers = [("ce_tenant", b"acme")]
        self._world.broker.append(Outgoing(f"triptych.{noun}", partition, MARK, headers, body))

    def left(self) -> list[str]:
        """Return the record, until it is a dead letter."""
        if not self.is_there:
            return []
        buried = {row[5] for row in self._world.schemas["executor"].dead_letters.values()}
        return [] if self.bodies and self.bodies <= buried else [f"a deadly record, after {self.read} deaths"]


def install() -> None:
    """Let a process die of the record as soon as it reads it."""
    Executor.read = _dying(Executor.read)  # type: ignore[method-assign]


def _dying(read: Callable[..., Any]) -> Callable[..., Any]:
    def deadly_read(self: Any, inbound: Any) -> Any:
        if inbound.body.startswith(MARK):
            loop: Any = asyncio.get_running_loop()
            assert isinstance(loop, ProcessLoop)
            loop.die()
        return read(self, inbound)

    return deadly_read
