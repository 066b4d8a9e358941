"""Installs and starts the chosen products beside a stack, and stops all that was started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import uvloop

from triptych_bench.beside.driver import Driver, Place
from triptych_bench.errors import NotDurableError, ProductError
from triptych_bench.stack import Owner

_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

Tell = Callable[[ProductError], None]


def installed(drivers: Sequence[Driver], say: Callable[[str], None], tell: Tell) -> list[Driver]:
    """Install products and return those that could be."""
    return [driver for driver in drivers if _tried(driver.install, f"installing {driver.card.title}", say, tell)]


@contextmanager
def started(
    drivers: Sequence[Driver], owner: Owner, data: Path, say: Callable[[str], None], tell: Tell
) -> Iterator[list[Driver]]:
    """Start products with the Postgres of an owner, give those that could be, and stop all at the end."""
    try:
        ready = []
        for driver in drivers:
            home = data / driver.card.name
            home.mkdir(parents=True)
            place = Place(home, owner.host, owner.port, owner.user, owner.password)
            uvloop.run(make_databases(owner, driver.card.databases))
            if _tried(lambda: driver.start(place), f"starting {driver.card.title}", say, tell):  # noqa: B023 - called in this turn
                ready.append(driver)
        yield ready
    finally:
        for driver in drivers:
            driver.stop()


async def make_databases(owner: Owner, names: Sequence[str]) -> None:
    """Make databases in a Postgres that keeps what it has confirmed. Raises NotDurableError if it does not."""
    connection = await asyncpg.connect(
        host=owner.host, port=owner.port, user=owner.user, password=owner.password, database="postgres"
    )
    try:
        for setting in _DURABLE:
            value = await connection.fetchval("select current_setting($1)", setting)
            if value != "on":
                raise NotDurableError(setting, value)
        for name in names:
            await connection.execute(f"create database {name}")
    finally:
        await connection.close()


def _tried(do: Callable[[], None], what: str, say: Callable[[str], None], tell: Tell) -> bool:
    say(what)
    try:
        do()
    except ProductError as failure:
        tell(failure)
        return False
    return True
