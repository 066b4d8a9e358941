"""The pool takes a connection back without a task, and still cleans one that was left in the middle of something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from triptych.kernel.postgres.database import connect


@pytest.fixture
async def pool(servers) -> AsyncIterator[asyncpg.Pool]:
    async with await connect(servers.owner_dsn, "test", max_connections=1) as pool:
        yield pool


async def test_a_connection_is_free_again_without_a_turn_of_the_event_loop(pool: asyncpg.Pool) -> None:
    connection = await pool.acquire()
    assert pool.get_idle_size() == 0
    with pytest.raises(StopIteration):
        pool.release(connection).send(None)
    assert pool.get_idle_size() == 1
    assert await pool.fetchval("select 1") == 1


async def test_a_connection_whose_statement_was_cut_off_serves_the_next_one(pool: asyncpg.Pool) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pool.execute("select pg_sleep(60)")
    assert await pool.fetchval("select 1") == 1


async def test_an_open_transaction_does_not_reach_the_next_user(pool: asyncpg.Pool) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["message"]))
    async with pool.acquire() as connection:
        await connection.execute("begin")
    async with pool.acquire() as connection:
        assert not connection.is_in_transaction()
    assert len(told) == 1


async def test_a_lost_connection_is_replaced(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        connection.terminate()
    assert await pool.fetchval("select 1") == 1


async def test_a_connection_that_is_given_back_twice_is_free_once(pool: asyncpg.Pool) -> None:
    connection = await pool.acquire()
    await pool.release(connection)
    await pool.release(connection)
    assert pool.get_idle_size() == 1
