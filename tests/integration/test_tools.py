"""The tools on a real broker, database and helpdesk: effects happen once, failures have names."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from ends import Ends, call_request, inbound_of, open_ends
from pydantic import BaseModel
from typer.testing import CliRunner

import triptych.tools
from triptych.commands.main import app
from triptych.examples.helpdesk import tool as helpdesk
from triptych.examples.helpdesk.tool import HelpdeskSettings
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.outage import POSTGRES_GONE
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.run_ids import derive_run_id
from triptych.kernel.worker import JobAttempt, Jobs
from triptych.models import ModelSettings
from triptych.schemas import CallRequest, ErrorCode, Grant, Result, ResultStatus, ToolContracts
from triptych.tools import Call, Effect, Guard, OperationGuard, Tool, ToolFailure
from triptych.tools import ErrorCode as Code
from triptych.tools.adapters.echo import tool as echo
from triptych.tools.adapters.model import tool as model
from triptych.tools.guard.rates import RateLimits
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.runtime.effect_ledger import EffectState, PostgresEffectLedger
from triptych.tools.runtime.process import serve
from triptych.tools.sdk.guard import BreakerPolicy, ProbeGuard
from triptych.tools.testing import call

MIGRATIONS = Path(triptych.tools.__file__).with_name("migrations")
TOKEN = "test-token"  # noqa: S105 - of a server that this module starts


class Sent(BaseModel):
    number: int


class Outbound:
    """An upstream without idempotency keys, as bad as the real ones."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.can_tell = True


def once_tool(upstream: Outbound, guard: Guard | None = None) -> Tool:
    tool = Tool("echo", breaker=BreakerPolicy(failures=2, open_ms=60_000), guard=guard)

    @tool.operation(effect=Effect.ONCE)
    async def send(call: Call[None], text: str) -> Sent:
        """Sends a text."""
        if text == "refused":
            raise ToolFailure(Code.RATE_LIMITED, "too many", retry_after_ms=5)
        if text == "broken":
            raise ToolFailure(Code.UNAVAILABLE, "gone")
        upstream.sent.append(call.idempotency_key)
        upstream.begun.set()
        await upstream.may_go_on.wait()
        return Sent(number=len(upstream.sent))

    @tool.reconcile(send)
    async def what_happened(call: Call[None]) -> Sent | None:
        if not upstream.can_tell:
            raise ToolFailure(Code.NOT_FOUND, "the upstream keeps no record")
        return (
            Sent(number=upstream.sent.index(call.idempotency_key) + 1)
            if call.idempotency_key in upstream.sent
            else None
        )

    return tool


def request_for(tool: Tool, operation: str, arguments: dict[str, Any], **changes: Any) -> CallRequest:
    contract = tool.operations[f"{tool.name}.{operation}"].contract
    fields = {"arguments": arguments, "contract_hash": contract.hash, "timeout_ms": contract.timeout_ms}
    return call_request(contract.operation, **fields | changes)


def again(one: CallRequest, **changes: Any) -> CallRequest:
    """The next attempt of the same call."""
    next_attempt = {"request_id": f"{one.request_id}+", "attempt": one.attempt + 1}
    return one.model_copy(update=next_attempt | changes)


@asynccontextmanager
async def running(ends: Ends, tool: Tool, own: Any = None, *, instance: str = "tool-1") -> AsyncIterator[Service]:
    settings = ends.settings.model_copy(update={"instance": instance})
    log = configure_logging("warning", "console", instance=instance)
    service = Service(f"tool-{tool.name}", log, Health(tool.name, instance), asyncio.Event())
    task = asyncio.create_task(serve(service, settings, tool, own))
    try:
        yield service
    finally:
        service.stopping.set()
        await task


@pytest.fixture(scope="module")
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.echo", "calls.helpdesk", "results", "dead-letters")
    await create_topics("contracts", "tool-controls", "tasks", partitions=1)
    prepared = database.prepare({"tool_echo": (WORKER, MIGRATIONS / "tool")})
    dsn = prepared.services["tool_echo"]
    settings = ServiceSettings(kafka=servers.kafka, postgres=dsn, topic_prefix=prefix, shutdown_timeout_ms=4_000)
    async with await connect(dsn, "test") as pool, open_ends(settings, pool, "contracts", "dead-letters") as ends:
        yield ends


