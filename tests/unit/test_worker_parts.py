"""The pure parts of the worker loop: claim checks, dead letters, patience, limits and lines."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from uuid import UUID

import aiokafka
import asyncpg
import orjson
import pytest
from structlog.testing import CapturingLogger

from triptych.kernel.concurrency.time_limit import TimeLimit
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import dead_letters
from triptych.kernel.kafka.bus import TopicPartition
from triptych.kernel.postgres import claim_check
from triptych.kernel.process.outage import POSTGRES_GONE, Outage, is_refusal
from triptych.kernel.worker.job_queue import JobQueue
from triptych.kernel.worker.jobs import InboundRequest
from triptych.kernel.worker.unpersisted import OVERDUE_S, UnpersistedRequests
from triptych.schemas import DeadLetter

RUN = UUID("00000000-0000-7000-8000-000000000001")
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def record(
    value: bytes | None, *headers: tuple[str, bytes | None], key: bytes | None = b"k"
) -> aiokafka.ConsumerRecord:
    return aiokafka.ConsumerRecord(
        topic="t.calls.echo",
        partition=1,
        offset=42,
        timestamp=0,
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
        headers=list(headers),
    )


def test_only_a_body_over_the_limit_is_claimed():
    assert not claim_check.needs_claim(b"x" * 10, 10)
    assert claim_check.needs_claim(b"x" * 11, 10)


def test_a_claimed_body_is_found_by_its_content_and_others_stay_where_they_are():
    body = b'{"big": true}'
    reference = claim_check.dataref(RUN, body)
    claimed = record(claim_check.CLAIMED_VALUE, ("ce_dataref", reference.encode()))
    assert claim_check.body(claimed, {reference: body}) == body
    assert claim_check.body(record(b"{}"), {}) == b"{}"
    with pytest.raises(UndecodableRecord, match=r"claims\.blobs"):
        claim_check.body(claimed, {})


def test_a_dead_letter_keeps_the_bytes_in_its_row_and_cuts_them_in_its_event():
    value = b"\xff" * (dead_letters.EVENT_MAX_BYTES + 1)
    error = UndecodableRecord("not_json", "no \x00 JSON")
    dead = dead_letters.dead_record("tool-echo", record(value, ("ce_tenant", b"acme"), ("odd", None)), error, NOW)
    assert dead.id == "tool-echo:t.calls.echo:1:42:0"
    assert dead.value == value
    assert dead.tenant == "acme"
    assert "\x00" not in dead.message
    assert orjson.loads(dead.headers) == [["ce_tenant", base64.b64encode(b"acme").decode()], ["odd", None]]
    outgoing = dead_letters.event(dead, "tool-echo", "t.dead-letters")
    letter = DeadLetter.model_validate_json(outgoing.value)
    assert letter.truncated
    assert base64.b64decode(letter.value_base64 or "") == value[: dead_letters.EVENT_MAX_BYTES]
    assert ("ce_id", dead.id.encode()) in outgoing.headers


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends():
    logger, stop = CapturingLogger(), asyncio.Event()
    stop.set()
    outage = Outage(logger, "kafka")  # type: ignore[arg-type]
    outage.over()
    for _ in range(3):
        await outage.wait(ConnectionError("gone"), unless=stop)
    outage.over()
    assert [call.method_name for call in logger.calls] == ["warning", "info"]


FIRST, SECOND = TopicPartition("t.calls.echo", 0), TopicPartition("t.calls.echo", 1)


def inbound(request_id: str) -> InboundRequest:
    return InboundRequest(RUN, request_id, "acme", 0, b"{}", None, NOW)


def test_an_offset_is_committed_when_everything_below_it_is_in_the_table():
    unpersisted = UnpersistedRequests()
    positions = {FIRST: 10, SECOND: 20}
    assert unpersisted.safe(positions) == positions
    for request_id, offset in (("a", 7), ("b", 8), ("c", 9)):
        unpersisted.add((RUN, request_id), inbound(request_id), FIRST, offset, at_s=0.0)
    assert unpersisted.safe(positions) == {FIRST: 7, SECOND: 20}
    unpersisted.persisted([(RUN, "b"), (RUN, "a")])
    assert unpersisted.safe(positions) == {FIRST: 9, SECOND: 20}
    unpersisted.release()
    assert unpersisted.safe(positions) == positions
    assert unpersisted.get((RUN, "c")), "it is under way all the same"


def test_what_has_no_answer_soon_is_stored_the_oldest_first():
    unpersisted = UnpersistedRequests()
    for number in range(3):
        unpersisted.add((RUN, str(number)), inbound(str(number)), FIRST, number, at_s=number * OVERDUE_S)
    assert unpersisted.overdue(0.0) == []
    assert [one.request_id for one in unpersisted.overdue(2.5 * OVERDUE_S)] == ["0", "1"]


async def at_once(value: int) -> int:
    return value


async def later(value: int, turns: int = 3) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    return value


async def fails() -> None:
    await asyncio.sleep(0)
    raise LookupError("its own error")


async def test_work_within_its_limit_gives_its_result_or_its_error_whether_it_waits_or_not():
    assert await TimeLimit(60.0).hold(at_once(1)) == 1
    assert await TimeLimit(60.0).hold(later(2)) == 2
    limit = TimeLimit(60.0)
    with pytest.raises(LookupError):
        await limit.hold(fails())
    assert not limit.expired()


async def test_work_beyond_its_limit_is_cut_off_and_a_cancellation_from_outside_is_none_of_the_limit():
    tidied = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tidied.append(True)

    limit = TimeLimit(0.01)
    with pytest.raises(TimeoutError):
        await limit.hold(endless())
    assert limit.expired()
    limit = TimeLimit(60.0)
    task = asyncio.create_task(limit.hold(endless()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not limit.expired()
    assert tidied == [True, True]


async def test_every_job_in_the_line_is_taken_once_by_whoever_is_free():
    line: JobQueue[int] = JobQueue()
    taken: list[int] = []

    async def runner() -> None:
        while True:
            number = await line.take()
            if number % 3 == 0:
                await asyncio.sleep(0.001 * (number % 2))
            taken.append(number)

    runners = [asyncio.create_task(runner()) for _ in range(4)]
    for number in range(100):
        line.put(number)
        if number % 10 == 0:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while len(taken) < 100:  # noqa: ASYNC110 - the line tells nobody that it is empty
            await asyncio.sleep(0.001)
    assert sorted(taken) == list(range(100))
    for task in runners:
        task.cancel()
    await asyncio.wait(runners)


async def test_a_job_that_waits_holds_up_no_other_as_long_as_a_runner_is_free():
    line: JobQueue[asyncio.Event] = JobQueue()
    begun: list[asyncio.Event] = []

    async def runner() -> None:
        while True:
            gate = await line.take()
            begun.append(gate)
            await gate.wait()

    runners = [asyncio.create_task(runner()) for _ in range(3)]
    await asyncio.sleep(0)
    gates = [asyncio.Event() for _ in range(4)]
    for gate in gates:
        line.put(gate)
    async with asyncio.timeout(10):
        while len(begun) < 3:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    assert len(line) == 1
    gates[1].set()
    async with asyncio.timeout(10):
        while len(begun) < 4:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    for task in runners:
        task.cancel()
    await asyncio.wait(runners)


@pytest.mark.parametrize(
    ("error", "is_for_its_content"),
    [
        (asyncpg.DataError("value out of int32 range"), True),
        (asyncpg.CharacterNotInRepertoireError("invalid byte sequence"), True),
        (asyncpg.ProgramLimitExceededError("too large"), True),
        (asyncpg.ProtocolViolationError("invalid message length"), True),
        (asyncpg.ProtocolViolationError("insufficient data left in message"), True),
        (asyncpg.RaiseError("a trigger says no"), True),
        (asyncpg.CheckViolationError("no"), True),
        (OverflowError("int too big to convert"), True),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), True),
        (asyncpg.ProtocolViolationError("server login failed: pooler cannot connect to server"), False),
        (asyncpg.DiskFullError("no space left"), False),
        (asyncpg.ConnectionDoesNotExistError("gone"), False),
        (asyncpg.UndefinedTableError("no such table"), False),
        (TimeoutError(), False),
        (asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"), False),
    ],
)
def test_a_refusal_of_content_is_told_from_an_outage(error, is_for_its_content):
    assert is_refusal(error) is is_for_its_content


def test_an_error_within_the_client_of_a_database_that_goes_away_is_an_outage():
    assert issubclass(asyncpg.InternalClientError, POSTGRES_GONE)
