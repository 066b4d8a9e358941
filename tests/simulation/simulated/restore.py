"""Postgres comes back with an older state: all tables as they were at some moment, while Kafka and the upstream go on.

It draws from a seed of its own, so that the other faults of a schedule are drawn as they are without it. Statements that
were on their way to the server before are lost with its connections.
"""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

from simulated.loop import EPOCH

if TYPE_CHECKING:
    from simulated.world import World

SHARE = 0.12
"""In so many schedules it happens."""
NEWER_EPOCHS = 1_000
"""A partition that is claimed from another server than before skips epochs, see the executor's function `claim`."""
_NO_TABLE = frozenset({"transaction", "waiting", "next_lease", "_clock", "restored_at_ms"})
_AGAIN_S = 0.05


class Restore:
    """Keeps a copy of the database, in some schedules, and puts it back later."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._random = world, random.Random(f"restore {seed}")  # noqa: S311
        self.is_there = self._random.random() < SHARE
        self.is_over = not self.is_there
        self.generation = 0
        """How often the server has come back; what was on its way to the one before is lost."""
        self._kept: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Let the copy be made at some moment, and be put back at another."""
        if self.is_there:
            self._world.fault_count += 1
            self._world.faults["restored"] += 1
            kept_at_s = self._random.uniform(0.3, 5.0)
            self._world.scheduler.after(kept_at_s, self._keep)
            self._world.scheduler.after(kept_at_s + self._random.uniform(0.5, 8.0), self._put_back)

    def _keep(self) -> None:
        schemas = self._world.schemas
        if any(tables.transaction is not None for tables in schemas.values()):
            self._world.scheduler.after(_AGAIN_S, self._keep)
            return
        self._world.note("database copied")
        self._kept = {name: self._copy(tables) for name, tables in schemas.items()}

    @staticmethod
    def _copy(tables: Any) -> dict[str, Any]:
        return {name: copy.deepcopy(table) for name, table in vars(tables).items() if name not in _NO_TABLE}

    def _put_back(self) -> None:
        world = self._world
        if not self._kept:
            world.scheduler.after(_AGAIN_S, self._put_back)
            return
        for process in world.processes:
            process.kill()
        world.note("database put back")
        self.generation += 1
        for name, tables in world.schemas.items():
            if tables.transaction is not None:
                tables.transaction.roll_back()
            tables.waiting.clear()
            vars(tables).update(self._kept[name])
            tables.restored_at_ms = int((EPOCH.timestamp() + world.scheduler.now) * 1000)
        for held in world.schemas["executor"].partitions.values():
            held[0] += NEWER_EPOCHS
        world.states.clear()
        world._cancelled.clear()  # its client's command may be lost: people answer for it again
        world.watch.is_restored = True
        world.over_at = None
        self.is_over = True
        world.look_whether_it_is_over()