@asynccontextmanager
async def server(module: str, *arguments: str, **environment: str) -> AsyncIterator[str]:
    """A server of the examples in a process of its own; gives its base URL."""
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, "--port", str(port), *arguments, env=os.environ | environment
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(120):
            while True:
                try:
                    (await client.get(f"{url}/health")).raise_for_status()
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)
        yield url
    finally:
        process.terminate()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
async def helpdesk_settings(tmp_path_factory) -> AsyncIterator[HelpdeskSettings]:
    data = tmp_path_factory.mktemp("helpdesk") / "helpdesk.sqlite"
    async with server("triptych.examples.helpdesk", "--data", str(data), HELPDESK_TOKEN=TOKEN) as url:
        yield HelpdeskSettings(url=url, token=TOKEN)


@pytest.fixture
async def desk(helpdesk_settings) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=str(helpdesk_settings.url), headers=headers) as client:
        yield client


async def times_done(desk: httpx.AsyncClient, one: CallRequest) -> int:
    effects = (await desk.get("/ledger")).json()["effects"]
    return sum(effect["key"] == one.idempotency_key for effect in effects)


async def requests_seen(desk: httpx.AsyncClient, one: CallRequest) -> int:
    arrivals = (await desk.get("/ledger")).json()["requests"]
    return int(arrivals.get(one.idempotency_key, 0))


async def test_a_tool_announces_its_contracts_and_answers_calls(ends, eventually):
    one = request_for(echo, "echo", {"value": [1, "two"]})
    async with running(ends, echo):
        await ends.ask(one)
        answer = await ends.answer_to(one)
        await eventually(lambda: [record for record in ends.others if record.key == b"echo"])
    assert answer.result == Result.ok({"value": [1, "two"]})
    announced = next(record for record in ends.others if record.key == b"echo")
    assert ToolContracts.model_validate_json(announced.value) == echo.contracts


async def test_a_call_planned_under_another_contract_is_refused_and_both_are_named(ends):
    one = request_for(echo, "echo", {"value": 1}, contract_hash="f" * 16)
    async with running(ends, echo):
        await ends.ask(one)
        error = (await ends.answer_to(one)).result.error
    assert error.code is ErrorCode.CONTRACT_VIOLATION
    assert error.details == {"planned": "f" * 16, "offered": echo.operations["echo.echo"].contract.hash}


async def test_a_write_whose_answer_was_lost_takes_effect_once(ends, helpdesk_settings, desk):
    one = request_for(helpdesk.tool, "reply", {"ticket_id": "T-drop-1", "subject": "Re: x", "body": "Done."})
    second, third = again(one), again(again(one))
    async with running(ends, helpdesk.tool, helpdesk_settings):
        await ends.ask(one)
        assert (await ends.answer_to(one)).result.error.code is ErrorCode.UNAVAILABLE
        await ends.ask(second)
        done = (await ends.answer_to(second)).result
        assert done.status is ResultStatus.OK
        await ends.ask(third)
        assert (await ends.answer_to(third)).result == done
    assert await times_done(desk, one) == 1
    assert await requests_seen(desk, one) == 2, "the third attempt is answered from the receipt"


async def test_a_reused_key_with_other_arguments_is_a_conflict_and_calls_nothing(ends, helpdesk_settings, desk):
    one = request_for(helpdesk.tool, "tag", {"ticket_id": "T-2", "tags": ["billing"]})
    other = again(one, arguments={"ticket_id": "T-2", "tags": ["login"]})
    async with running(ends, helpdesk.tool, helpdesk_settings):
        await ends.ask(one)
        await ends.answer_to(one)
        await ends.ask(other)
        assert (await ends.answer_to(other)).result.error.code is ErrorCode.CONFLICT
    assert await requests_seen(desk, one) == 1


