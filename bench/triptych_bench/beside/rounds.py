"""Rounds over all products: each once with each number of runs in flight, then all of them again.

All of them are up the whole time, and only one at a time has work. Consecutive rounds go in opposite directions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from triptych_bench.beside.driver import Driver, Hold, Way
from triptych_bench.beside.speeds import US, Row, Speed
from triptych_bench.cases import REVIEWS, Case, Review
from triptych_bench.errors import ProductError
from triptych_bench.figures import Floor, Window
from triptych_bench.floor import Ground
from triptych_bench.load import Load
from triptych_bench.rounds import Say, Schedule
from triptych_bench.stack import Stack

IN_FLIGHT = (1, 50, 200)
OUR_REVIEWS = tuple(review for review in reversed(REVIEWS) if review.tool == "echo")
_WARM_UP_IN_FLIGHT = 50

Keep = Callable[[Hold], Awaitable[Window]]
"""Keeps runs in flight, and returns what arrived in the window."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What was seen of all rows, the floor of each round, and the products that could not go on."""

    rounds: dict[Row, dict[int, list[Speed]]]
    floors: list[Floor]
    failures: list[ProductError]


async def compare(stack: Stack, drivers: Sequence[Driver], schedule: Schedule, say: Say) -> Compared:
    """Warm up, then measure the stack and the products, which have been started. Raises BenchError for the stack."""
    async with Load(stack) as load, Ground(stack) as ground:
        entrants = _ours(load) | {row: keep for driver in drivers for row, keep in _theirs(driver).items()}
        return await take_rounds(entrants, lambda: ground.measure(schedule.floor_s), schedule, say)


async def take_rounds(
    entrants: Mapping[Row, Keep], floor: Callable[[], Awaitable[Floor]], schedule: Schedule, say: Say
) -> Compared:
    """Measure each row once with each number of runs in flight, and the floor, and all of that for each round."""
    compared = Compared({row: {count: [] for count in schedule.in_flight} for row in entrants}, [], [])
    warm_up = Hold(_WARM_UP_IN_FLIGHT, 0, schedule.warm_up_s, 1)
    for row, keep in entrants.items():
        say(f"warming up: {row.title}, {row.way}")
        await _take(row, keep, warm_up, compared)
    for number in range(schedule.rounds):
        direction = 1 if number % 2 == 0 else -1
        compared.floors.append(await floor())
        for count in schedule.in_flight[::direction]:
            hold = Hold(count, schedule.settle_s, schedule.window_s, schedule.generations)
            for row in list(compared.rounds)[::direction]:
                say(f"round {number + 1} of {schedule.rounds}: {row.title}, {row.way}, {count} in flight")
                window = await _take(row, entrants[row], hold, compared)
                if window is not None:
                    compared.rounds[row][count].append(Speed.of(window))
    return compared


async def _take(row: Row, keep: Keep, hold: Hold, compared: Compared) -> Window | None:
    """Measure a row once. A product that fails loses all its rows, since its figures would be of something broken."""
    if row not in compared.rounds:
        return None
    try:
        return await keep(hold)
    except ProductError as failure:
        compared.failures.append(failure)
        for lost in [each for each in compared.rounds if each.product == row.product]:
            del compared.rounds[lost]
        return None


def _ours(load: Load) -> dict[Row, Keep]:
    def keep(review: Review) -> Keep:
        async def window(hold: Hold) -> Window:
            return await load.hold(
                Case(review, hold.in_flight),
                settle_s=hold.settle_s,
                window_s=hold.window_s,
                generations=hold.generations,
            )

        return window

    # Every tool of Triptych is a process of its own.
    return {Row(US, f"Triptych, {review.name}", Way.OTHER_PROCESS): keep(review) for review in OUR_REVIEWS}


def _theirs(driver: Driver) -> dict[Row, Keep]:
    def keep(way: Way) -> Keep:
        async def window(hold: Hold) -> Window:
            return await asyncio.to_thread(driver.hold, way, hold)

        return window

    title = f"{driver.card.title} {driver.version}"
    return {Row(driver.card.name, title, way): keep(way) for way in driver.card.ways}
