"""Requests that may be repeated are stored with their answers: fewer statements, and still nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import deadly
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from ends import Ends, call_request, inbound_of, open_ends
from parrot import CONFIG, SCHEMA, Gate, Parrot, ask_again, running, settings_of

from triptych.kernel.kafka.suspect_records import RecordsInFlight
from triptych.kernel.postgres.database import connect
from triptych.kernel.worker import intake, unpersisted
from triptych.kernel.worker.jobs import Jobs
from triptych.schemas import CallRequest, ErrorCode, Grant, Result

KEEP_STATES = f"""
create table {SCHEMA}.seen (id bigserial, request_id text, state text);
grant select on {SCHEMA}.seen to public;
create function {SCHEMA}.see() returns trigger language plpgsql security definer as
    $$ begin insert into {SCHEMA}.seen (request_id, state) values (new.request_id, new.state::text); return null; end $$;
create trigger see after insert or update on {SCHEMA}.jobs for each row execute function {SCHEMA}.see();
"""  # noqa: S608 - the schema is ours


@pytest.fixture(scope="module")
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.echo", "results")
    settings = settings_of(servers.kafka, database, prefix)
    owner = await asyncpg.connect(database.owner_dsn)
    await owner.execute(KEEP_STATES)
    await owner.close()
    async with await connect(settings.postgres.get_secret_value(), "test") as pool, open_ends(settings, pool) as ends:
        yield ends


async def states_of(ends: Ends, one: CallRequest) -> list[str]:
    """The states that the request's job went through."""
    return [
        row[0]
        for row in await ends.pool.fetch("select state from seen where request_id = $1 order by id", one.request_id)
    ]


async def committed(ends: Ends, partition: int) -> int:
    """The offset at which another process would begin."""
    settings = ends.settings
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, group_id=settings.topic(CONFIG.group))
    async with consumer:
        tp = TopicPartition(settings.topic(CONFIG.request_noun), partition)
        return await consumer.committed(tp) or 0


async def end_of(ends: Ends, partition: int) -> int:
    async with AIOKafkaConsumer(bootstrap_servers=ends.settings.kafka) as consumer:
        tp = TopicPartition(ends.settings.topic(CONFIG.request_noun), partition)
        return (await consumer.end_offsets([tp]))[tp]


async def begun(ends: Ends) -> None:
    """Wait until a process has its partitions: what was there before is stored first."""
    for partition in (0, 1):
        await ends.answer_to(await asked(ends, partition=partition))


async def asked(ends: Ends, **changes: Any) -> CallRequest:
    one = call_request(**changes)
    await ends.ask(one)
    return one


async def held(ends: Ends, parrot: Parrot, gate: Gate) -> CallRequest:
    """A request that is under way, behind a gate."""
    parrot.act = gate
    one = await asked(ends)
    await gate.entered.wait()
    return one


async def answered_meanwhile(ends: Ends, parrot: Parrot) -> list[CallRequest]:
    """What came after the one behind the gate, and is done."""
    parrot.act = None
    later = [await asked(ends) for _ in range(5)]
    for other in later:
        await ends.answer_to(other)
    return later


async def test_a_request_that_may_be_repeated_is_stored_with_its_answer(ends, eventually):
    async with running(ends, Parrot(only_reads=True)):
        await begun(ends)
        requests = [await asked(ends, partition=number % 2) for number in range(30)]
        for one in requests:
            answer = await ends.answer_to(one)
            assert answer.result == Result.ok("hello")

        async def all_published() -> bool:
            return all([await ends.state(one) == "published" for one in requests])

        await eventually(all_published)
    for one in requests:
        assert await states_of(ends, one) == ["published"], "one version of the row"
        assert len(ends.answers_to(one)) == 1


async def test_what_can_be_spent_is_stored_before_it_is_done(ends):
    async with running(ends, Parrot(only_reads=True)):
        await begun(ends)
        one = await asked(ends, grant=Grant(tokens=1))
        await ends.answer_to(one)
        assert (await states_of(ends, one))[:2] == ["received", "started"]


async def test_what_was_there_when_a_process_began_is_stored_before_it_is_done(ends):
    one = await asked(ends)
    async with running(ends, Parrot(only_reads=True)):
        await ends.answer_to(one)
        assert (await states_of(ends, one))[0] == "received"


async def test_a_request_that_is_repeated_after_its_answer_gets_the_same_answer(ends, eventually):
    async with running(ends, Parrot(only_reads=True)):
        await begun(ends)
        one = await asked(ends)
        await ends.answer_to(one)
        await ends.ask(one, one)
        await eventually(lambda: len(ends.answers_to(one)) >= 2)
    assert len({answer.to_bytes() for answer in ends.answers_to(one)}) == 1