async def test_what_the_upstream_answers_is_told_in_our_codes(ends, helpdesk_settings):
    cases = {"T-limited-3": ErrorCode.RATE_LIMITED, "T-down-3": ErrorCode.UNAVAILABLE}
    requests = {ticket: request_for(helpdesk.tool, "assign", {"ticket_id": ticket, "team": "duty"}) for ticket in cases}
    async with running(ends, helpdesk.tool, helpdesk_settings):
        await ends.ask(*requests.values())
        errors = {ticket: (await ends.answer_to(one)).result.error for ticket, one in requests.items()}
        missing = request_for(helpdesk.tool, "lookup", {"ticket_id": "T-unknown"})
        await ends.ask(missing)
        assert (await ends.answer_to(missing)).result == Result.empty()
    assert {ticket: error.code for ticket, error in errors.items()} == cases
    assert errors["T-limited-3"].retry_after_ms == 1_000


async def test_a_call_that_hangs_is_cut_off_at_its_time_limit(ends, helpdesk_settings, desk):
    arguments = {"ticket_id": "T-slow-4", "text": "We are on it."}
    one = request_for(helpdesk.tool, "acknowledge", arguments, timeout_ms=300)
    async with running(ends, helpdesk.tool, helpdesk_settings):
        await ends.ask(one)
        assert (await ends.answer_to(one)).result.error.code is ErrorCode.TIMEOUT
        second = again(one, timeout_ms=5_000)
        await ends.ask(second)
        assert (await ends.answer_to(second)).result.status is ResultStatus.OK
    assert await times_done(desk, one) == 1


async def test_after_kill_9_in_a_write_the_next_process_answers_and_it_took_effect_once(
    ends, helpdesk_settings, desk, eventually
):
    await desk.post(
        "/faults", json={"operation": "replies", "ticket": "T-5", "fault": "hang", "hang_ms": 60_000, "times": 1}
    )
    arguments = {"ticket_id": "T-5", "subject": "Re: five", "body": "Done."}
    one = request_for(helpdesk.tool, "reply", arguments, timeout_ms=50_000)
    environment = os.environ | {
        "TRIPTYCH_KAFKA": ends.settings.kafka,
        "TRIPTYCH_POSTGRES": ends.settings.postgres.get_secret_value(),
        "TRIPTYCH_TOPIC_PREFIX": ends.settings.topic_prefix,
        "TRIPTYCH_INSTANCE": "tool-1",
        "TRIPTYCH_HELPDESK_URL": str(helpdesk_settings.url),
        "TRIPTYCH_HELPDESK_TOKEN": TOKEN,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "triptych.tools", "triptych.examples.helpdesk.tool:tool", env=environment
    )

    async def arrived() -> bool:
        return await requests_seen(desk, one) == 1

    await ends.ask(one)
    await eventually(arrived)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert await ends.state(one) == "started"
    async with running(ends, helpdesk.tool, helpdesk_settings):
        assert (await ends.answer_to(one)).result.status is ResultStatus.OK
    assert await times_done(desk, one) == 1
    assert len(ends.answers_to(one)) == 1


async def test_a_once_call_with_a_lost_answer_is_reconciled_and_not_repeated(ends):
    upstream = Outbound()
    tool = once_tool(upstream)
    one = request_for(tool, "send", {"text": "hello"}, timeout_ms=200)
    second = again(one)
    async with running(ends, tool):
        await ends.ask(one)
        assert (await ends.answer_to(one)).result.error.code is ErrorCode.TIMEOUT
        await ends.ask(second)
        assert (await ends.answer_to(second)).result == Result.ok({"number": 1})
    assert upstream.sent == [one.idempotency_key]


async def test_a_once_call_is_in_doubt_when_nobody_can_tell(ends):
    upstream = Outbound()
    upstream.can_tell = False
    tool = once_tool(upstream)
    one = request_for(tool, "send", {"text": "hello"}, timeout_ms=200)
    second = again(one)
    async with running(ends, tool):
        await ends.ask(one)
        await ends.answer_to(one)
        await ends.ask(second)
        error = (await ends.answer_to(second)).result.error
    assert error.code is ErrorCode.IN_DOUBT
    assert error.details == {"idempotency_key": one.idempotency_key}
    assert upstream.sent == [one.idempotency_key]


