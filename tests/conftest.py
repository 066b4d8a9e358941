"""A real broker and a real database for every test that asks; a prefix and a database of its own for each module.

TRIPTYCH_TEST_KAFKA and TRIPTYCH_TEST_POSTGRES (the owner's DSN) name running servers to use instead.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from hypothesis import HealthCheck, settings
from psycopg import sql

from triptych.embedded import Servers, start_servers
from triptych.kernel.postgres.migrate import PreparedDatabase, Schema, prepare

PARTITIONS = 2

CreateTopics = Callable[..., Awaitable[None]]
Eventually = Callable[..., Awaitable[None]]

# How long an example takes says more of what else the machine does than of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """A fixture whose end is cancelled is an error of its test, and of no other.

    pytest takes a CancelledError, which aiokafka lets out when its broker is gone, for an order to stop: it leaves
    the other fixtures as they are, and every test after that fails with "previous item was not torn down properly".
    """
    try:
        yield
    except asyncio.CancelledError as error:
        item.session._setupstate.teardown_exact(nextitem)
        raise RuntimeError("the end of a fixture was cancelled") from error


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Kafka and Postgres, started once for the whole run."""
    kafka, postgres = os.environ.get("TRIPTYCH_TEST_KAFKA"), os.environ.get("TRIPTYCH_TEST_POSTGRES")
    if kafka and postgres:
        yield Servers(kafka=kafka, owner_dsn=postgres)
    else:
        with start_servers(tmp_path_factory.mktemp("servers")) as started:
            yield started


@pytest.fixture(scope="module")
def prefix() -> str:
    """A topic prefix that no other module uses."""
    return f"t{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Database:
    """A database of the module's own."""

    owner_dsn: str
    prefix: str

    def prepare(self, migrations: dict[str, tuple[Path, ...]]) -> PreparedDatabase:
        """Prepare schemas, given as name and migration directories; gives the DSNs of their roles."""
        schemas = [Schema(name, "secret", directories) for name, directories in migrations.items()]
        return prepare(self.owner_dsn, self.prefix, schemas, "secret")


@pytest.fixture(scope="module")
def database(servers: Servers, prefix: str) -> Iterator[Database]:
    """A fresh database, dropped after the module together with its roles."""
    name = f"{prefix}_db"
    dsn = urlunsplit(urlsplit(servers.owner_dsn)._replace(path=f"/{name}"))
    yield Database(dsn, prefix)
    with psycopg.connect(servers.owner_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        for (role,) in connection.execute("select rolname from pg_roles where rolname like %s", [f"{name}\\_%"]):
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


@pytest.fixture(scope="module")
async def create_topics(servers: Servers, prefix: str) -> AsyncIterator[CreateTopics]:
    """`await create_topics("results", "calls.echo")` creates them under the module's prefix, and drops them after.

    That on which calls are withdrawn is created with the first, for every worker reads it.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    created: list[str] = []

    async def create(*nouns: str, partitions: int = PARTITIONS) -> None:
        more = [] if created or "withdrawals" in nouns else ["withdrawals"]
        names = [f"{prefix}.{noun}" for noun in (*nouns, *more)]
        await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
        created.extend(names)

    yield create
    await admin.delete_topics(created)
    await admin.close()


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition)` waits until the condition (sync or async) is true, up to a deadline."""

    async def wait(condition: Callable[[], object], *, within_s: float = 120.0) -> None:
        deadline = time.monotonic() + within_s
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            if time.monotonic() > deadline:
                pytest.fail(f"not so within {within_s} s: {condition}")
            await asyncio.sleep(0.02)

    return wait
