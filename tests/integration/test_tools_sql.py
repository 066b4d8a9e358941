"""Statements of a .sql file as operations, on a real database: types, limits, errors, and writes that happen once."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from ends import Ends, call_request, open_ends
from typer.testing import CliRunner

import triptych.tools
from triptych.commands.main import app
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import Effect, ErrorCode, Result, ResultStatus
from triptych.tools import Source, Tool
from triptych.tools.adapters.sql import tool as sql_tool
from triptych.tools.adapters.sql.execution import SQL
from triptych.tools.runtime.process import serve
from triptych.tools.testing import call
from triptych.tools.testing import running as running_tool

TOOL_MIGRATIONS = Path(triptych.tools.__file__).with_name("migrations") / "tool"
PASSWORD = "secret"  # noqa: S105 - of a role in a database that this module drops

SCHEMA = """
create table orders (
    id bigint generated always as identity primary key,
    tenant text not null,
    customer text not null,
    state text not null check (state in ('open', 'sent')),
    total numeric(12, 2) not null,
    placed_on date not null,
    notes jsonb,
    unique (customer, placed_on)
);
create table vault (secret text);
create type mood as enum ('calm', 'wild');
create domain posint as int check (value > 0);
create type place as (x int, y numeric, mood mood);
create type purse as (owner text, cash money);
create table oddities (
    id int, whole place, moods mood[], spans daterange[], during interval, day date, at timestamptz, bits varbit,
    letter "char", matrix int[], many datemultirange, count posint, data bytea, notes jsonb, clock timetz,
    narrow float4, wide float8, exact numeric
);
insert into orders (tenant, customer, state, total, placed_on, notes)
select 'test', 'C-' || n, 'open', n + 0.10, date '2026-01-01' + n, jsonb_build_object('n', n) from generate_series(1, 30) n;
insert into orders (tenant, customer, state, total, placed_on) values ('other', 'C-99', 'open', 1, '2026-01-01');
"""

STATEMENTS = """
-- name: find_orders
/*
description: Orders of this tenant, newest first.
effect: read
max_rows: 10
parameters:
  state: {enum: [open, sent], description: "What state they are in, ':all' is no state."}
  since: {default: null}
  total_from: {default: "0"}
*/
select id, customer, total, placed_on, notes, ':state' as "a:state" -- :nothing
from orders
where tenant = :call_tenant and state = :state and placed_on >= coalesce(:since::date, '-infinity')
  and total >= :total_from
order by placed_on desc;

-- name: place_order
/*
description: Place an order.
effect: write
repeat: ledger
parameters:
  customer: {maxLength: 20}
  total:
  placed_on:
  notes: {type: object, default: {}}
*/
insert into orders (tenant, customer, state, total, placed_on, notes)
values (:call_tenant, :customer, 'open', :total, :placed_on, :notes) returning id, total

-- name: mark_sent
/*
description: Say that an order was sent.
effect: write
repeat: natural_key
parameters: {id: {}}
*/
update orders set state = 'sent' where id = :id and tenant = :call_tenant

-- name: set_state
/*
description: Write any state.
effect: write
repeat: never
parameters: {id: {}, state: {}}
*/
update orders set state = :state where id = :id returning id

-- name: wait
/* {description: Takes its time., effect: read, timeout_ms: 200, parameters: {seconds: {}}} */
select pg_sleep(:seconds) is null as slept

-- name: linger
/* {description: Takes longer., effect: read, timeout_ms: 60000, parameters: {seconds: {}}} */
select pg_sleep(:seconds) is null as slept

-- name: sneaky
/* {description: Says that it reads., effect: read} */
delete from orders returning id

-- name: peek
/* {description: Reads what it may not., effect: read} */
select secret from vault
"""


@pytest.fixture(scope="module")
def own_role(database) -> str:
    """The DSN of the tool's own role, for its jobs."""
    return database.prepare({"tool_orders": (WORKER, TOOL_MIGRATIONS)}).services["tool_orders"]