async def test_a_refusal_in_the_next_life_of_a_call_says_nothing_of_what_the_life_before_has_done(ends):
    """The process died in the call; who takes it over may not call now. That is no proof that nothing was done."""
    upstream = Outbound()
    tool = once_tool(upstream, Guard(operations={"send": OperationGuard(rate="1/h")}))
    one = request_for(tool, "send", {"text": "hello"})
    async with running(ends, tool):
        await ends.ask(one)
        await upstream.begun.wait()
    async with running(ends, tool, instance="tool-2"):
        error = (await ends.answer_to(one)).result.error
    await ends.pool.execute("delete from buckets")
    assert error.details == {"postponed": "rate"}
    upstream.may_go_on.set()
    tool, second = once_tool(upstream), again(one)
    async with running(ends, tool):
        await ends.ask(second)
        assert (await ends.answer_to(second)).result == Result.ok({"number": 1})
    assert upstream.sent == [one.idempotency_key]


async def test_a_once_call_that_was_refused_may_be_made_again(ends):
    upstream = Outbound()
    upstream.can_tell = False
    tool = once_tool(upstream)
    one = request_for(tool, "send", {"text": "refused"})
    second = again(one)
    async with running(ends, tool):
        await ends.ask(one)
        await ends.answer_to(one)
        await ends.ask(second)
        assert (await ends.answer_to(second)).result.error.code is ErrorCode.RATE_LIMITED


async def test_of_two_attempts_that_begin_at_once_after_a_refusal_only_one_is_the_first(ends, eventually):
    """The later one has read of the refusal, and then waits for the row: the refusal is not the last word any more."""
    first = request_for(once_tool(Outbound()), "send", {"text": "hello"})
    second, third = again(first), again(again(first))
    jobs = Jobs(ends.pool, "both", lease_ms=60_000)
    await jobs.open()
    await jobs.take_in([inbound_of(one) for one in (first, second, third)], [])
    attempt, ledger = JobAttempt(jobs.lease), PostgresEffectLedger(ends.pool, [first.operation])
    assert (await ledger.begin(first, attempt)).state is EffectState.NEW
    await ends.pool.execute("update effects set state = 'refused' where idempotency_key = $1", first.idempotency_key)

    async def one_waits() -> bool:
        return await ends.pool.fetchval("select exists (select from pg_locks where not granted)")

    async with ends.pool.acquire() as connection, connection.transaction():
        assert (
            await PostgresEffectLedger(connection, [first.operation]).begin(second, attempt)
        ).state is EffectState.NEW
        late = asyncio.create_task(ledger.begin(third, attempt))
        await eventually(one_waits)
    assert (await late).state is EffectState.UNKNOWN
    await jobs.close()


async def test_a_ledger_that_was_put_back_does_not_vouch_for_runs_that_are_older(ends):
    old, new = (
        request_for(once_tool(Outbound()), "send", {"text": "hello"}, run_id=derive_run_id("acme", "t", at_ms))
        for at_ms in (1_000, 3_000)
    )
    jobs = Jobs(ends.pool, "both", lease_ms=60_000)
    await jobs.open()
    await jobs.take_in([inbound_of(one) for one in (old, new)], [])
    async with ends.pool.acquire() as connection:
        await connection.execute("set triptych.restored_at_ms = '2000'")
        ledger = PostgresEffectLedger(connection, [old.operation])
        assert (await ledger.begin(old, JobAttempt(jobs.lease))).state is EffectState.UNKNOWN
        assert (await ledger.begin(new, JobAttempt(jobs.lease))).state is EffectState.NEW
    await jobs.close()


async def test_an_open_breaker_answers_at_once_and_calls_nothing(ends):
    tool = once_tool(Outbound())
    requests = [request_for(tool, "send", {"text": "broken"}) for _ in range(3)]
    async with running(ends, tool):
        for one in requests:
            await ends.ask(one)
            await ends.answer_to(one)
    first, second, third = [(await ends.answer_to(one)).result.error for one in requests]
    assert (first.message, second.message) == ("gone", "gone")
    assert third.code is ErrorCode.UNAVAILABLE
    assert third.details == {"postponed": "breaker", "effect": "none"}
    assert third.retry_after_ms > 0
    assert await ends.pool.fetchval("select count(*) from effects where request_id = $1", requests[2].request_id) == 0


