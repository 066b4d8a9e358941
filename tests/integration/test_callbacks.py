"""Calls that an upstream completes by calling back: over HTTP, on a real broker and database, and through crashes."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from ends import Ends, call_request, open_ends
from pydantic import SecretStr
from studio import MIGRATIONS, SECRET, TOOL, Process, Studio, answers, call_back, open_studio, signed

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import CallRequest, ErrorCode, Result
from triptych.tools import Source
from triptych.tools.adapters.http_call import tool as http_call
from triptych.tools.runtime.callbacks import BODY_MAX_BYTES, Verifier
from triptych.tools.runtime.process import load_tool


@pytest.fixture(scope="module")
async def studio() -> AsyncIterator[tuple[Studio, str]]:
    async with open_studio() as studio:
        yield studio


@pytest.fixture(scope="module")
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.studio", "results", "dead-letters")
    await create_topics("contracts", partitions=1)
    dsn = database.prepare({"tool_studio": (WORKER, MIGRATIONS / "tool")}).services["tool_studio"]
    settings = ServiceSettings(kafka=servers.kafka, postgres=dsn, topic_prefix=prefix)
    async with await connect(dsn, "test") as pool, open_ends(settings, pool) as ends:
        yield ends


@pytest.fixture(scope="module")
async def process(ends, studio, tmp_path_factory) -> AsyncIterator[Process]:
    process = Process(ends.settings, studio[1], tmp_path_factory.mktemp("studio"))
    await process.start()
    yield process
    await process.kill()


@pytest.fixture(scope="module")
def contract(tmp_path_factory, monkeypatch_module):
    folder = tmp_path_factory.mktemp("contract")
    (folder / "studio_tool.py").write_text(TOOL, "utf-8")
    monkeypatch_module.syspath_prepend(str(folder))
    return load_tool("studio_tool:tool").operations["studio.render"].contract


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def order(contract):
    def make(text: str = "a film", **changes: Any) -> CallRequest:
        fields = {"arguments": {"text": text}, "contract_hash": contract.hash, "timeout_ms": contract.timeout_ms}
        return call_request("studio.render", **fields | changes)

    return make


@asynccontextmanager
async def parked(ends: Ends, studio: Studio, request: CallRequest, eventually) -> AsyncIterator[str]:
    """A call that waits; gives the address for its callback."""
    await ends.ask(request)
    await eventually(lambda: _state_is(ends, request, "parked"))
    yield studio.orders_of(request)[-1]["callback"]


async def _state_is(ends: Ends, request: CallRequest, state: str) -> bool:
    return await ends.state(request) == state


async def test_a_call_that_was_accepted_waits_without_a_process_and_is_answered_by_the_callback(
    ends, studio, process, order, eventually
) -> None:
    upstream, _ = studio
    one = order()
    async with parked(ends, upstream, one, eventually) as url:
        lease = await ends.pool.fetchval("select lease from jobs where request_id = $1", one.request_id)
        assert lease is None
        await ends.ask(one)  # as the executor does when an answer is late
        progress = await call_back(url, {"state": "working"})
        assert (progress.status_code, ends.answers_to(one)) == (202, [])
        assert (await call_back(url, {"state": "done", "film": "a.mp4"})).json() == {"status": "taken"}
    answer = await ends.answer_to(one)
    assert answer.result == Result.ok({"film": "a.mp4"})
    assert (await call_back(url, {"state": "done", "film": "b.mp4"})).json() == {"status": "known"}
    await eventually(lambda: _state_is(ends, one, "published"))
    await ends.ask(one)
    await eventually(lambda: len(ends.answers_to(one)) > 1)
    assert {answer.result.data["film"] for answer in ends.answers_to(one)} == {"a.mp4"}
    assert len(upstream.orders_of(one)) == 1
    state = "select state from effects where idempotency_key = $1"
    assert await ends.pool.fetchval(state, one.idempotency_key) == "receipt"


async def test_only_who_has_the_secret_and_the_address_is_heard(ends, studio, process, order, eventually) -> None:
    one = order()
    async with parked(ends, studio[0], one, eventually) as url:
        done = {"state": "done", "film": "a.mp4"}
        other = "whsec_" + base64.b64encode(b"another secret of some length").decode()
        assert (await call_back(url, done, secret=other)).status_code == 401
        assert (await call_back(url, done, at=time.time() - 400)).status_code == 401
        assert (await call_back(url, done, at=time.time() + 400)).status_code == 401
        async with httpx.AsyncClient() as client:
            assert (await client.post(url, json=done)).status_code == 401
            assert (await client.post(url, content=b"x" * (BODY_MAX_BYTES + 1))).status_code == 413
            for odd in (b"{", b"[" * 100_000, b'{"n": 1' + b"0" * 5_000 + b"}", b'"\\ud800"', b"NaN", b"\xff", b""):
                assert (await client.post(url, content=odd, headers=signed(odd))).status_code == 400
        assert (await call_back(url[:-4] + "AAAA", done)).status_code == 404
        assert (await call_back(url[:-4] + "%00", done)).status_code == 404
        assert (await call_back(url, ["not", "what", "is", "read"])).status_code == 422
        assert await ends.state(one) == "parked"
        await call_back(url, done)
    assert (await ends.answer_to(one)).result == Result.ok({"film": "a.mp4"})


async def test_a_copy_of_a_callback_does_nothing_at_the_address_of_another_call(
    ends, studio, process, order, eventually
) -> None:
    one, other = order("a film"), order("another film")
    async with parked(ends, studio[0], one, eventually) as url, parked(ends, studio[0], other, eventually) as elsewhere:
        body = b'{"state": "done", "film": "one.mp4"}'
        copied, bound = signed(body), signed(elsewhere.encode() + b"." + body)
        async with httpx.AsyncClient() as client:
            assert (await client.post(url, content=body, headers=bound)).status_code == 401
            assert (await client.post(url, content=body, headers=copied)).json() == {"status": "taken"}
            assert (await client.post(elsewhere, content=body, headers=copied)).status_code == 401
            assert await ends.state(other) == "parked"
            assert (await client.post(url, content=body, headers=copied)).json() == {"status": "known"}
            assert (await client.post(elsewhere, content=body, headers=bound)).json() == {"status": "taken"}
    assert (await ends.answer_to(other)).result == Result.ok({"film": "one.mp4"})


async def test_a_callback_that_is_quicker_than_the_acceptance_is_not_lost(ends, process, order) -> None:
    one = order("quick")
    await ends.ask(one)
    assert (await ends.answer_to(one)).result == Result.ok({"film": "quick.mp4"})


async def test_a_callback_that_comes_while_the_next_attempt_registers_is_heard(
    ends, studio, process, order, eventually
) -> None:
    one = order()
    async with parked(ends, studio[0], one, eventually) as url, ends.pool.acquire() as connection:
        await connection.execute(
            """insert into jobs select (jsonb_populate_record(jobs, '{"request_id": "the next attempt"}')).* from jobs
            where request_id = $1""",
            one.request_id,
        )
        registering = connection.transaction()
        await registering.start()
        await connection.execute(
            "update callbacks set request_id = 'the next attempt' where request_id = $1", one.request_id
        )
        heard = asyncio.create_task(call_back(url, {"state": "done", "film": "a.mp4"}))
        await eventually(lambda: _waits_for_a_lock(ends))
        await registering.commit()
        assert (await heard).json() == {"status": "taken"}
    assert (await ends.answer_to(one)).result == Result.ok({"film": "a.mp4"})


async def _waits_for_a_lock(ends: Ends) -> bool:
    waiting = (
        "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())"
    )
    return await ends.pool.fetchval(waiting)


async def test_a_process_that_is_killed_while_a_call_waits_loses_nothing(
    ends, studio, process, order, eventually
) -> None:
    one = order()
    async with parked(ends, studio[0], one, eventually) as url:
        await process.kill()
        with pytest.raises(httpx.TransportError):
            await call_back(url, {"state": "done", "film": "a.mp4"})
        await process.start()
        await eventually(lambda: answers(url))
        await call_back(url, {"state": "done", "film": "a.mp4"})
    assert (await ends.answer_to(one)).result == Result.ok({"film": "a.mp4"})
    assert len(studio[0].orders_of(one)) == 1


async def test_a_process_that_dies_between_the_callback_and_the_answer_answers_in_its_next_life(
    ends, studio, process, order, eventually
) -> None:
    one = order()
    async with parked(ends, studio[0], one, eventually) as url:
        process.arm("callbacks.after_answer")
        with pytest.raises(httpx.TransportError):
            await call_back(url, {"state": "done", "film": "a.mp4"})
        await process.ended()
        await process.start()
        assert (await ends.answer_to(one)).result == Result.ok({"film": "a.mp4"})
        await eventually(lambda: answers(url))
        assert (await call_back(url, {"state": "done", "film": "a.mp4"})).json() == {"status": "known"}


async def dies_before_it_is_parked(ends: Ends, process: Process, one: CallRequest) -> None:
    """The upstream has taken the call on, and the process has died of it."""
    process.arm("callbacks.before_park")
    await ends.ask(one)
    await process.ended()


async def test_a_process_that_dies_before_a_call_is_parked_makes_it_again_under_the_same_key_and_address(
    ends, studio, process, order, eventually
) -> None:
    one = order()
    await dies_before_it_is_parked(ends, process, one)
    await process.start()
    await eventually(lambda: _state_is(ends, one, "parked"))
    first, second = studio[0].orders_of(one)
    assert first == second
    await call_back(second["callback"], {"state": "done", "film": "a.mp4"})
    assert (await ends.answer_to(one)).result == Result.ok({"film": "a.mp4"})


async def test_a_failure_that_is_told_while_its_call_is_made_again_is_not_taken_for_the_end_of_the_new_one(
    ends, studio, process, order, eventually
) -> None:
    one = order()
    await dies_before_it_is_parked(ends, process, one)
    (first,) = studio[0].orders_of(one)
    process.arm("ledger.before_intent", "stop")
    await process.start()
    await eventually(lambda: process.is_struck("ledger.before_intent"))
    other = Process(ends.settings, studio[1], process.folder, more={"TRIPTYCH_INSTANCE": "studio-2"})
    await other.start()
    url = first["callback"].replace(str(process.port), str(other.port))
    try:
        await eventually(lambda: answers(url))
        assert (await call_back(url, {"state": "failed", "is_certain": True})).json() == {"status": "kept"}
    finally:
        process.go_on()
        await other.kill()
    await eventually(lambda: len(studio[0].orders_of(one)) > 1)
    _, second = studio[0].orders_of(one)
    assert second["callback"] != first["callback"]
    assert (await call_back(first["callback"], {"state": "failed"})).status_code == 404
    await call_back(second["callback"], {"state": "done", "film": "a.mp4"})
    assert (await ends.answer_to(one)).result == Result.ok({"film": "a.mp4"})


async def test_what_comes_after_the_deadline_is_kept_for_the_next_attempt(
    ends, studio, process, order, eventually
) -> None:
    one = order("late", timeout_ms=1_500)
    async with parked(ends, studio[0], one, eventually) as url:
        late = await ends.answer_to(one)
        assert late.result.error.code is ErrorCode.TIMEOUT
        assert (await call_back(url, {"state": "done", "film": "a.mp4"})).json() == {"status": "kept"}
    second = one.model_copy(update={"request_id": "again", "attempt": 2, "deadline_at": utc_now().replace(year=2090)})
    await ends.ask(second)
    assert (await ends.answer_to(second)).result == Result.ok({"film": "a.mp4"})
    assert len(studio[0].orders_of(one)) == 1


@pytest.mark.parametrize("error_s", [-200, 200])
async def test_a_call_waits_for_its_whole_time_whatever_the_clock_of_its_process_says(
    ends, studio, process, order, eventually, *, error_s
) -> None:
    await process.kill()
    clock = process.folder / "failpoints" / "studio-1" / "clock"
    clock.parent.mkdir(parents=True, exist_ok=True)
    clock.write_text(str(error_s))
    await process.start()
    one = order(deadline_at=utc_now() + timedelta(minutes=10))
    try:
        async with parked(ends, studio[0], one, eventually):
            left = "select extract(epoch from deadline_at - now()) from jobs where request_id = $1"
            assert one.timeout_ms / 2_000 < await ends.pool.fetchval(left, one.request_id) < one.timeout_ms / 1_000
    finally:
        clock.unlink()
        await process.kill()
        await process.start()


async def test_a_failure_is_an_error_and_the_next_attempt_is_another_call(
    ends, studio, process, order, eventually
) -> None:
    one = order()
    async with parked(ends, studio[0], one, eventually) as url:
        await call_back(url, {"state": "failed"})
    assert (await ends.answer_to(one)).result.error.code is ErrorCode.UNAVAILABLE
    second = one.model_copy(update={"request_id": f"{one.request_id}+", "attempt": 2})
    async with parked(ends, studio[0], second, eventually) as another:
        assert another != url
        assert (await call_back(url, {"state": "done", "film": "old.mp4"})).status_code == 404
        await call_back(another, {"state": "done", "film": "new.mp4"})
    assert (await ends.answer_to(second)).result == Result.ok({"film": "new.mp4"})


async def test_a_declared_call_is_completed_by_a_callback_too(ends, studio, process, order, eventually) -> None:
    await process.kill()  # another tool takes its name and its topic
    upstream, address = studio
    options = {
        "base_url": address,
        "operations": {
            "render": {
                "description": "Render a film of a text.",
                "method": "POST",
                "path": "/films",
                "body": {
                    "text": "${{ arguments.text }}", "callback": "${{ callback_url }}", "key": "${{ arguments.key }}"
                },
                "arguments": {"text": {"type": "string"}, "key": {"type": "string"}},
                "effect": "idempotent",
                "key": {"natural": "key"},
                "timeout_ms": 60_000,
                "callback": {
                    "pending": "body.state == 'working'",
                    "failed": "body.state == 'failed' ? body.why : null",
                    "result": "{'film': body.film}",
                },
            }
        },
    }  # fmt: skip
    source = Source("studio", options)
    contract = http_call(source).operations["studio.render"].contract
    declared = Process(
        ends.settings, address, process.folder, "triptych.tools.adapters.http_call:tool", source.environment()
    )
    await declared.start()
    try:
        good, bad = order(contract_hash=contract.hash), order(contract_hash=contract.hash)
        for one in (good, bad):
            arguments = {"text": "a film", "key": one.idempotency_key}
            async with parked(ends, upstream, one.model_copy(update={"arguments": arguments}), eventually) as url:
                assert (await call_back(url, {"state": "working"})).status_code == 202
                done = {"state": "done", "film": "a.mp4"} if one is good else {"state": "failed", "why": "no actors"}
                await call_back(url, done)
        assert (await ends.answer_to(good)).result == Result.ok({"film": "a.mp4"})
        failed = (await ends.answer_to(bad)).result.error
        assert (failed.code, failed.message.rpartition(": ")[2]) == (ErrorCode.INTERNAL, "no actors")
    finally:
        await declared.kill()
        await process.start()


def test_the_example_of_the_specification_is_verified() -> None:
    verifier = Verifier(SecretStr(SECRET))
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,bm9ldHUjKzFob2VudXRob2VodWUzMjRvdWVvdW9ldQo=",
    }
    at = utc_now().fromtimestamp(1614265330, utc_now().tzinfo)
    assert verifier.problem(headers, body, at) is None
    assert verifier.problem(headers, body + b" ", at) == "no signature fits"
    assert verifier.problem(headers | {"webhook-timestamp": "1614265331"}, body, at) == "no signature fits"
    rotated = Verifier(SecretStr(f"whsec_{base64.b64encode(b'new' * 8).decode()} {SECRET}"))
    assert rotated.problem(headers, body, at) is None
    with pytest.raises(ConfigurationError, match="base64"):
        Verifier(SecretStr("whsec_!"))