@pytest.fixture(scope="module")
async def dsn(database, own_role, prefix) -> str:
    """The DSN of a role that may do what the statements do."""
    owner = await asyncpg.connect(database.owner_dsn)
    role = f"{prefix}_db_clerk"
    await owner.execute(SCHEMA)
    await owner.execute(SQL["create"])
    await owner.execute(f"create role {role} login password '{PASSWORD}'")
    await owner.execute(f"grant connect on database {prefix}_db to {role}")
    await owner.execute(f"grant select, insert, update, delete on orders, oddities, triptych_ledger to {role}")
    await owner.close()
    parts = urlsplit(database.owner_dsn)
    return urlunsplit(parts._replace(netloc=f"{role}:{PASSWORD}@{parts.hostname}:{parts.port}"))


@pytest.fixture
def source(dsn, tmp_path, monkeypatch) -> Source:
    monkeypatch.setenv("ORDERS_DSN", dsn)
    (tmp_path / "orders.sql").write_text(STATEMENTS, "utf-8")
    return Source("orders", {"dsn_env": "ORDERS_DSN", "files": ["orders.sql"]}, tmp_path)


@pytest.fixture
def orders(source) -> Tool:
    return sql_tool(source)


def error_of(result: Result) -> ErrorCode:
    assert result.error is not None, result
    return result.error.code


def test_contracts_come_from_the_file_and_from_the_database(orders) -> None:
    contract = orders.operations["orders.find_orders"].contract
    assert contract.effect is Effect.READ
    assert contract.arguments["properties"]["state"]["enum"] == ["open", "sent"]
    assert contract.arguments["properties"]["since"] == {"type": "string", "format": "date", "default": None}
    assert contract.arguments["required"] == ["state"]
    row = contract.result["properties"]["rows"]["items"]["properties"]
    assert row["id"] == {"type": ["integer", "null"]}
    assert {"type": "string", "format": "date"} in row["placed_on"]["anyOf"]
    assert "a:state" in row
    effects = {name.partition(".")[2]: one.contract.effect for name, one in orders.operations.items()}
    assert effects["place_order"] is effects["mark_sent"] is Effect.IDEMPOTENT
    assert effects["set_state"] is Effect.ONCE


async def test_a_read_gives_rows_up_to_its_limit_and_says_so(orders) -> None:
    first = await call(orders, "find_orders", {"state": "open"})
    assert first.status is ResultStatus.OK
    assert len(first.data["rows"]) == 10
    assert first.data["truncated"] is True
    last = await call(orders, "find_orders", {"state": "open", "since": "2026-01-30", "total_from": "30.10"})
    (row,) = last.data["rows"]
    assert row | {"id": 0} == {
        "id": 0, "customer": "C-30", "total": "30.10", "placed_on": "2026-01-31", "notes": {"n": 30}, "a:state": ":state",
    }  # fmt: skip
    assert last.data["truncated"] is False
    assert await call(orders, "find_orders", {"state": "sent", "since": "2030-01-01"}) == Result.empty()


async def test_a_value_is_never_part_of_a_statement(orders) -> None:
    hostile = "x'; drop table orders; --"
    placed = await call(orders, "place_order", {"customer": hostile, "total": "1", "placed_on": "2020-01-01"})
    assert placed.status is ResultStatus.ERROR, "longer than maxLength"
    placed = await call(orders, "place_order", {"customer": hostile[:20], "total": "1", "placed_on": "2020-01-01"})
    assert placed.status is ResultStatus.OK
    assert (await call(orders, "find_orders", {"state": "open"})).status is ResultStatus.OK


async def test_a_write_with_the_ledger_takes_effect_once_for_its_key(orders, dsn) -> None:
    arguments = {"customer": "C-once", "total": "7.50", "placed_on": "2020-01-02", "notes": {"a": [1]}}
    together = await asyncio.gather(
        *(call(orders, "place_order", arguments, idempotency_key="k-once") for _ in range(4))
    )
    assert len({str(one.data) for one in together}) == 1
    assert together[0].data["affected"] == 1
    assert together[0].data["rows"][0]["total"] == "7.50"
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("select count(*) from orders where customer = 'C-once'") == 1
    await connection.close()
    other = await call(orders, "place_order", arguments | {"total": "8"}, idempotency_key="k-once")
    assert error_of(other) is ErrorCode.CONFLICT