async def test_a_rate_holds_across_processes_and_who_is_refused_comes_back_at_a_moment_of_its_own(ends):
    """Two processes are two of these over one table."""
    guard = Guard(rate="40/min", operations={"send": OperationGuard(rate="4/min")})
    processes = [RateLimits(ends.pool, guard) for _ in range(2)]
    await processes[0].admit("echo.send")
    refusals = []
    for number in range(20):
        with pytest.raises(ToolFailure) as caught:
            await processes[number % 2].admit("echo.send")
        refusals.append(caught.value)
    assert {refused.code for refused in refusals} == {Code.RATE_LIMITED}
    assert refusals[0].details == {"postponed": "rate"}
    gaps = [after.retry_after_ms - before.retry_after_ms for before, after in pairwise(refusals[:4])]
    assert all(abs(gap - 15_000) < 1_000 for gap in gaps)
    # Whoever was told a moment may have given up; the next one does not wait for them.
    assert max(refused.retry_after_ms for refused in refusals) <= 60_000
    assert await ends.pool.fetchval("select count(*) from buckets") == 2


async def test_a_rate_that_was_raised_counts_at_once_and_nobody_waits_for_the_slower_one(ends):
    slower, faster = (
        RateLimits(ends.pool, Guard(operations={"send_all": OperationGuard(rate=rate)})) for rate in ("1/day", "20/h")
    )
    await slower.admit("echo.send_all")
    with pytest.raises(ToolFailure):
        await slower.admit("echo.send_all")
    await faster.admit("echo.send_all")
    for _ in range(2):
        with pytest.raises(ToolFailure):
            await faster.admit("echo.send_all")


@dataclass
class Upstream:
    """Something that can be well or not."""

    fails: bool = False
    answers: Any = 1


def watched_tool(upstream: Upstream) -> Tool:
    tool = Tool("echo", guard=Guard(probe=ProbeGuard(operation="count", every_s=3_600)))

    @tool.operation(effect=Effect.READ)
    async def count() -> int:
        """Counts."""
        if upstream.fails:
            raise ToolFailure(Code.UNAVAILABLE, "the till is closed")
        return upstream.answers  # type: ignore[no-any-return]

    return tool


async def command_line(ends: Ends, *arguments: str) -> tuple[int, str]:
    """A command of `triptych tools`, as a person at another terminal gives it."""
    where = ("--kafka", ends.settings.kafka, "--prefix", ends.settings.topic_prefix)
    where = where if arguments[0] != "status" else ()
    dsn = ends.settings.postgres.get_secret_value()
    command = ["tools", *arguments, *where, "--postgres", dsn]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    return done.exit_code, done.output


async def test_a_person_holds_a_breaker_open_and_that_is_seen_recorded_and_outlives_the_process(ends, eventually):
    async with running(ends, echo):
        assert await command_line(ends, "breaker", "echo", "open", "--principal", "user:ana") == (
            0,
            "the breaker is open\n",
        )
    async with running(ends, echo):
        refused = request_for(echo, "echo", {"value": 1})
        await ends.ask(refused)
        assert "held open by user:ana" in (await ends.answer_to(refused)).result.error.message

        async def shown() -> bool:
            _, status = await command_line(ends, "status")
            return "breaker open" in status and "held by user:ana" in status

        await eventually(shown)
        await command_line(ends, "breaker", "echo", "auto", "--principal", "user:bo")
        one = request_for(echo, "echo", {"value": 1})
        await ends.ask(one)
        assert (await ends.answer_to(one)).result.status is ResultStatus.OK
    rows = await ends.pool.fetch("select breaker, principal from controls where breaker is not null order by at")
    assert [tuple(row) for row in rows] == [("open", "user:ana"), ("auto", "user:bo")]


async def test_a_command_that_no_row_can_hold_does_not_keep_the_tool_from_the_next(ends, eventually):
    topic, fields = (
        ends.settings.topic("tool-controls"),
        {"tool": "echo", "breaker": "auto", "at": "2026-01-01T00:00:00Z"},
    )
    commands = (
        {"command_id": "of-no-time", "principal": "user:ana", "at": "0001-01-01T00:00:00+14:00"},
        {"command_id": "with-nul", "principal": "user:\0", "note": "a\0b"},
    )
    for command in commands:
        await ends.producer.send_and_wait(topic, json.dumps(fields | command).encode(), key=b"echo")
    async with running(ends, echo):

        async def recorded() -> list[tuple[str, str]]:
            rows = await ends.pool.fetch(
                "select principal, note from controls where command_id = any($1)", ["of-no-time", "with-nul"]
            )
            return [tuple(row) for row in rows]

        await eventually(recorded)
        assert await recorded() == [("user:\ufffd", "a\ufffdb")]
        assert (await command_line(ends, "breaker", "echo", "auto", "--principal", "user:bo"))[0] == 0


