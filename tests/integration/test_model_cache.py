"""The cache of model answers: on a real database, with a model behind HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from triptych.commands.models import read
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import MODELS, WORKER, PreparedDatabase
from triptych.models import Memo, ModelClient, ModelFailure, ModelReply, ModelSettings
from triptych.schemas import Grant, Recall

GRANT = Grant(tokens=4_000, usd_micros=10_000)
FORM: dict[str, Any] = {"type": "object", "properties": {"category": {"type": "string"}}}
QUESTION = {"input": {"subject": "Refund", "body": "Please refund my invoice."}}


@pytest.fixture(scope="module")
def prepared(database) -> PreparedDatabase:
    return database.prepare({"critic": (WORKER, MODELS), "tool_model": (WORKER, MODELS)})


@pytest.fixture
async def pool(prepared: PreparedDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with await connect(prepared.services["tool_model"], "test") as pool:
        await pool.execute("delete from model_answers")
        yield pool


def client(url: str, pool: asyncpg.Pool, **changes: Any) -> ModelClient:
    prices = {"scripted-cheap": (0.5, 1.5), "scripted-strong": (3.0, 15.0)}
    fields = {"base_url": f"{url}/v1", "cheap": "scripted-cheap", "strong": "scripted-strong", "prices": prices}
    models = ModelClient(ModelSettings(**fields | changes))
    models.keep_answers_in(pool)
    return models


async def ask(
    models: ModelClient, tenant: str = "acme", recall: Recall = Recall.YES, tier: str = "cheap", **changes: Any
) -> ModelReply:
    memo = changes.pop("memo", Memo(tenant, recall))
    fields = {"payload": QUESTION, "output_schema": FORM, "grant": GRANT, "timeout_ms": 10_000, "memo": memo} | changes
    return await models.ask("classify", tier, **fields)


def is_cached(reply: ModelReply) -> bool:
    (call,) = reply.spend.model_calls
    assert call.cached is (reply.spend.tokens == 0)
    return call.cached


async def test_the_same_question_gets_the_same_answer_for_nothing(model_server: str, pool: asyncpg.Pool) -> None:
    async with client(model_server, pool) as models:
        first, second = await ask(models), await ask(models)
    assert not is_cached(first)
    assert is_cached(second)
    assert second.output == first.output
    (call,) = second.spend.model_calls
    assert (call.model, call.tier, second.spend.usd_micros) == ("scripted-cheap", "cheap", 0)


async def test_whatever_could_change_the_answer_makes_it_another_question(
    model_server: str, pool: asyncpg.Pool
) -> None:
    other: list[dict[str, Any]] = [
        {"tenant": "globex"},
        {"tier": "strong", "grant": Grant(tokens=4_000, usd_micros=100_000)},
        {"payload": {"input": {"subject": "Refund", "body": "Please refund my other invoice."}}},
        {"output_schema": {**FORM, "properties": {"category": {"type": "string"}, "urgency": {"type": "string"}}}},
        {"instructions": "Be brief."},
        {"constraints": ("At most one category.",)},
    ]
    async with client(model_server, pool) as models:
        await ask(models)
        for changed in other:
            assert not is_cached(await ask(models, **changed)), changed
            assert is_cached(await ask(models, **changed)), changed
    async with client(model_server, pool, cheap="scripted-cheap,scripted-strong") as more_models:
        assert not is_cached(await ask(more_models))


async def test_a_tenant_never_gets_what_another_was_told(model_server: str, pool: asyncpg.Pool) -> None:
    async with client(model_server, pool) as models:
        await ask(models, "acme")
        assert not is_cached(await ask(models, "globex"))
    tenants = await pool.fetch("select tenant, count(*) from model_answers group by 1 order by 1")
    assert [tuple(row) for row in tenants] == [("acme", 1), ("globex", 1)]


async def test_nothing_is_kept_or_given_where_the_request_forbids_it(model_server: str, pool: asyncpg.Pool) -> None:
    async with client(model_server, pool) as models:
        await ask(models, recall=Recall.NO)
        assert not is_cached(await ask(models))
        assert not is_cached(await ask(models, recall=Recall.NO))


async def test_an_answer_that_was_not_good_enough_is_replaced(model_server: str, pool: asyncpg.Pool) -> None:
    async with client(model_server, pool) as models:
        await ask(models)
        await pool.execute("""update model_answers set answer = '{"category": "wrong"}'""")
        assert (await ask(models)).output["category"] == "wrong"
        renewed = await ask(models, recall=Recall.RENEW)
        assert not is_cached(renewed)
        assert (await ask(models)).output == renewed.output


async def test_an_answer_expires_and_makes_room(model_server: str, pool: asyncpg.Pool) -> None:
    async with client(model_server, pool) as models:
        await ask(models)
        await pool.execute("update model_answers set expires_at = now() - interval '1 s'")
        await ask(models, tenant="globex")
        assert await pool.fetchval("select count(*) from model_answers where tenant = 'acme'") == 0
        assert not is_cached(await ask(models))
    async with client(model_server, pool, cache_ttl_s=0) as models:
        assert not is_cached(await ask(models))


async def test_a_failure_and_an_answer_not_worth_it_are_not_kept(model_server: str, pool: asyncpg.Pool) -> None:
    refused = {"input": {"subject": "Refund", "body": f"{time.monotonic_ns()} [[model:refuse]]"}}
    async with client(model_server, pool) as models:
        for _ in range(2):
            with pytest.raises(ModelFailure, match="refused to answer"):
                await ask(models, payload=refused)
        await ask(models, memo=Memo("acme", Recall.YES, lambda output: not output))
    assert await pool.fetchval("select count(*) from model_answers") == 0


def break_down(url: str) -> None:
    httpx.post(f"{url}/faults", json={"fault": "503"}).raise_for_status()


def is_still_broken(url: str) -> bool:
    armed = httpx.get(f"{url}/faults").json()
    httpx.delete(f"{url}/faults").raise_for_status()
    return bool(armed)


async def test_an_answer_that_the_cache_has_no_room_for_is_given_all_the_same(
    model_server: str, pool: asyncpg.Pool, database: Any
) -> None:
    owner = await asyncpg.connect(database.owner_dsn)
    await owner.execute(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin raise exception 'no room' using errcode = 'disk_full'; end $$;"
        "create trigger refuse before insert or update on tool_model.model_answers execute function refuse()"
    )
    async with client(model_server, pool) as models:
        replies = [await ask(models), await ask(models)]
    await owner.execute("drop function refuse cascade")
    await owner.close()
    assert not any(is_cached(reply) for reply in replies)


async def test_a_cached_answer_needs_no_model_at_all(model_server: str, pool: asyncpg.Pool) -> None:
    async with client(model_server, pool) as models:
        await ask(models)
        break_down(model_server)
        assert is_cached(await ask(models))
        assert is_still_broken(model_server)


async def test_what_was_kept_and_saved_is_told(
    model_server: str, pool: asyncpg.Pool, prepared: PreparedDatabase
) -> None:
    async with client(model_server, pool) as models:
        spent = (await ask(models)).spend
        for _ in range(3):
            await ask(models)
        await ask(models, tenant="globex")
    report = await read(prepared.operator, None)
    (kept,) = report.answers
    assert (kept.service, kept.kind, kept.tier, kept.model) == ("model", "classify", "cheap", "scripted-cheap")
    assert (report.kept, report.hits, report.hit_rate) == (2, 3, 0.6)
    assert report.saved_tokens == 3 * spent.tokens
    assert report.saved_usd == pytest.approx(3 * spent.usd_micros / 1_000_000)
    assert (await read(prepared.operator, "globex")).hits == 0
