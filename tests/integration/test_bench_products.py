"""The drivers of other products that need Python packages and Postgres alone: real packages, a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from triptych.embedded.servers import start_postgres
from triptych_bench.beside.driver import Hold
from triptych_bench.beside.products import chosen
from triptych_bench.beside.running import installed, make_databases, started
from triptych_bench.errors import NotDurableError, ProductError
from triptych_bench.stack import Owner

HOLD = Hold(in_flight=3, settle_s=0.0, window_s=0.0, generations=1)


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Postgres of the module's own, since the databases of the products have fixed names."""
    with start_postgres(tmp_path_factory.mktemp("postgres")) as own:
        yield own


@pytest.fixture
def owner(dsn: str) -> Owner:
    parts = urlsplit(dsn)
    assert parts.hostname
    assert parts.port
    assert parts.username
    return Owner(parts.hostname, parts.port, unquote(parts.password or ""), parts.username)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("dbos", {"bench_dbos_in_process": "dbos.workflow_status", "bench_dbos_other_process": "dbos.workflow_status"}),
        ("langgraph", {"bench_langgraph": "checkpoints"}),
    ],
)
def test_a_product_plays_the_runs_and_keeps_them_in_postgres(
    dsn: str, owner: Owner, tmp_path: Path, name: str, kept: dict[str, str]
) -> None:
    failures: list[ProductError] = []
    drivers = installed(chosen(name), print, failures.append)
    with started(drivers, owner, tmp_path, print, failures.append) as ready:
        assert failures == []
        (driver,) = ready
        for way in driver.card.ways:
            window = driver.hold(way, HOLD)
            assert window.steps == 5 * len(window.latencies_ms)
            assert len(window.latencies_ms) >= HOLD.in_flight
        for database, table in kept.items():
            with psycopg.connect(dsn, dbname=database) as connection:
                found = connection.execute(f"select count(*) from {table}").fetchone()  # noqa: S608 - names of ours
                assert found is not None
                assert found[0] >= HOLD.in_flight


def test_products_are_not_measured_on_a_database_that_forgets(dsn: str, owner: Owner) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("alter database postgres set synchronous_commit = off")
        with pytest.raises(NotDurableError, match="synchronous_commit = off"):
            asyncio.run(make_databases(owner, []))
        connection.execute("alter database postgres reset synchronous_commit")
    asyncio.run(make_databases(owner, []))