async def test_a_probe_finds_out_before_an_agent_does_and_says_so_loudly(ends, eventually):
    upstream = Upstream(fails=True)
    async with running(ends, watched_tool(upstream)) as service:

        async def told() -> bool:
            return "probe" in await service.health.unready()

        await eventually(told)
        code, answer = await command_line(ends, "test", "echo")
        assert (code, answer) == (1, "echo.count failed with unavailable: the till is closed\n")
        _, shown = await command_line(ends, "status")
        assert "the till is closed" in " ".join(shown.split())
        upstream.fails = False
        code, answer = await command_line(ends, "test", "echo")
        assert code == 0
        assert "echo.count answered ok" in answer
        assert not await told()

        async def closed() -> bool:
            return await ends.pool.fetchval("select closed_at is not null from alerts where kind = 'probe'")

        await eventually(closed)


async def test_an_alert_of_drift_stays_open_until_a_comparison_finds_nothing(ends):
    alerts = Alerts(structlog.get_logger())
    for operation in ("echo.one", "echo.two"):
        alerts.open(operation, "drift", "it is gone")
    await alerts.write(ends.pool)
    alerts.close_others("drift", {"echo.two": "it is gone"})
    await alerts.write(ends.pool)
    rows = await ends.pool.fetch("select operation from alerts where kind = 'drift' and closed_at is null")
    assert [row["operation"] for row in rows] == ["echo.two"]


async def test_an_alert_is_closed_though_the_database_is_away_when_it_is(ends):
    alerts = Alerts(structlog.get_logger())
    alerts.open("echo.three", "probe", "the till is closed")
    await alerts.write(ends.pool)
    alerts.close("echo.three", "probe")
    async with ends.pool.acquire() as lost:
        await lost.close()
        with pytest.raises(POSTGRES_GONE):
            await alerts.write(lost)
    await alerts.write(ends.pool)
    assert await ends.pool.fetchval("select closed_at is not null from alerts where operation = 'echo.three'")


async def test_a_result_that_no_longer_fits_its_contract_opens_an_alert_and_one_that_fits_closes_it(ends, eventually):
    upstream = Upstream(answers="many")
    tool = watched_tool(upstream)
    open_alerts = "select message from alerts where kind = 'result' and closed_at is null"

    async def ask() -> Result:
        one = request_for(tool, "count", {})
        await ends.ask(one)
        return (await ends.answer_to(one)).result

    async def alert() -> str | None:
        return await ends.pool.fetchval(open_alerts)

    async def none() -> bool:
        return await alert() is None

    async with running(ends, tool):
        assert (await ask()).error.code is ErrorCode.CONTRACT_VIOLATION
        await eventually(alert)
        assert "does not allow: result" in await alert()
        upstream.answers = 2
        assert (await ask()).data == 2
        await eventually(none)


async def test_a_model_call_reports_what_it_cost_and_stays_within_its_grant():
    async with server("triptych.examples.model_server") as url:
        settings = ModelSettings(
            base_url=f"{url}/v1",
            api_key="scripted",
            strong="scripted-strong",
            cheap="scripted-cheap",
            prices={"scripted-strong": (3.0, 15.0), "scripted-cheap": (0.25, 1.25)},
        )
        ticket = {"subject": "Reset link", "body": "The password reset link does not work."}
        result = await call(model, "classify", ticket, settings=settings)
        assert result.data["category"] == "login"
        article = {"id": "kb-010", "title": "Reset your password", "body": "The reset link is valid for an hour."}
        draft = await call(model, "draft", ticket | {"articles": [article]}, settings=settings)
        assert draft.data["citations"] == ["kb-010"]
        poor = await call(model, "classify", ticket, settings=settings, grant=Grant(tokens=10, usd_micros=10))
        assert poor.error.code is ErrorCode.BUDGET_EXCEEDED
