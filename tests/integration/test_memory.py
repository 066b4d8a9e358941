"""The long-term memory on a real database: by tenant and subject, with a source and an end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from typer.testing import CliRunner

import triptych.tools
from triptych.commands.main import app
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.models.embeddings import EmbeddingSettings, LocalEmbedder
from triptych.schemas import Effect, ErrorCode, Result, ResultStatus
from triptych.tools import Source
from triptych.tools.adapters.memory import tool as memory_tool
from triptych.tools.adapters.memory.store import FactOrigin, FactStore
from triptych.tools.testing import running

MIGRATIONS = Path(triptych.tools.__file__).with_name("migrations")
LOCAL = LocalEmbedder()
ANA = "customer:ana"
FACTS = {
    "favourite_language": "She writes and reads German; answer her in German.",
    "billing_day": "Invoices are paid on the third of the month.",
    "pet": "She has a dog whose name is Bello.",
}


@pytest.fixture(scope="module")
def schemas(database) -> dict[str, str]:
    words = (WORKER, MIGRATIONS / "memory")
    prepared = database.prepare({"tool_memory": (*words, MIGRATIONS / "memory_vector"), "tool_words": words})
    assert prepared.postponed == ()
    return prepared.services


@pytest.fixture(params=["tool_memory", "tool_words"])
async def pool(schemas, request: pytest.FixtureRequest) -> AsyncIterator[asyncpg.Pool]:
    async with await connect(schemas[request.param], "test") as pool:
        await pool.execute("delete from memories")
        yield pool


@pytest.fixture
async def memory(pool: asyncpg.Pool) -> FactStore:
    return await FactStore.open(pool, LOCAL)


def origin(source: str = "the customer's own words") -> FactOrigin:
    return FactOrigin(source, uuid4(), "note", "user:ana")


async def names(memory: FactStore, tenant: str = "acme", subject: str = ANA, **wanted: Any) -> list[str]:
    return [fact.name for fact in await memory.recall(tenant, subject, **wanted)]


async def test_what_is_remembered_comes_back_with_its_source(memory: FactStore) -> None:
    told = origin()
    await memory.remember("acme", ANA, FACTS, told, days=30)
    (fact,) = await memory.recall("acme", ANA, names=["pet"])
    assert (fact.value, fact.source, fact.run_id, fact.step) == (FACTS["pet"], told.source, told.run_id, "note")
    assert (fact.expires_at - fact.remembered_at).days == 30


async def test_a_question_finds_the_facts_that_speak_of_it_first(memory: FactStore) -> None:
    await memory.remember("acme", ANA, FACTS, origin(), days=30)
    assert (await names(memory, query="When are the invoices paid?"))[0] == "billing_day"
    assert len(await names(memory)) == 3
    assert len(await names(memory, limit=2)) == 2


async def test_a_question_finds_terms_inside_sentences_without_spaces(memory: FactStore) -> None:
    facts = {
        "支払日": "請求書は毎月末に銀行振込で支払われます。",
        "ペット": "犬を二匹飼っています。",
        "语言": "她用中文阅读发票",
    }
    await memory.remember("acme", ANA, facts, origin(), days=30)
    asked = {"銀行振込": "支払日", "犬": "ペット", "中文": "语言"}
    assert {query: (await names(memory, query=query))[0] for query in asked} == asked


async def test_a_question_finds_by_meaning_what_shares_no_word_with_it(schemas) -> None:
    async with await connect(schemas["tool_memory"], "test") as pool:
        memory = await FactStore.open(pool, LOCAL)
        await memory.remember("acme", ANA, FACTS, origin(), days=30)
        assert (await names(memory, query="puppy animal"))[0] == "pet"


async def test_a_later_value_takes_the_place_of_the_earlier(memory: FactStore) -> None:
    await memory.remember("acme", ANA, FACTS, origin(), days=30)
    await memory.remember("acme", ANA, {"pet": "Bello has died."}, origin("a call"), days=30)
    (fact,) = await memory.recall("acme", ANA, names=["pet"])
    assert (fact.value, fact.source) == ("Bello has died.", "a call")


async def test_nothing_crosses_tenants_or_subjects(memory: FactStore) -> None:
    await memory.remember("acme", ANA, FACTS, origin(), days=30)
    await memory.remember("globex", ANA, {"pet": "A cat."}, origin(), days=30)
    assert await names(memory, "globex") == ["pet"]
    assert await names(memory, "initech") == []
    assert await names(memory, subject="customer:bob") == []
    assert await memory.forget("globex", ANA) == 1
    assert len(await names(memory)) == 3


async def test_what_has_expired_is_neither_given_nor_kept(memory: FactStore, pool: asyncpg.Pool) -> None:
    await memory.remember("acme", ANA, FACTS, origin(), days=30)
    await pool.execute("update memories set expires_at = now() where name = 'pet'")
    assert "pet" not in await names(memory)
    await memory.remember("acme", "customer:bob", {"x": "y"}, origin(), days=30)
    assert await pool.fetchval("select count(*) from memories where name = 'pet'") == 0


async def test_a_subject_is_forgotten_whole_or_in_part(memory: FactStore, pool: asyncpg.Pool) -> None:
    await memory.remember("acme", ANA, FACTS, origin(), days=30)
    assert await memory.forget("acme", ANA, ["pet"]) == 1
    assert await memory.forget("acme", ANA) == 2
    assert await memory.forget("acme", ANA) == 0
    assert await pool.fetchval("select count(*) from memories") == 0
    if await pool.fetchval("select to_regclass('meanings') is not null"):
        assert await pool.fetchval("select count(*) from meanings") == 0


async def test_agents_use_it_as_a_tool_of_three_operations(pool: asyncpg.Pool) -> None:
    tool = memory_tool(Source("memory", {"retention_days": 10}))
    effects = {name: operation.contract.effect for name, operation in tool.operations.items()}
    assert effects == {
        "memory.remember": Effect.IDEMPOTENT,
        "memory.recall": Effect.READ,
        "memory.forget": Effect.IDEMPOTENT,
    }
    async with running(tool, settings=EmbeddingSettings(), pool=pool) as call:
        assert await call("recall", {"subject": ANA}) == Result.empty()
        told = {"subject": ANA, "facts": FACTS, "source": "ticket T-1", "days": 3_000}
        assert await call("remember", told) == Result.ok({"remembered": 3})
        found = await call("recall", {"subject": ANA, "query": "which language does she read?", "limit": 1})
        assert found.status is ResultStatus.OK
        (fact,) = found.data["facts"]
        assert (fact["name"], fact["source"]) == ("favourite_language", "ticket T-1")
        assert await pool.fetchval("select max(expires_at) < now() + interval '11 days' from memories")
        assert await call("forget", {"subject": ANA}) == Result.ok({"forgotten": 3})
        invented = await call("recall", {"subject": ANA, "tenant": "globex"})
        assert invented.error is not None
        assert invented.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_people_see_and_forget_what_is_known_of_a_subject(schemas, memory: FactStore, pool: asyncpg.Pool) -> None:
    await memory.remember("acme", ANA, FACTS, origin(), days=30)
    dsn = schemas[await pool.fetchval("select current_schema()")]

    async def said(*arguments: str) -> Any:
        command = ["memory", *arguments, "--tenant", "acme", "--postgres", dsn, "--json"]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    (subject,) = await said("ls")
    assert (subject["subject"], subject["facts"]) == (ANA, 3)
    assert [fact["name"] for fact in await said("ls", ANA)] == sorted(FACTS)
    assert (await said("forget", ANA))["forgotten"] == 3
    assert await said("ls") == []