async def test_one_that_takes_long_is_stored_meanwhile_and_holds_up_no_offset(ends, eventually):
    gate = Gate()
    parrot = Parrot(only_reads=True)
    async with running(ends, parrot) as process:
        await begun(ends)
        parrot.act = gate
        one = await asked(ends)

        async def stored() -> bool:
            return await ends.state(one) == "received"

        async def passed() -> bool:
            return await committed(ends, 1) == await end_of(ends, 1)

        await eventually(stored)
        await eventually(passed)
        await ask_again(ends, process, one, eventually)
        gate.opened.set()
        await ends.answer_to(one)
    assert len(parrot.attempts_of(one)) == 1
    assert len(ends.answers_to(one)) == 1


async def test_what_a_process_had_in_hand_and_in_no_table_is_read_again_by_the_next(ends, monkeypatch, eventually):
    monkeypatch.setattr(unpersisted, "OVERDUE_S", 3_600.0)
    gate, parrot = Gate(), Parrot(only_reads=True)
    async with running(ends, parrot) as doomed:
        await begun(ends)
        one = await held(ends, parrot, gate)
        later = await answered_meanwhile(ends, parrot)

        async def reached() -> bool:
            return await committed(ends, 1) == await end_of(ends, 1) - len(later) - 1

        await eventually(reached)
        assert await ends.state(one) is None
        await doomed.die()
    heir = Parrot(only_reads=True)
    async with running(ends, heir):
        assert (await ends.answer_to(one)).result == Result.ok("hello")
    assert len(ends.answers_to(one)) == 1
    assert not any(heir.attempts_of(other) for other in later), "their answers were in the table"


async def test_what_is_in_hand_and_in_no_table_is_read_by_whoever_gets_its_partition(ends, monkeypatch, eventually):
    monkeypatch.setattr(unpersisted, "OVERDUE_S", 3_600.0)
    revoke = intake.Intake.on_partitions_revoked

    async def revoke_slowly(process: intake.Intake[CallRequest], revoked: set[TopicPartition]) -> None:
        """So it is when another member takes its time: the poll that is under way ends before the group is whole."""
        await revoke(process, revoked)
        await asyncio.sleep(0.5)

    monkeypatch.setattr(intake.Intake, "on_partitions_revoked", revoke_slowly)
    gate, parrot, heir = Gate(), Parrot(only_reads=True), Parrot(only_reads=True)
    async with running(ends, parrot):
        await begun(ends)
        one = await held(ends, parrot, gate)
        await answered_meanwhile(ends, parrot)
        async with running(ends, heir, instance="two"):
            await eventually(lambda: bool(heir.attempts_of(one)))
            gate.opened.set()
            await ends.answer_to(one)


async def test_one_that_comes_again_while_it_is_under_way_is_not_done_twice(ends, monkeypatch, eventually):
    monkeypatch.setattr(unpersisted, "OVERDUE_S", 3_600.0)
    gate, parrot = Gate(), Parrot(only_reads=True)
    async with running(ends, parrot) as process:
        await begun(ends)
        one = await held(ends, parrot, gate)
        await ask_again(ends, process, one, eventually)
        gate.opened.set()
        await ends.answer_to(one)

        async def published() -> bool:
            return await ends.state(one) == "published"

        await eventually(published)
    assert len(parrot.attempts_of(one)) == 1
    assert len(ends.answers_to(one)) == 1


async def test_an_answer_to_a_job_of_somebody_else_changes_nothing(ends):
    one, other = call_request(), call_request()
    owner, late = Jobs(ends.pool, "owner", lease_ms=60_000), Jobs(ends.pool, "late", lease_ms=60_000)
    await owner.open()
    await late.open()
    await owner.take_in([inbound_of(one), inbound_of(other)], [])
    await owner.commit_answers([(inbound_of(one).key, b"first")], [], [], None)
    new = call_request()
    group = [(inbound_of(each), b"second") for each in (one, other, new)]
    for _ in range(2):  # said again, as after a lost answer
        committed = await late.commit_answers([], [], [], None, group)
        assert committed.accepted == {inbound_of(new).key}
        assert committed.known == {inbound_of(one).key: b"first"}
    keys = [inbound.key for inbound, _ in group]
    assert await late.stored_answers(keys) == {keys[0]: b"first", keys[2]: b"second"}
    assert await ends.state(other) == "received"
    await owner.commit_answers([(keys[1], b"{}")], [], [], None)
    others = [(inbound, b"third") for inbound, _ in group]
    assert (await late.commit_answers([], [], [], None, others)).accepted == frozenset(), "an answer stays as it is"
    assert (await owner.stored_answers(keys))[keys[2]] == b"second"


