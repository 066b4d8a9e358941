"""An answer that Postgres refuses for its content costs itself alone: an error takes its place, and the worker goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from ends import Ends, call_request, open_ends
from parrot import SCHEMA, Gate, Parrot, running, settings_of

from triptych.kernel.postgres.database import connect
from triptych.kernel.worker import Connection, Finished, JobAttempt
from triptych.schemas import CallRequest, ErrorCode, Grant, Result

POISON = "poison-in-the-answer"
REFUSE_POISON = f"""
create function {SCHEMA}.refuse() returns trigger language plpgsql security definer as $$ begin
    if position('{{text}}'::bytea in coalesce(new.answer, new.request)) > 0 then
        raise exception 'not this' using errcode = '{{sqlstate}}';
    end if;
    return new;
end $$;
create trigger refuse before insert or update on {SCHEMA}.jobs for each row execute function {SCHEMA}.refuse();
"""
FORGIVE = f"drop function if exists {SCHEMA}.refuse cascade"


@pytest.fixture(scope="module")
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.echo", "results", "dead-letters")
    settings = settings_of(servers.kafka, database, prefix)
    async with (
        await connect(settings.postgres.get_secret_value(), "test") as pool,
        open_ends(settings, pool, "dead-letters") as ends,
    ):
        yield ends


@pytest.fixture
async def owner(database) -> AsyncIterator[asyncpg.Connection]:
    owner = await asyncpg.connect(database.owner_dsn)
    try:
        yield owner
    finally:
        await owner.execute(FORGIVE)
        await owner.close()


class Pedant:
    """Writes something in the commit of the answers that the database or its client refuses for one of them."""

    def __init__(self, value: Any, kind: str) -> None:
        self._value, self._kind = value, kind

    def applies_to(self, finished: Finished) -> bool:
        return True

    async def write(self, conn: Connection, finished: Sequence[Finished]) -> None:
        if any(POISON.encode() in one.encoded for one in finished):
            await conn.fetch(f"select $1::{self._kind}", self._value)


def poisoned_and_others() -> tuple[Any, list[Any]]:
    return call_request(arguments={"value": POISON}), [call_request() for _ in range(6)]


@pytest.mark.parametrize(
    ("sqlstate", "only_reads"), [("22021", True), ("23514", False), ("54000", True), ("P0001", False)]
)
async def test_an_answer_that_is_refused_becomes_an_error_and_the_others_are_stored(
    ends, owner, eventually, sqlstate, only_reads
):
    poisoned, others = poisoned_and_others()
    gate = Gate()
    parrot = Parrot(gate, only_reads=only_reads)
    async with running(ends, parrot) as process:
        await ends.ask(*others[:3], poisoned, *others[3:])
        await eventually(lambda: len(parrot.attempts) == 7)
        await owner.execute(REFUSE_POISON.format(text=POISON, sqlstate=sqlstate))
        gate.opened.set()
        answers = [await ends.answer_to(one) for one in (*others, poisoned)]
        assert not process.task.done()
        assert process.service.health.counters["answers_unstorable"] == 1
    assert [answer.result for answer in answers[:-1]] == [Result.ok("hello")] * 6
    assert answers[-1].result.error.code is ErrorCode.CONTRACT_VIOLATION
    assert answers[-1].worker == "one"
    assert len(parrot.attempts_of(poisoned)) == 1
    assert await ends.state(poisoned) == "published"


@pytest.mark.parametrize(
    ("value", "kind"),
    [("a\0b", "text"), ("\ud800", "text"), (2**80, "bigint"), ("x", "int")],
    ids=["NUL", "lone surrogate", "too large a number", "not a number"],
)
async def test_what_a_client_or_a_server_refuses_of_a_settlement_costs_one_answer(ends, eventually, value, kind):
    poisoned, others = poisoned_and_others()
    gate = Gate()
    parrot = Parrot(gate)
    async with running(ends, parrot, commit_hook=Pedant(value, kind)):
        await ends.ask(*others, poisoned)
        await eventually(lambda: len(parrot.attempts) == 7)
        gate.opened.set()
        answers = [await ends.answer_to(one) for one in (*others, poisoned)]
    assert [answer.result for answer in answers[:-1]] == [Result.ok("hello")] * 6
    assert answers[-1].result.error.code is ErrorCode.CONTRACT_VIOLATION


async def test_where_not_even_the_error_can_be_stored_it_is_a_dead_letter_and_nothing_waits(ends, owner, eventually):
    refused, other = call_request(), call_request()
    gate = Gate()
    async with running(ends, Parrot(gate)) as process:
        await ends.ask(refused)
        await gate.entered.wait()
        await owner.execute(REFUSE_POISON.format(text=refused.request_id, sqlstate="23514"))
        gate.opened.set()
        await ends.ask(other)
        assert (await ends.answer_to(other)).result == Result.ok("hello")
        await eventually(lambda: [one for one in ends.others if b'"unstorable"' in one.value])
        assert not process.task.done()
    (row,) = await ends.pool.fetch(
        "select code, published from dead_letters where id like '%' || $1", refused.request_id
    )
    assert tuple(row) == ("unstorable", True)
    await owner.execute(FORGIVE)


async def test_a_request_that_is_refused_before_its_answer_is_stored_with_it(ends, owner, eventually):
    """Both are slow, so both would be stored without their answers first."""
    first, slow = call_request(), call_request(principal="user:poison")
    innocent, gate = call_request(), Gate()

    async def wait_for_gate(request: CallRequest, attempt: JobAttempt) -> None:
        if request.request_id != first.request_id:
            await gate(request, attempt)

    await owner.execute(REFUSE_POISON.format(text="user:poison", sqlstate="23514"))
    parrot = Parrot(wait_for_gate, only_reads=True)
    async with running(ends, parrot) as process:
        await ends.ask(first)
        await ends.answer_to(first)
        await ends.ask(slow, innocent)

        async def is_stored() -> bool:
            return await ends.state(innocent) == "received"

        await eventually(is_stored)
        assert await ends.state(slow) is None
        gate.opened.set()
        answers = [(await ends.answer_to(one)).result for one in (innocent, slow)]
        assert not process.task.done()
    assert answers == [Result.ok("hello")] * 2
    assert len(parrot.attempts_of(slow)) == 1


async def test_a_start_that_cannot_be_noted_is_answered_as_not_begun(ends, owner):
    costly = call_request(grant=Grant(tokens=5))
    parrot = Parrot()
    await owner.execute(
        f"""
        create function {SCHEMA}.refuse() returns trigger language plpgsql security definer as
            $$ begin raise exception 'not this' using errcode = '23514'; end $$;
        create trigger refuse before update of started_at on {SCHEMA}.jobs for each row execute function {SCHEMA}.refuse();
        """
    )
    async with running(ends, parrot) as process:
        await ends.ask(costly)
        answer = await ends.answer_to(costly)
        assert not process.task.done()
    assert answer.result.error.code is ErrorCode.INTERNAL
    assert not parrot.attempts
