"""The worker loop on a real broker and a real database: nothing is lost, nothing is answered by two."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from ends import Ends, call_request, inbound_of, open_ends
from parrot import CONFIG, Gate, Parrot, ask_again, running, settings_of

from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.bus import Kafka
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.claim_check import Claim
from triptych.kernel.postgres.database import Queries, connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.worker import Connection, Finished, JobAttempt
from triptych.kernel.worker.jobs import Committed, InboundRequest, JobKey, Jobs, LeaseLostError, TakenOverAnswers
from triptych.schemas import CallAnswer, CallRequest, DeadLetter, ErrorCode, Grant, Result, Spend

REFUSE_ANSWERS = """
create sequence refusals;
create function refuse() returns trigger language plpgsql security definer as $$ begin
    perform nextval('public.refusals');
    raise exception 'not now' using errcode = '{sqlstate}';
end $$;
create trigger refuse before update of answer on tool_echo.jobs execute function refuse();
"""
"""A sequence moves although the statement is rolled back."""


@pytest.fixture(scope="module")
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.echo", "results", "dead-letters")
    settings = settings_of(servers.kafka, database, prefix)
    async with (
        await connect(settings.postgres.get_secret_value(), "test") as pool,
        open_ends(settings, pool, "dead-letters") as ends,
    ):
        yield ends


async def send_raw(ends: Ends, value: bytes | None, **headers: bytes) -> None:
    topic = ends.settings.topic(CONFIG.request_noun)
    await ends.producer.send_and_wait(topic, value, key=b"any", partition=0, headers=list(headers.items()))


def dead_letters(ends: Ends) -> list[DeadLetter]:
    """Return the dead letters without repeats: on a slow machine the lease renewer publishes one again."""
    by_id = {record.key: record for record in ends.others}
    return [DeadLetter.model_validate_json(record.value) for record in by_id.values()]


async def test_each_request_is_answered_once_on_the_partition_of_its_run(ends, eventually):
    requests = [call_request(partition=number % 2) for number in range(50)]
    async with running(ends, Parrot()):
        await ends.ask(*requests)
        await eventually(lambda: all(ends.answers_to(one) for one in requests))
    for one in requests:
        (answer,) = ends.answers_to(one)
        assert answer.result == Result.ok("hello")
        assert answer.worker == "one"
        assert answer.started_at <= answer.finished_at
        assert await ends.state(one) == "published"
    record = next(record for record in ends.answers if requests[0].request_id.encode() in record.value)
    assert record.partition == requests[0].partition
    assert record.key == str(requests[0].run_id).encode()
    assert cloudevents.event_id(record.headers) == f"{requests[0].request_id}:answer"


async def test_a_repeated_request_is_executed_once_and_its_answer_is_published_again(ends, eventually):
    one, parrot = call_request(), Parrot()
    async with running(ends, parrot):
        await ends.ask(one)
        await ends.answer_to(one)
        await ends.ask(one)
        await eventually(lambda: len(ends.answers_to(one)) == 2)
    first, second = ends.answers_to(one)
    assert first == second
    assert len(parrot.attempts_of(one)) == 1


async def test_a_request_that_is_repeated_while_it_runs_is_dropped(ends, eventually):
    one, gate = call_request(), Gate()
    parrot = Parrot(gate)
    async with running(ends, parrot) as process:
        await ends.ask(one)
        await gate.entered.wait()
        await ask_again(ends, process, one, eventually)
        gate.opened.set()
        await ends.answer_to(one)
    assert len(parrot.attempts_of(one)) == 1
    assert len(ends.answers_to(one)) == 1


async def test_records_that_cannot_be_read_become_dead_letters_and_do_not_stop_the_partition(ends, eventually):
    one = call_request(partition=0)
    async with running(ends, Parrot()):
        await send_raw(ends, b"not json")
        await send_raw(ends, b'{"request_id": 7}', ce_tenant=b"globex")
        await send_raw(ends, None)
        await send_raw(ends, b"{}", ce_dataref=b"claim:" + str(UUID(int=1)).encode() + b"/missing")
        await send_raw(ends, call_request(request_id="a\x00b").to_bytes())
        await ends.ask(one)
        await ends.answer_to(one)
        await eventually(lambda: len(dead_letters(ends)) == 5)
    codes = [letter.reason.code for letter in sorted(dead_letters(ends), key=lambda letter: letter.offset)]
    assert codes == ["not_json", "invalid_request", "empty_record", "claim_missing", "unstorable"]
    assert "globex" in {letter.tenant for letter in dead_letters(ends)}
    rows = await ends.pool.fetch('select value, published from dead_letters order by "offset"')
    assert rows[0]["value"] == b"not json"
    assert all(row["published"] for row in rows)


async def test_a_request_whose_deadline_has_passed_is_not_executed(ends):
    one, parrot = call_request(deadline_at=datetime.now(UTC) - timedelta(seconds=1)), Parrot()
    async with running(ends, parrot):
        await ends.ask(one)
        answer = await ends.answer_to(one)
    assert answer.result.error.code is ErrorCode.TIMEOUT
    assert not parrot.attempts_of(one)


async def test_an_attempt_ends_at_the_deadline_and_counts_as_its_whole_grant(ends):
    first, parrot, gate = call_request(), Parrot(), Gate()
    async with running(ends, parrot):
        await ends.ask(first)
        await ends.answer_to(first)  # the process has begun: the time of the next one is not spent on that
        parrot.act = gate
        one = call_request(deadline_at=datetime.now(UTC) + timedelta(seconds=5), grant=Grant(tokens=70, usd_micros=9))
        await ends.ask(one)
        answer = await ends.answer_to(one)
    assert gate.entered.is_set()
    assert answer.result.error.code is ErrorCode.TIMEOUT
    assert answer.spend == Spend(tokens=70, usd_micros=9)


async def test_an_exception_is_answered_as_internal_without_its_text(ends):
    async def fail(_request: CallRequest, _attempt: JobAttempt) -> None:
        raise ValueError("password=hunter2")

    one = call_request()
    async with running(ends, Parrot(fail)):
        await ends.ask(one)
        error = (await ends.answer_to(one)).result.error
    assert error.code is ErrorCode.INTERNAL
    assert "ValueError" in error.message
    assert "hunter2" not in error.message


async def test_an_answer_that_json_cannot_carry_is_told_in_its_place_and_stops_no_other(ends):
    class Odd(Parrot):
        async def execute(self, request: CallRequest, attempt: JobAttempt) -> CallAnswer:
            answer = await super().execute(request, attempt)
            odd = {
                "nan": {"a": [float("nan")]},
                "half": "\ud83d",
                "deep": json.loads("[" * 300 + "]" * 300),
                "long": 10**1_000,
            }
            said = odd.get(request.arguments["value"], "fine")
            return answer.model_copy(update={"result": Result.ok(said)})

    asked = [call_request(arguments={"value": value}) for value in ("nan", "half", "deep", "long", "fine")]
    async with running(ends, Odd()):
        await ends.ask(*asked)
        results = [(await ends.answer_to(one)).result for one in asked]
    assert results[-1] == Result.ok("fine")
    for result, told in zip(
        results, ("NaN is not a JSON number (at /result/data/a/0)", "half of", "deeper", "1,000 digits"), strict=False
    ):
        assert result.error.code is ErrorCode.CONTRACT_VIOLATION
        assert told in result.error.message


async def test_jobs_of_a_dead_process_are_taken_over_when_its_lease_expires(ends):
    requests = [call_request(partition=number % 2) for number in range(20)]
    gate, parrot = Gate(), Parrot()
    async with running(ends, Parrot(gate), instance="doomed") as doomed:
        await ends.ask(*requests)
        await gate.entered.wait()
        await doomed.die()
        async with running(ends, parrot):
            answers = [await ends.answer_to(one) for one in requests]
    assert all(answer.result == Result.ok("hello") for answer in answers)
    taken_over = [attempt for one in requests for attempt in parrot.attempts_of(one) if attempt.taken_over]
    assert taken_over
    assert all(attempt.deliveries == 2 for attempt in taken_over)


async def test_a_restarted_process_takes_up_its_own_jobs_without_waiting_for_the_lease(ends):
    one, gate = call_request(), Gate()
    patient = replace(CONFIG, lease_ms=600_000)
    async with running(ends, Parrot(gate), patient) as first:
        await ends.ask(one)
        await gate.entered.wait()
        await first.die()
        async with running(ends, Parrot(), patient):
            assert (await ends.answer_to(one)).result == Result.ok("hello")


async def test_an_answer_that_was_stored_but_not_published_is_published_by_the_next_process(ends, eventually):
    one = call_request()
    inbound = InboundRequest(
        one.run_id, one.request_id, one.tenant, one.partition, one.to_bytes(), None, one.deadline_at
    )
    jobs = Jobs(ends.pool, "one", lease_ms=60_000)
    await jobs.open()
    await jobs.take_in([inbound], [])
    stored = CallAnswer(request_id=one.request_id, run_id=one.run_id, tenant=one.tenant, result=Result.ok("stored"))
    assert (await jobs.commit_answers([(inbound.key, stored.to_bytes())], [], [], None)).accepted == {inbound.key}
    assert await ends.state(one) == "answered"
    parrot = Parrot()
    async with running(ends, parrot):
        assert await ends.answer_to(one) == stored

        async def acknowledged() -> bool:
            return await ends.state(one) == "published"

        await eventually(acknowledged)
    assert not parrot.attempts_of(one)


async def test_a_process_that_lost_its_lease_cannot_answer(ends):
    one = call_request()
    inbound = InboundRequest(
        one.run_id, one.request_id, one.tenant, one.partition, one.to_bytes(), None, one.deadline_at
    )
    zombie = Jobs(ends.pool, "zombie", lease_ms=1)
    await zombie.open()
    await zombie.take_in([inbound], [])
    heir = Jobs(ends.pool, "heir", lease_ms=60_000)
    await heir.open()
    taken: list[str] = []
    async with asyncio.timeout(60):
        while one.request_id not in taken:
            taken += [job.request_id for job in await heir.take_over(100)]
    refused = await zombie.commit_answers([(inbound.key, b"{}")], [], [], None)
    assert (refused.accepted, refused.commit) == (frozenset(), None)
    assert not await zombie.start(inbound.key)
    committed = await heir.commit_answers([(inbound.key, b"{}")], [], [], None)
    assert committed.accepted == {inbound.key}
    await acknowledge(heir, committed)
    await heir.close()


async def test_two_processes_cannot_have_one_name(ends):
    first, second = Jobs(ends.pool, "twin", lease_ms=60_000), Jobs(ends.pool, "twin", lease_ms=60_000)
    await first.open()
    await second.open()
    with pytest.raises(LeaseLostError, match="TRIPTYCH_INSTANCE"):
        await first.renew()
    await second.renew()


async def test_processes_that_begin_in_the_same_microsecond_have_leases_of_their_own(ends, database):
    lives = [Jobs(ends.pool, f"crowd-{number}", lease_ms=60_000) for number in range(20)]
    owner = await asyncpg.connect(database.owner_dsn)
    default = await owner.fetchval(
        "select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'tool_echo.leases'::regclass"
    )
    still = default.replace("clock_timestamp()", "'2026-11-30 12:00:00.000001Z'::timestamptz")
    assert still != default
    await owner.execute(f"alter table tool_echo.leases alter column id set default {still}")  # the clock stands
    try:
        await asyncio.gather(*(life.open() for life in lives))
    finally:
        await owner.execute(f"alter table tool_echo.leases alter column id set default {default}")
        await owner.close()
    assert len({life.lease for life in lives}) == 20
    for life in lives:
        await life.renew()
        await life.close()


async def test_a_lease_that_somebody_else_has_drawn_is_drawn_again(ends, database):
    owner = await asyncpg.connect(database.owner_dsn)
    default = await owner.fetchval(
        "select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'tool_echo.leases'::regclass"
    )
    await owner.execute("create sequence public.draws; grant usage on sequence public.draws to public")
    await owner.execute("alter table tool_echo.leases alter column id set default nextval('public.draws') / 2")
    lives = [Jobs(ends.pool, f"drawn-{number}", lease_ms=60_000) for number in range(3)]
    try:
        for life in lives:
            await life.open()
    finally:
        await owner.execute(f"alter table tool_echo.leases alter column id set default {default}")
        await owner.execute("drop sequence public.draws")
        await owner.close()
    assert [life.lease for life in lives] == [0, 1, 2]


async def test_a_statement_whose_outcome_is_unknown_may_be_said_again(ends):
    one = call_request()
    inbound = InboundRequest(
        one.run_id, one.request_id, one.tenant, one.partition, one.to_bytes(), None, one.deadline_at
    )
    jobs = Jobs(ends.pool, "forgetful", lease_ms=60_000)
    await jobs.open()
    assert (await jobs.take_in([inbound], [])).fresh == {inbound.key}
    committed = [await jobs.commit_answers([(inbound.key, b"{}")], [], [], None) for _ in range(2)]
    assert [each.accepted for each in committed] == [{inbound.key}] * 2
    assert await ends.state(one) == "answered"
    await acknowledge(jobs, *committed)
    assert await ends.state(one) == "published"
    await acknowledge(jobs, *committed)


async def test_jobs_that_are_being_taken_in_are_not_given_out_a_second_time_by_a_takeover(ends):
    jobs = Jobs(ends.pool, "busy", lease_ms=60_000)
    await jobs.open()
    for _ in range(20):
        requests = [call_request() for _ in range(50)]
        inbound_requests = [
            InboundRequest(one.run_id, one.request_id, one.tenant, one.partition, one.to_bytes(), None, one.deadline_at)
            for one in requests
        ]
        intake, taken = await asyncio.gather(jobs.take_in(inbound_requests, []), jobs.take_over(200))
        assert not intake.fresh & {job.key for job in taken}
        await acknowledge(jobs, await jobs.commit_answers([(key, b"{}") for key in intake.fresh], [], [], None))
    await jobs.close()


async def acknowledge(jobs: Jobs, *committed: Committed) -> None:
    """Say that Kafka has all answers of these commits."""
    commits = [each.commit for each in committed if each.commit is not None]
    await jobs.commit_answers([], [], [], None, acknowledged=commits)


async def taken_over_answers(jobs: Jobs, keys: Collection[JobKey]) -> list[TakenOverAnswers]:
    """Take over all commits of answers, also those that other tests have left; return those to these jobs."""
    taken = []
    while (one := await jobs.take_over_answers()) is not None:
        taken.append(one)
    return [one for one in taken if any(answer.key in keys for answer in one.answers)]


class LosesOneAnswer:
    """A pool whose next statement is committed, and whose connection breaks before the answer."""

    def __init__(self, pool: asyncpg.Pool, *, after: int = 0) -> None:
        self._pool, self._left = pool, after

    async def fetch(self, *arguments: object) -> list[asyncpg.Record]:
        rows = await self._pool.fetch(*arguments)
        self._left -= 1
        if self._left == -1:
            raise ConnectionResetError
        return rows

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)


async def test_a_job_that_was_taken_in_without_our_knowing_is_reclaimed(ends):
    one = call_request()
    inbound = InboundRequest(
        one.run_id, one.request_id, one.tenant, one.partition, one.to_bytes(), None, one.deadline_at
    )
    jobs = Jobs(LosesOneAnswer(ends.pool), "unsure", lease_ms=60_000)
    await jobs.open()
    with pytest.raises(ConnectionResetError):
        await jobs.take_in([inbound], [])
    assert not (await jobs.take_in([inbound], [])).fresh
    assert one.request_id in {job.request_id for job in await jobs.take_over(200)}
    assert one.request_id not in {job.request_id for job in await jobs.take_over(200)}
    await acknowledge(jobs, await jobs.commit_answers([(inbound.key, b"{}")], [], [], None))
    await jobs.close()


async def test_answers_whose_commit_took_effect_without_our_knowing_are_published(ends):
    requests = [inbound_of(call_request()) for _ in range(4)]
    answers = {one.key: b'{"of": "%s"}' % one.request_id.encode() for one in requests}
    stored_before, unpersisted = requests[:2], requests[2:]
    jobs = Jobs(LosesOneAnswer(ends.pool, after=1), "unaware", lease_ms=60_000)
    await jobs.open()
    await jobs.take_in(stored_before, [])
    with pytest.raises(ConnectionResetError):
        await jobs.commit_answers(
            [(one.key, answers[one.key]) for one in stored_before],
            [],
            [],
            None,
            [(one, answers[one.key]) for one in unpersisted],
        )
    (taken,) = await taken_over_answers(jobs, answers)
    assert {one.key: one.answer for one in taken.answers} == answers
    assert await taken_over_answers(jobs, answers) == [], "it knows of them now"
    await jobs.commit_answers([], [], [], None, acknowledged=[taken.commit])
    await jobs.close()


async def test_answers_of_a_commit_go_from_one_dead_process_to_one_living_process_and_no_zombie_undoes_that(ends):
    one = inbound_of(call_request())
    zombie, heir, late = (Jobs(ends.pool, name, lease_ms=60_000) for name in ("z", "heir", "late"))
    for life in (zombie, heir, late):
        await life.open()
    committed = await zombie.commit_answers([], [], [], None, [(one, b"first")])
    assert await taken_over_answers(heir, {one.key}) == [], "its process lives"
    await Jobs(ends.pool, "z", lease_ms=60_000).open()  # the lease of the first life is over
    (taken,) = await taken_over_answers(heir, {one.key})
    assert taken.commit == committed.commit
    assert await taken_over_answers(late, {one.key}) == [], "it is taken"
    await heir.close()
    (again,) = await taken_over_answers(late, {one.key})
    assert [(each.key, each.answer) for each in again.answers] == [(one.key, b"first")]
    await acknowledge(zombie, committed)  # it had reached Kafka all the same, so nobody need publish it
    assert await ends.pool.fetchval("select count(*) from outbox where stored_by = $1", zombie.lease) == 0
    await late.close()


async def test_what_a_process_of_the_version_before_has_left_behind_is_published(ends, eventually):
    """It has no row in the outbox, and the job itself says that its answer must be published."""
    one = call_request()
    jobs = Jobs(ends.pool, "before", lease_ms=60_000)
    await jobs.open()
    await jobs.take_in([inbound_of(one)], [])
    stored = CallAnswer(request_id=one.request_id, run_id=one.run_id, tenant=one.tenant, result=Result.ok("stored"))
    await ends.pool.execute(
        "update jobs set state = 'answered', answer = $2, answered_at = now() where request_id = $1",
        one.request_id,
        stored.to_bytes(),
    )
    await jobs.close()
    async with running(ends, Parrot()):
        assert await ends.answer_to(one) == stored

        async def marked() -> bool:
            return await ends.state(one) == "published"

        await eventually(marked)


async def test_a_loop_that_aiokafka_cancels_from_within_begins_again(ends):
    cancelled = asyncio.Event()

    class CancelsOnce(Kafka):
        """Its first subscription ends as aiokafka ends one whose broker is gone."""

        def subscribe(self, *arguments: Any) -> Any:
            subscription = super().subscribe(*arguments)
            if not cancelled.is_set():
                subscription.poll = self._cancelled
            return subscription

        @staticmethod
        async def _cancelled(_timeout_ms: int) -> None:
            cancelled.set()
            raise asyncio.CancelledError

    one = call_request()
    async with running(ends, Parrot(), kafka=CancelsOnce(ends.settings)):
        await ends.ask(one)
        await ends.answer_to(one)
    assert cancelled.is_set()


async def test_a_job_that_an_older_state_of_the_database_gives_to_a_living_process_is_executed(ends, eventually):
    one, parrot = call_request(), Parrot()
    async with running(ends, parrot):
        await ends.ask(one)
        await ends.answer_to(one)

        async def published() -> bool:
            return await ends.state(one) == "published"

        await eventually(published)
        # As a copy has it that was taken before the answer: the lease is that of the process, which knows of no job.
        await ends.pool.execute(
            "update jobs set state = 'received', answer = null where request_id = $1", one.request_id
        )
        await eventually(published)
    assert len(parrot.attempts_of(one)) == 2


async def test_a_process_ends_whose_lease_the_database_has_forgotten(ends):
    jobs = Jobs(ends.pool, "forgotten", lease_ms=60_000)
    await jobs.open()
    await ends.pool.execute("delete from leases where instance = 'forgotten'")
    other = Jobs(ends.pool, "other", lease_ms=60_000)
    await other.open()
    assert other.lease > jobs.lease, "a database that has gone back must not grant a lease again"
    with pytest.raises(LeaseLostError):
        await jobs.renew()
    await other.close()


async def test_a_job_that_kills_its_process_is_answered_internal_and_innocents_are_not(ends):
    deadly, innocent = call_request(arguments={"value": "deadly"}), call_request()
    config, deaths = replace(CONFIG, max_deliveries=3, concurrency=4), 0
    await ends.ask(deadly, innocent)
    while not ends.answers_to(deadly):
        died = asyncio.Event()

        async def act(request: CallRequest, _attempt: JobAttempt, died: asyncio.Event = died) -> None:
            if request.request_id == deadly.request_id:
                died.set()
            await asyncio.Event().wait() if died.is_set() else None

        async with running(ends, Parrot(act), config) as process:
            answered = asyncio.create_task(ends.answer_to(deadly))
            died_first = asyncio.create_task(died.wait())
            await asyncio.wait({answered, died_first}, return_when=asyncio.FIRST_COMPLETED)
            if died.is_set():
                deaths += 1
                await process.die()
            answered.cancel()
            died_first.cancel()
    async with running(ends, Parrot(), config):
        assert (await ends.answer_to(innocent)).result == Result.ok("hello")
    assert ends.answers_to(deadly)[0].result.error.code is ErrorCode.INTERNAL
    assert deaths == 3


async def test_a_costly_attempt_that_died_is_not_repeated_and_counts_as_its_whole_grant(ends):
    one, gate, parrot = call_request(grant=Grant(tokens=500, usd_micros=30)), Gate(), Parrot()
    async with running(ends, Parrot(gate)) as first:
        await ends.ask(one)
        await gate.entered.wait()
        await first.die()
        async with running(ends, parrot):
            answer = await ends.answer_to(one)
    assert answer.result.error.code is ErrorCode.UNAVAILABLE
    assert answer.spend == Spend(tokens=500, usd_micros=30)
    assert not parrot.attempts_of(one)


@pytest.mark.parametrize("sqlstate", ["53100", "53300"], ids=["disk full", "too many connections"])
async def test_an_answer_that_the_database_has_no_room_for_is_kept_until_it_has(ends, database, eventually, sqlstate):
    one, gate = call_request(grant=Grant(tokens=70, usd_micros=9)), Gate()
    parrot = Parrot(gate)
    owner = await asyncpg.connect(database.owner_dsn)
    async with running(ends, parrot):
        await ends.ask(one)
        await gate.entered.wait()
        await owner.execute(REFUSE_ANSWERS.format(sqlstate=sqlstate))
        gate.opened.set()
        await eventually(lambda: owner.fetchval("select is_called from refusals"))
        await owner.execute("drop function refuse cascade; drop sequence refusals")
        answer = await ends.answer_to(one)
    await owner.close()
    assert answer.result == Result.ok("hello")
    assert len(parrot.attempts_of(one)) == 1


async def test_at_the_end_work_under_way_is_finished_and_the_rest_handed_back(ends, eventually):
    requests, gate = [call_request() for _ in range(30)], Gate()
    parrot = Parrot(gate)
    async with running(ends, parrot, replace(CONFIG, lease_ms=600_000)) as process:
        await ends.ask(*requests)

        async def all_stored() -> bool:
            ids = [one.request_id for one in requests]
            return await ends.pool.fetchval("select count(*) = 30 from jobs where request_id = any($1)", ids)

        await eventually(all_stored)
        await eventually(lambda: len(parrot.attempts) == CONFIG.concurrency)
        process.service.stopping.set()
        gate.opened.set()
    finished = [one for one in requests if ends.answers_to(one) or await ends.state(one) == "published"]
    assert len(finished) >= CONFIG.concurrency
    other = Parrot()
    async with running(ends, other):
        for one in requests:
            await ends.answer_to(one)
    assert all(attempt.deliveries == 1 for _, attempt in other.attempts)


async def test_more_than_the_waiting_limit_is_left_in_kafka(ends, eventually):
    requests, gate = [call_request(partition=0) for _ in range(200)], Gate()
    narrow = replace(CONFIG, concurrency=2, waiting_max=10)
    small_batches = replace(ends, settings=ends.settings.model_copy(update={"batch_max_records": 5}))
    async with running(small_batches, Parrot(gate), narrow):
        await ends.ask(*requests)
        await gate.entered.wait()
        ids = [one.request_id for one in requests]

        async def stored() -> int:
            return await ends.pool.fetchval("select count(*) from jobs where request_id = any($1)", ids)

        async def limit_reached() -> bool:
            return await stored() >= narrow.waiting_max

        await eventually(limit_reached)
        assert await stored() <= narrow.waiting_max + narrow.concurrency + 5
        gate.opened.set()
        await eventually(lambda: all(ends.answers_to(one) for one in requests))


async def test_what_the_worker_writes_is_in_the_commit_of_its_answers(ends):
    seen: list[str] = []

    class States:
        def applies_to(self, finished: Finished) -> bool:
            return True

        async def write(self, conn: Connection, finished: list[Finished]) -> None:
            states = await conn.fetch(
                "select state from jobs where request_id = any($1)", [one.request.request_id for one in finished]
            )
            seen.extend(row["state"] for row in states)

    one = call_request()
    async with running(ends, Parrot(), commit_hook=States()):
        await ends.ask(one)
        await ends.answer_to(one)
    assert seen == ["published"]


async def test_a_big_request_and_a_big_answer_travel_by_claim_check(ends, eventually):
    big = "x" * 5_000
    one = call_request(arguments={"value": big})
    claim = Claim(one.run_id, one.tenant, one.to_bytes())
    async with ends.pool.acquire() as conn:
        await claim_check.store(conn, [claim])
    headers = cloudevents.binary_headers(
        event_id=one.request_id, event_type="triptych.call", source="/test", tenant="acme", dataref=claim.dataref
    )

    def claimed() -> list[object]:
        return [record for record in ends.answers if record.key == str(one.run_id).encode()]

    async with running(ends, Parrot()):
        topic = ends.settings.topic(CONFIG.request_noun)
        await ends.producer.send_and_wait(topic, b"{}", partition=0, headers=headers)
        await eventually(claimed)
    (record,) = claimed()
    assert record.value == b"{}"
    resolved = await claim_check.resolve(ends.pool, [record])
    answer = CallAnswer.model_validate_json(claim_check.body(record, resolved))
    assert answer.result == Result.ok(big)


async def test_a_stored_body_is_read_by_its_reference_alone_and_only_if_it_is_what_the_reference_says(ends):
    one, claim = call_request(), Claim(UUID(int=7), "acme", b"{}")
    headers = [(cloudevents.DATAREF, claim.dataref.encode())]
    record = SimpleNamespace(headers=headers, value=b"{}")
    async with ends.pool.acquire() as conn:
        await claim_check.store(conn, [claim])
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.fetch("select * from claims.blobs")
        assert claim_check.body(record, await claim_check.resolve(conn, [record])) == b"{}"
        # Somebody stores another body under the hash of one that is to come.
        other = Claim(one.run_id, "acme", b"[1]")
        row = (other.run_id, other.hash, "acme", b"[2]")
        await conn.execute("insert into claims.blobs (run_id, hash, tenant, body) values ($1, $2, $3, $4)", *row)
        record.headers = [(cloudevents.DATAREF, other.dataref.encode())]
        with pytest.raises(UndecodableRecord) as raised:
            claim_check.body(record, await claim_check.resolve(conn, [record]))
    assert raised.value.code == "claim_damaged"


async def test_answers_find_their_jobs_by_key_on_tables_without_statistics(database):
    """By the index of open jobs, every open job would be read for every answer until the first analyze."""
    queries = Queries.load("triptych.kernel.worker", "worker.sql")
    dsn = database.prepare({"tool_fresh": (WORKER,)}).services["tool_fresh"]
    async with await connect(dsn, "test") as pool, pool.acquire() as connection:
        await connection.execute(f"prepare settle as {queries['settle']}")
        await connection.execute(f"prepare taking as {queries['take_over_answers']}")
        settle = await connection.fetch("explain execute settle (" + ", ".join(["null"] * 17) + ")")
        taking = await connection.fetch("explain execute taking (0, null, null)")
    used = [row[0].split(" using ")[1].split()[0] for row in settle if " using " in row[0]]
    assert used == ["jobs_pkey", "outbox_pkey", "jobs_pkey"]
    assert not any("Bitmap" in row[0] for row in settle)
    assert any("jobs_pkey" in row[0] for row in taking)
    assert not any("Seq Scan on jobs" in row[0] or "jobs_open" in row[0] for row in taking)
