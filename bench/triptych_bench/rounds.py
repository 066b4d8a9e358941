"""Rounds: everything of every stack once, then all of it again, so that a busy minute hits all alike.

Consecutive rounds go through the cases, and through the stacks, in opposite directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from triptych_bench.adapter import Adapter
from triptych_bench.cases import FANS, IN_FLIGHT, REVIEWS, WIDE, Case, Fan, Review, cases
from triptych_bench.figures import BranchCost, Floor, HttpCost, Sample, pipeline_ms, sample
from triptych_bench.floor import Ground
from triptych_bench.load import Load
from triptych_bench.processes import Processes
from triptych_bench.stack import Stack
from triptych_bench.storage import Storage

_WARM_UP_IN_FLIGHT = 200

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is measured, how often and for how long."""

    rounds: int
    generations: int
    """A window holds at least this many outcomes for each run in flight, since runs come and go in convoys."""
    warm_up_s: float
    settle_s: float
    window_s: float
    floor_s: float
    http_s: float
    """How long calls are made with each number of parallel calls."""
    fans: int
    """So often as many branches are made as the widest fan-out has."""
    in_flight: tuple[int, ...] = IN_FLIGHT

    @property
    def cases(self) -> tuple[Case, ...]:
        return cases(self.in_flight)

    @property
    def turns(self) -> int:
        """How often something of a stack is measured."""
        return self.rounds * (len(self.cases) + len(FANS))


FULL = Schedule(rounds=5, generations=2, warm_up_s=10, settle_s=1, window_s=5, floor_s=3, http_s=3, fans=3)
QUICK = Schedule(rounds=2, generations=1, warm_up_s=2, settle_s=0.3, window_s=1.2, floor_s=0.6, http_s=1.5, fans=1)


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was seen: the floor of each round, and for each stack each round of each case and fan-out."""

    floors: Sequence[Floor]
    http: Mapping[int, Sequence[HttpCost]]
    """Each round of calls over HTTP, by the number of parallel calls."""
    samples: Sequence[Mapping[Case, Sequence[Sample]]]
    fans: Sequence[Mapping[Fan, Sequence[BranchCost]]]


async def measure(stacks: Sequence[Stack], schedule: Schedule, say: Say) -> Measured:
    """Warm up, then measure. The floor is that under the last of the stacks. Raises BenchError."""
    floors: list[Floor] = []
    async with AsyncExitStack() as opened:
        beds = [
            _Bed(
                stack,
                await opened.enter_async_context(Load(stack)),
                await opened.enter_async_context(Storage(stack)),
                schedule,
            )
            for stack in stacks
        ]
        ground = await opened.enter_async_context(Ground(stacks[-1]))
        adapter = await opened.enter_async_context(Adapter(stacks[-1]))
        http: dict[int, list[HttpCost]] = {at_once: [] for at_once in adapter.at_once}
        for bed in beds:
            for review in REVIEWS:
                say(f"warming up: {review.tool}, {review.name}, {bed.name}")
                await bed.warm_up(review)
        for number in range(schedule.rounds):
            direction = 1 if number % 2 == 0 else -1
            floors.append(await ground.measure(schedule.floor_s))
            for at_once, costs in http.items():
                costs.append(await adapter.measure(at_once, schedule.http_s))
            for case in schedule.cases[::direction]:
                for bed in beds[::direction]:
                    say(f"round {number + 1} of {schedule.rounds}: {case.name}, {bed.name}")
                    await bed.measure(case)
            for fan in FANS[::direction]:
                for bed in beds[::direction]:
                    say(f"round {number + 1} of {schedule.rounds}: {fan.name}, {bed.name}")
                    await bed.fan_out(fan)
    return Measured(floors, http, [bed.samples for bed in beds], [bed.fans for bed in beds])


class _Bed:
    """A stack, ready to be measured, and what was measured of it."""

    def __init__(self, stack: Stack, load: Load, storage: Storage, schedule: Schedule) -> None:
        self.name = stack.tree.name
        self.samples: dict[Case, list[Sample]] = {case: [] for case in schedule.cases}
        self.fans: dict[Fan, list[BranchCost]] = {fan: [] for fan in FANS}
        self._load, self._storage = load, storage
        self._processes = Processes(stack.pids, stack.layout.logs)
        self._schedule = schedule

    async def warm_up(self, review: Review) -> None:
        case = Case(review, _WARM_UP_IN_FLIGHT)
        await self._load.hold(case, settle_s=0, window_s=self._schedule.warm_up_s, generations=1)

    async def measure(self, case: Case) -> None:
        """Processor time and messages are those of all runs of the round, by their number; the rest is the window's."""
        load, schedule = self._load, self._schedule
        messages, runs, steps = await load.messages(), load.runs, load.steps
        cpu_ms, written = self._processes.cpu_ms(), await self._storage.written()
        window = await load.hold(
            case, settle_s=schedule.settle_s, window_s=schedule.window_s, generations=schedule.generations
        )
        runs, steps = load.runs - runs, load.steps - steps
        cpu_ms = {name: (spent - cpu_ms[name]) / steps for name, spent in self._processes.cpu_ms().items()}
        written = (await self._storage.written()).since(written, steps)
        messages = await load.messages() - messages
        self.samples[case].append(sample(window, messages / runs, cpu_ms, self._processes.memory_mb(), written))

    async def fan_out(self, fan: Fan) -> None:
        """Play equally many branches of each width, with equally many under way."""
        branches = self._schedule.fans * WIDE.branches
        cpu_ms = self._processes.cpu_ms()
        span_s = await self._load.fan_out(fan, branches)
        spent_ms = {name: spent - cpu_ms[name] for name, spent in self._processes.cpu_ms().items()}
        self.fans[fan].append(BranchCost(span_s * 1000 / branches, pipeline_ms(spent_ms) / branches))