async def test_a_write_that_changes_nothing_is_empty(orders) -> None:
    assert await call(orders, "mark_sent", {"id": 1}) == Result.ok({"rows": [], "affected": 1})
    assert await call(orders, "mark_sent", {"id": 123_456}) == Result.empty()


@pytest.mark.parametrize(
    ("operation", "arguments", "code"),
    [
        ("place_order", {"customer": "C-2", "total": "1", "placed_on": "2026-01-03"}, ErrorCode.CONFLICT),
        ("place_order", {"customer": "C-2", "total": "1", "placed_on": "yesterday"}, ErrorCode.INVALID_ARGUMENTS),
        ("place_order", {"customer": "C-2", "total": "99999999999", "placed_on": "2020-02-02"}, ErrorCode.INVALID_ARGUMENTS),
        ("set_state", {"id": 2, "state": "lost"}, ErrorCode.INVALID_ARGUMENTS),
        ("mark_sent", {"id": 2**70}, ErrorCode.INVALID_ARGUMENTS),
        ("find_orders", {"state": "open", "tenant": "other"}, ErrorCode.INVALID_ARGUMENTS),
        ("wait", {"seconds": 30}, ErrorCode.TIMEOUT),
        ("sneaky", {}, ErrorCode.FORBIDDEN),
        ("peek", {}, ErrorCode.FORBIDDEN),
    ],
)  # fmt: skip
async def test_errors_have_a_code_and_nothing_was_done(orders, operation, arguments, code) -> None:
    result = await call(orders, operation, arguments)
    assert error_of(result) is code
    is_write = orders.operations[f"orders.{operation}"].contract.effect is not Effect.READ
    if is_write and "sqlstate" in result.error.details:
        assert result.error.details["effect"] == "none"


async def test_a_connection_that_is_cut_is_unavailable_and_the_next_call_opens_another(
    orders, database, prefix, eventually
) -> None:
    owner = await asyncpg.connect(database.owner_dsn)
    busy = "select pid from pg_stat_activity where usename = $1 and query ilike '%pg_sleep%' and state = 'active'"
    lingering = asyncio.create_task(call(orders, "linger", {"seconds": 20}))
    try:
        await eventually(lambda: owner.fetchval(busy, f"{prefix}_db_clerk"))
        await owner.execute("select pg_terminate_backend($1)", await owner.fetchval(busy, f"{prefix}_db_clerk"))
        assert error_of(await lingering) is ErrorCode.UNAVAILABLE
    finally:
        await owner.close()
    assert (await call(orders, "find_orders", {"state": "open"})).status is ResultStatus.OK


@asynccontextmanager
async def running(ends: Ends, tool: Tool) -> AsyncIterator[None]:
    log = configure_logging("warning", "console", instance="orders-1")
    service = Service("tool-orders", log, Health("orders", "orders-1"), asyncio.Event())
    task = asyncio.create_task(serve(service, ends.settings, tool, None))
    try:
        yield
    finally:
        service.stopping.set()
        await task


async def test_through_the_pipeline_a_repeated_write_is_answered_and_made_once(
    orders, servers, prefix, own_role, create_topics
) -> None:
    await create_topics("calls.orders", "results", "dead-letters")
    await create_topics("contracts", partitions=1)
    settings = ServiceSettings(kafka=servers.kafka, postgres=own_role, topic_prefix=prefix, shutdown_timeout_ms=4_000)
    async with await connect(own_role, "test") as pool, open_ends(settings, pool) as ends, running(ends, orders):
        contract = orders.operations["orders.place_order"].contract
        fields: dict[str, Any] = {
            "arguments": {"customer": "C-pipe", "total": "1", "placed_on": "2020-03-03"},
            "contract_hash": contract.hash,
            "timeout_ms": contract.timeout_ms,
        }
        one = call_request(contract.operation, **fields)
        await ends.ask(one, one)
        first = await ends.answer_to(one)
        assert first.result.status is ResultStatus.OK
        second = one.model_copy(update={"request_id": "again", "attempt": 2})
        await ends.ask(second)
        assert (await ends.answer_to(second)).result == first.result
    async with orders.lifespan(None) as its_pool:
        assert await its_pool.fetchval("select count(*) from orders where customer = 'C-pipe'") == 1