async def test_an_answer_stays_though_its_job_goes_to_somebody_who_has_made_one_meanwhile(ends):
    """The one that gave it sleeps, and publishes it when it wakes up: so nobody may publish another."""
    one = inbound_of(call_request())
    sleeper, heir = Jobs(ends.pool, "sleeper", lease_ms=60_000), Jobs(ends.pool, "heir", lease_ms=60_000)
    await sleeper.open()
    await heir.open()
    stored = await sleeper.commit_answers([], [], [], None, [(one, b"first")])
    assert stored.accepted == {one.key}
    heir.hold(one.key)  # it came again, and is under way in no table
    await Jobs(ends.pool, "sleeper", lease_ms=60_000).open()  # the lease of the first life is over
    assert one.key not in [job.key for job in await heir.take_over(1_000)], "it has its answer"
    refused = await heir.commit_answers([], [], [], None, [(one, b"second")])
    assert (refused.accepted, refused.known) == (frozenset(), {one.key: b"first"})
    refused = await heir.commit_answers([(one.key, b"second")], [], [], None)
    assert refused.accepted == frozenset(), "nor when it was stored meanwhile"
    taken = await heir.take_over_answers()
    assert taken is not None, "it goes on with that"
    assert (taken.commit, [each.answer for each in taken.answers]) == (stored.commit, [b"first"])
    await heir.commit_answers([], [], [], None, acknowledged=[taken.commit])


async def test_processes_that_give_a_record_away_alive_are_not_counted_as_its_dead(ends):
    jobs = Jobs(ends.pool, "counting", lease_ms=60_000)

    async def lives(life: str) -> int:
        (noted,) = await jobs.note([RecordsInFlight("counted", 0, 5, 5, life)])
        return noted.lives

    for life in "abcdef":
        assert await lives(life) == 1
        await jobs.give_away("counted", [0, 1], life)
    assert await lives("dies") == 1
    await jobs.give_away("counted", [0], "a")  # it is late, and the record is not its own any more
    assert await lives("heir") == 2
    await jobs.give_away("counted", [0], "heir")
    assert await lives("heir") == 2, "it has the partition again"
    assert await lives("last") == 3


async def test_a_record_goes_from_one_living_process_to_the_next_and_is_read(ends, monkeypatch, eventually):
    """Each of them writes down that it has the record, and loses the partition before the record is stored."""
    monkeypatch.setattr(unpersisted, "OVERDUE_S", 3_600.0)
    monkeypatch.setattr(ends, "settings", ends.settings.model_copy(update={"max_deaths": 1}))
    take_in, noted, gate = Jobs.take_in, asyncio.Event(), Gate()

    async def stand_still(jobs: Jobs, *what: Any) -> Any:
        if jobs._instance == "two":
            noted.set()
            await gate.opened.wait()
        return await take_in(jobs, *what)

    monkeypatch.setattr(Jobs, "take_in", stand_still)
    parrot, heir, last = (Parrot(only_reads=True) for _ in range(3))
    async with running(ends, parrot):
        await begun(ends)
        one = await held(ends, parrot, gate)
        async with running(ends, heir, instance="two"):
            await noted.wait()
            async with running(ends, last, instance="three"):
                await eventually(lambda: bool(last.attempts_of(one)))
                gate.opened.set()
                assert (await ends.answer_to(one)).result == Result.ok("hello")


async def test_one_that_kills_its_process_is_counted_and_answered_internal_and_its_partition_goes_on(ends):
    """Its first death is not counted, since nothing was stored; every later one is."""
    max_deliveries = 1
    environment = os.environ | {
        "TRIPTYCH_KAFKA": ends.settings.kafka,
        "TRIPTYCH_POSTGRES": ends.settings.postgres.get_secret_value(),
        "TRIPTYCH_TOPIC_PREFIX": ends.settings.topic_prefix,
        "TRIPTYCH_INSTANCE": "one",
        "PYTHONPATH": str(Path(deadly.__file__).parent),
    }
    command = (sys.executable, deadly.__file__, str(max_deliveries))
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    await begun(ends)
    poison = await asked(ends, arguments={"value": "die"})
    deaths, answered = 0, asyncio.create_task(ends.answer_to(poison, within_s=400))
    while not answered.done():
        ended = asyncio.create_task(process.wait())
        await asyncio.wait({ended, answered}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            assert ended.result() == deadly.KILLED
            deaths += 1
            process = await asyncio.create_subprocess_exec(*command, env=environment)
        ended.cancel()
    assert answered.result().result.error.code is ErrorCode.INTERNAL
    assert deaths == 1 + max_deliveries
    assert (await ends.answer_to(await asked(ends))).result == Result.ok("hello")
    process.terminate()
    await process.wait()