ODDITIES = """
-- name: keep
/*
description: Keep one of each type.
effect: write
repeat: ledger
parameters:
  {whole: , moods: , spans: , during: , day: , at: , bits: , letter: , many: , count: , data: , notes: , clock: ,
   matrix: {type: array, items: {type: array, items: {type: integer}}}, narrow: , wide: {type: [number, string]},
   exact: {type: string}}
*/
insert into oddities values (1, :whole, :moods, :spans, :during, :day, :at, :bits, :letter, :matrix, :many, :count,
    :data, :notes, :clock, :narrow, :wide, :exact)
returning whole, moods, spans, during, day, at, bits, letter, matrix, many, count, data, notes, clock, narrow, wide,
    exact

-- name: rows_of_rows
/* {description: Rows within rows., effect: read} */
select array_agg(oddities) as everything from oddities

-- name: endless
/* {description: Beyond the calendar., effect: read} */
select 'infinity'::timestamptz as never, '-infinity'::date as ever, '4713-01-01 BC'::date as long_ago,
    '12000-01-01'::timestamp as far, null::interval as nothing, 'infinity'::float8 as most
"""
KEPT: dict[str, Any] = {
    "whole": {"x": 1, "y": "2.50", "mood": "wild"},
    "moods": ["calm", None],
    "spans": [{"lower": "2026-01-01", "upper": "2026-02-01", "bounds": "[)"}],
    "during": "P1Y2M3DT4H5M6.5S",
    "day": "infinity",
    "at": "2026-01-01T12:00:00Z",
    "bits": "10101",
    "letter": "c",
    "matrix": [[1, 2], [3, 4]],
    "many": [{"lower": None, "upper": "2026-01-01", "bounds": "()"}],
    "count": 3,
    "data": "+//+Pg==",
    "notes": {"n": [1, {"lower": 2}]},
    "clock": "10:00:00+02:00",
    "narrow": 0.1,
    "wide": "-Infinity",
    "exact": "12345678901234567890.10",
}


@pytest.fixture
def oddities(source) -> Tool:
    source.path("orders.sql").write_text(ODDITIES, "utf-8")
    return sql_tool(source)


async def test_a_value_of_any_type_comes_out_as_it_went_in(oddities) -> None:
    for _ in range(2):  # what the ledger has kept of a row is the same as the row
        kept = await call(oddities, "keep", KEPT, idempotency_key="k-odd")
        assert kept == Result.ok({"rows": [KEPT], "affected": 1})
    (row,) = (await call(oddities, "rows_of_rows", {})).data["rows"]
    assert row == {"everything": [{"id": 1} | KEPT]}
    for wrong, told in (
        ({"whole": {"x": 1, "mood": "sad"}}, "mood"),
        ({"narrow": 1e300}, "arguments.narrow: float too large"),
        ({"count": 2**40}, "arguments.count: value out of int32 range"),
        ({"during": "soon"}, "arguments.during"),
    ):
        refused = await call(oddities, "keep", KEPT | wrong)
        assert error_of(refused) is ErrorCode.INVALID_ARGUMENTS
        assert told in refused.error.message


async def test_a_table_that_has_changed_loses_no_write(source, database) -> None:
    owner = await asyncpg.connect(database.owner_dsn)
    try:
        role = urlsplit(source.secret("ORDERS_DSN").get_secret_value()).username
        await owner.execute(f"create table shelves (id int, label text); grant all on shelves to {role}")
        source.path("orders.sql").write_text(
            "-- name: put\n/* {description: P., effect: write, repeat: never, parameters: {id: }} */\n"
            "insert into shelves (id) values (:id) returning *",
            "utf-8",
        )
        shelves = sql_tool(source)
        async with running_tool(shelves) as put:
            assert (await put("put", {"id": 1})).data["rows"] == [{"id": 1, "label": None}]
            await owner.execute("alter table shelves add column height int default 3")
            assert (await put("put", {"id": 2})).data["rows"] == [{"id": 2, "label": None}]
            await owner.execute("alter table shelves drop column label")
            gone = await put("put", {"id": 3})
        assert error_of(gone) is ErrorCode.CONTRACT_VIOLATION
        assert "label" in gone.error.message
        assert [row["id"] for row in await owner.fetch("select id from shelves order by id")] == [1, 2]
    finally:
        await owner.close()


async def test_what_lies_beyond_the_calendar_is_told(oddities) -> None:
    (row,) = (await call(oddities, "endless", {})).data["rows"]
    assert row == {
        "never": "infinity",
        "ever": "-infinity",
        "long_ago": "4713-01-01 BC",
        "far": "12000-01-01T00:00:00",
        "nothing": None,
        "most": "Infinity",
    }


def test_what_cannot_be_offered_is_refused_at_the_start(source, monkeypatch) -> None:
    for text, problem in {
        "select 1": "holds no statement",
        "-- name: a\nselect 1": "has no header",
        "-- name: a\n/* {description: A., effect: read} */ select :x": "uses :x",
        "-- name: a\n/* {description: A., effect: read, parameters: {x: }} */ select 1": "does not use",
        "-- name: a\n/* {description: A., effect: write} */ delete from orders": "repeat",
        "-- name: a\n/* {description: A., effect: read} */ select * from nowhere": "nowhere",
        "-- name: a\n/* {description: A., effect: read} */ select $1::int": "$1",
        "-- name: a\n/* {description: A., effect: read, parameters: {x: {type: string}}} */ select 1 where :x > 1": "used as int4",
        "-- name: a\n/* {description: A., effect: read} */ select 1 as b, 2 as b": "one name",
        "-- name: a\n/* {description: A., effect: read} */ select row(1, 2) as pair": "column pair is a row whose fields",
        "-- name: a\n/* {description: A., effect: read} */ select array[row(1, 2)] as pairs": "column pairs is",
        "-- name: a\n/* {description: A., effect: read} */ select null::purse as mine": "column mine.cash is a money",
        "-- name: a\n/* {description: A., effect: read, parameters: {p: }} */ select (:p::purse).owner": "parameter p.cash",
    }.items():
        source.path("orders.sql").write_text(text, "utf-8")
        with pytest.raises(ConfigurationError, match=problem.replace("$", r"\$")):
            sql_tool(source)
    monkeypatch.setenv("ORDERS_DSN", "postgresql://nobody@127.0.0.1:1/nowhere")
    source.path("orders.sql").write_text(STATEMENTS, "utf-8")
    with pytest.raises(ConfigurationError, match="ORDERS_DSN"):
        sql_tool(source)


def test_a_file_is_added_to_the_configuration_when_the_database_takes_all_of_it(source) -> None:
    config = source.path("triptych.toml")
    config.write_text("# mine\n", "utf-8")
    command = ["tools", "add", "sql", str(source.path("orders.sql")), "--name", "orders", "--dsn-env", "ORDERS_DSN"]
    where = ["--config", str(config), "--json"]
    done = CliRunner().invoke(app, [*command, *where])
    assert done.exit_code == 0, done.output
    assert [one["operation"] for one in json.loads(done.stdout)["contracts"]][:2] == [
        "orders.find_orders",
        "orders.place_order",
    ]
    written = tomllib.loads(config.read_text("utf-8"))["tools"]["orders"]
    assert written == {"adapter": "triptych.tools.adapters.sql:tool", "options": source.options}
    before = config.read_text("utf-8")
    source.path("orders.sql").write_text("-- name: a\n/* {description: A., effect: read} */ select * from nowhere")
    refused = CliRunner().invoke(app, [*command, "--replace", *where])
    assert isinstance(refused.exception, ConfigurationError)
    assert config.read_text("utf-8") == before
