"""A tool without a broker: its contract, what the runtime refuses, and what failures are called."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import asyncpg
import httpx
import pytest
from pydantic import BaseModel, Field

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.worker import Finished, JobAttempt
from triptych.schemas import CallAnswer, CallRequest, ErrorCode, Grant, Result, ResultStatus, Spend
from triptych.tools import Call, Cost, Effect, Tool, ToolFailure
from triptych.tools.adapters.sql.failures import failure_of_postgres
from triptych.tools.http.errors import check_status, failure_of_request, json_content
from triptych.tools.runtime import attempt as runtime
from triptych.tools.runtime.effect_ledger import EffectEntry, EffectState, _outcome
from triptych.tools.runtime.process import load_tool
from triptych.tools.scaffold import ScaffoldError, scaffold
from triptych.tools.sdk.call import Accepted
from triptych.tools.sdk.failure import ToolDefinitionError
from triptych.tools.testing import FreshLedger, call, request_for, worker_of


class Forecast(BaseModel):
    city: str
    celsius: float


tool = Tool("weather")


@tool.operation(effect=Effect.READ, timeout_ms=100)
async def forecast(
    call: Call[None], city: Annotated[str, Field(min_length=2)], unit: str = "celsius", days: int = 1
) -> Forecast | None:
    """The weather of the next days. Empty for a city that nobody knows."""
    match city:
        case "Atlantis":
            return None
        case "Babel":
            return {"city": 7}  # type: ignore[return-value]
        case "Gomorrah":
            raise RuntimeError("postgresql://u:hunter2@db")
        case "Limbo":
            await asyncio.Event().wait()
        case "Shangri-La":
            raise ToolFailure(ErrorCode.FORBIDDEN, "no such visa", visa="none")
    return Forecast(city=city, celsius=20.5 + days)


async def ask(**arguments: Any) -> Result:
    return await call(tool, "forecast", arguments)


async def test_an_operation_answers_with_data_that_fits_its_contract():
    assert await ask(city="Graz", days=2) == Result.ok({"city": "Graz", "celsius": 22.5})


async def test_none_means_found_nothing_where_the_type_says_so():
    assert await ask(city="Atlantis") == Result.empty()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"city": "G"}, "arguments.city"),
        ({"city": 7}, "arguments.city"),
        ({"city": "Graz", "days": "two"}, "arguments.days"),
        ({"city": "Graz", "day": 2}, "('day' was unexpected); the arguments are city, unit, days"),
        ({}, '"city" is a required property'),
    ],
)
async def test_wrong_arguments_are_named_and_nothing_is_called(arguments, told):
    error = (await ask(**arguments)).error
    assert error.code is ErrorCode.INVALID_ARGUMENTS
    assert "weather.forecast" in error.message
    assert told in error.message


async def test_a_result_outside_the_contract_is_a_violation_and_never_data():
    result = await ask(city="Babel")
    assert result.error.code is ErrorCode.CONTRACT_VIOLATION
    assert result.data is None
    assert "result.city" in result.error.message


async def test_a_failure_keeps_its_code_message_and_details():
    error = (await ask(city="Shangri-La")).error
    assert (error.code, error.message, error.details) == (ErrorCode.FORBIDDEN, "no such visa", {"visa": "none"})


async def test_an_unforeseen_exception_is_internal_and_its_text_stays_in_the_log():
    error = (await ask(city="Gomorrah")).error
    assert error.code is ErrorCode.INTERNAL
    assert "RuntimeError" in error.message
    assert "hunter2" not in error.message


async def test_a_call_that_takes_too_long_is_a_timeout():
    assert (await ask(city="Limbo")).error.code is ErrorCode.TIMEOUT


def test_the_contract_comes_from_the_signature_and_leaves_the_call_out():
    contract = tool.operations["weather.forecast"].contract
    assert set(contract.arguments["properties"]) == {"city", "unit", "days"}
    assert contract.arguments["required"] == ["city"]
    assert contract.arguments["additionalProperties"] is False
    assert contract.result["required"] == ["city", "celsius"]
    assert contract.description.startswith("The weather")


def test_an_operation_without_a_description_or_with_untyped_parameters_is_refused_when_defined():
    with pytest.raises(ToolDefinitionError, match="docstring"):

        @tool.operation(effect=Effect.READ)
        async def bare(city: str) -> Forecast: ...

    with pytest.raises(ToolDefinitionError, match="parameter city"):

        @tool.operation(effect=Effect.READ)
        async def untyped(city) -> Forecast:  # type: ignore[no-untyped-def]
            """Has no type hint."""


async def test_explicit_schemas_take_the_place_of_type_hints():
    plain = Tool("plain")

    @plain.operation(
        effect=Effect.READ,
        arguments={"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]},
        result={"type": "integer"},
    )
    async def double(n: int) -> Any:
        """Twice n."""
        return n * 2

    assert await call(plain, "double", {"n": 2}) == Result.ok(4)
    assert "1 or 2" in (await call(plain, "double", {"n": 3})).error.message


async def test_spend_is_reported_and_an_unknown_cost_counts_as_the_whole_grant():
    costly, seen = Tool("costly"), []

    @costly.operation(effect=Effect.READ, cost=Cost(tokens=100, usd_micros=10), timeout_ms=50)
    async def think(call: Call[None], *, deep: bool) -> bool:
        """Thinks."""
        seen.append(call)
        if deep:
            await asyncio.Event().wait()
        call.spend(Spend(tokens=3))
        call.spend(Spend(tokens=4, usd_micros=1))
        return True

    await call(costly, "think", {"deep": False})
    await call(costly, "think", {"deep": True}, grant=Grant(tokens=90, usd_micros=9))
    assert [call.spent for call in seen] == [Spend(tokens=7, usd_micros=1), Spend(tokens=90, usd_micros=9)]


def upstream_that_says(code: ErrorCode, effect: Effect, reconciled: Any = "no way to ask") -> Tool:
    """A tool whose only operation fails with this code, and that may be asked what happened."""
    made = Tool("desk")

    @made.operation(effect=effect)
    async def write() -> str:
        """Writes."""
        raise ToolFailure(code, "says the desk")

    if reconciled != "no way to ask":

        @made.reconcile(write)
        async def what_happened(_call: Call[None]) -> Any:
            if isinstance(reconciled, Exception):
                raise reconciled
            return reconciled

    return made


@pytest.mark.parametrize(("effect", "may"), [(Effect.READ, True), (Effect.IDEMPOTENT, False), (Effect.ONCE, False)])
def test_only_a_read_may_be_repeated(effect, may):
    made = upstream_that_says(ErrorCode.UNAVAILABLE, effect)
    worker = worker_of(made, None, None, FreshLedger())
    request = request_for(made, "write", {})
    assert worker.may_repeat(request) is may
    assert not worker.may_repeat(request.model_copy(update={"operation": "desk.unknown"}))


def test_a_read_that_is_completed_by_a_callback_is_not_repeated():
    made = Tool("desk")

    @made.operation(effect=Effect.READ)
    async def ask() -> str:
        """Asks somebody who takes his time."""
        raise Accepted

    @made.completion(ask)
    async def said(body: str) -> str:
        return body

    assert not worker_of(made, None, None, FreshLedger()).may_repeat(request_for(made, "ask", {}))


async def test_what_is_not_there_is_an_answer_to_a_read_and_an_error_of_a_write():
    assert await call(upstream_that_says(ErrorCode.NOT_FOUND, Effect.READ), "write", {}) == Result.empty()
    error = (await call(upstream_that_says(ErrorCode.NOT_FOUND, Effect.ONCE), "write", {})).error
    assert (error.code, error.details) == (ErrorCode.NOT_FOUND, {"effect": "none"})


@pytest.mark.parametrize("away", [httpx.ConnectError("refused"), ToolFailure(ErrorCode.UNAVAILABLE, "starts again")])
async def test_an_upstream_that_is_away_is_asked_again_what_happened_before_a_person_is(monkeypatch, away):
    monkeypatch.setattr(runtime, "ASK_AGAIN_AFTER_S", (0, 0))
    made = Tool("desk")
    answers: list[Any] = []

    @made.operation(effect=Effect.ONCE)
    async def write() -> str:
        """Writes."""
        raise ToolFailure(ErrorCode.CONFLICT, "says the desk")

    @made.reconcile(write)
    async def what_happened(_call: Call[None]) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    answers[:] = [away, away, "the receipt"]
    assert await call(made, "write", {}) == Result.ok("the receipt")
    answers[:] = [away, away, away, "too late"]
    assert (await call(made, "write", {})).error.code is ErrorCode.IN_DOUBT
    assert answers == ["too late"]


async def test_a_tool_that_does_not_say_in_time_what_happened_leaves_a_doubt_that_says_so():
    made = Tool("desk")

    @made.operation(effect=Effect.ONCE)
    async def write() -> str:
        """Writes."""
        raise ToolFailure(ErrorCode.CONFLICT, "says the desk")

    @made.reconcile(write)
    async def what_happened(_call: Call[None]) -> Any:
        await asyncio.sleep(3_600)

    request = request_for(made, "write", {}).model_copy(update={"timeout_ms": 20})
    error = (await worker_of(made, None, None, FreshLedger()).execute(request, JobAttempt(lease=0))).result.error
    assert error.code is ErrorCode.IN_DOUBT
    assert error.message.endswith("it was asked, and gave no answer within 20 ms")


async def test_a_tool_that_ran_into_a_time_limit_of_its_own_is_not_said_to_have_had_all_of_the_time():
    made = Tool("desk")

    @made.operation(effect=Effect.ONCE)
    async def write() -> str:
        """Writes."""
        raise ToolFailure(ErrorCode.CONFLICT, "says the desk")

    @made.reconcile(write)
    async def what_happened(_call: Call[None]) -> Any:
        raise TimeoutError

    error = (await call(made, "write", {})).error
    assert error.code is ErrorCode.IN_DOUBT
    assert error.message.endswith(": TimeoutError")


class BegunLedger:
    """An earlier attempt began, and nobody knows how it ended."""

    async def begin(self, _request: CallRequest, _attempt: JobAttempt) -> EffectEntry:
        return EffectEntry(EffectState.UNKNOWN)


@pytest.mark.parametrize(("ledger", "told"), [(FreshLedger(), {"effect": "none"}), (BegunLedger(), {})])
async def test_a_refused_repeat_says_nothing_of_what_the_attempt_before_has_done(ledger, told):
    made = Tool("desk")

    @made.operation(effect=Effect.IDEMPOTENT)
    async def reply() -> int:
        """Replies."""
        raise ToolFailure(ErrorCode.RATE_LIMITED, "too many")

    answer = await worker_of(made, None, None, ledger).execute(request_for(made, "reply", {}), JobAttempt(lease=0))
    assert answer.result.error.details == told


async def test_at_a_conflict_the_tool_is_asked_whether_it_was_our_own_key():
    ours = upstream_that_says(ErrorCode.CONFLICT, Effect.IDEMPOTENT, reconciled="the receipt")
    assert await call(ours, "write", {}) == Result.ok("the receipt")
    anothers = upstream_that_says(ErrorCode.CONFLICT, Effect.IDEMPOTENT, reconciled=None)
    assert (await call(anothers, "write", {})).error.code is ErrorCode.CONFLICT
    unknown = upstream_that_says(ErrorCode.CONFLICT, Effect.IDEMPOTENT, reconciled=ToolFailure(ErrorCode.TIMEOUT, "x"))
    assert (await call(unknown, "write", {})).error.code is ErrorCode.IN_DOUBT
    first_attempt = upstream_that_says(ErrorCode.CONFLICT, Effect.IDEMPOTENT)
    error = (await call(first_attempt, "write", {})).error
    assert (error.code, error.details) == (ErrorCode.CONFLICT, {"effect": "none"})


REQUEST = httpx.Request("POST", "http://user:hunter2@desk.example/tickets?token=hunter2")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ErrorCode.INVALID_ARGUMENTS),
        (401, ErrorCode.UNAUTHENTICATED),
        (403, ErrorCode.FORBIDDEN),
        (404, ErrorCode.NOT_FOUND),
        (409, ErrorCode.CONFLICT),
        (422, ErrorCode.INVALID_ARGUMENTS),
        (429, ErrorCode.RATE_LIMITED),
        (500, ErrorCode.UNAVAILABLE),
        (503, ErrorCode.UNAVAILABLE),
        (599, ErrorCode.UNAVAILABLE),
    ],
)
def test_each_http_status_has_a_code_and_tells_no_secret(status, code):
    with pytest.raises(ToolFailure) as caught:
        check_status(httpx.Response(status, request=REQUEST, text="no"))
    assert caught.value.code is code
    assert caught.value.details == {"http_status": status}
    assert "hunter2" not in caught.value.message
    assert "desk.example/tickets" in caught.value.message


PAGE = "<!DOCTYPE html><html><body><h1>Server Error</h1><pre>secret path</pre></body></html>"
TRACE = 'Traceback (most recent call last):\n  File "/srv/app.py", line 7, in <module>\nKeyError: 1'


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"json": {"title": "Bad", "detail": "lines[0].tax_code is unknown"}}, "lines[0].tax_code is unknown · Bad"),
        ({"json": {"error": {"message": "no such plan", "code": 17}}}, "no such plan · 17"),
        ({"json": {"errors": [{"field": "iban"}]}}, '[{"field":"iban"}]'),
        ({"json": {"detail": TRACE}}, "it states no reason"),
        ({"json": ["a", "list"]}, "it states no reason"),
        ({"text": "busy,\n  come back"}, "busy, come back"),
        ({"text": TRACE}, "it states no reason"),
        ({"text": PAGE}, "it states no reason"),
        ({"html": PAGE}, "it states no reason"),
        ({}, "it states no reason"),
    ],
)
def test_of_an_error_only_a_stated_reason_is_kept_and_never_a_page(answer, told):
    with pytest.raises(ToolFailure) as caught:
        check_status(httpx.Response(500, request=REQUEST, **answer))
    assert caught.value.message.endswith(f": {told}")


def test_a_404_that_is_a_page_does_not_come_from_the_api_and_means_nothing():
    with pytest.raises(ToolFailure) as caught:
        check_status(httpx.Response(404, request=REQUEST, html=PAGE))
    assert caught.value.code is ErrorCode.CONTRACT_VIOLATION


PROBLEM = {"content-type": "application/problem+json"}


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        ({"html": PAGE}, ErrorCode.CONTRACT_VIOLATION, "text/html where JSON belongs"),
        ({"text": "OK"}, ErrorCode.CONTRACT_VIOLATION, "text/plain where JSON belongs"),
        (
            {"content": b'{"id": 7', "headers": {"content-type": "application/json"}},
            ErrorCode.CONTRACT_VIOLATION,
            "read",
        ),
        ({"content": b'{"status": 409, "detail": "taken"}', "headers": PROBLEM}, ErrorCode.CONFLICT, "taken"),
        ({"content": b'{"detail": "down"}', "headers": PROBLEM}, ErrorCode.INTERNAL, "down"),
        ({"json": {"ok": False, "error": "not_in_channel"}}, ErrorCode.INTERNAL, "not_in_channel"),
        ({"json": {"error": "unknown"}}, ErrorCode.CONTRACT_VIOLATION, "cannot be told"),
    ],
)
def test_a_200_that_is_no_success_is_an_error(answer, code, told):
    with pytest.raises(ToolFailure) as caught:
        json_content(httpx.Response(200, request=REQUEST, **answer), success="body.ok")
    assert caught.value.code is code
    assert told in caught.value.message
    assert "<h1>" not in caught.value.message


def test_content_is_json_or_nothing():
    assert json_content(httpx.Response(200, request=REQUEST, json={"ok": True}), success="body.ok") == {"ok": True}
    assert json_content(httpx.Response(204, request=REQUEST)) is None
    assert json_content(httpx.Response(200, request=REQUEST)) is None


@pytest.mark.parametrize(
    ("content_type", "raw"),
    [
        ("text/json", '{"n": "café"}'.encode()),
        ("text/json; charset=utf-8", '\ufeff{"n": "café"}'.encode()),
        ("application/vnd.shop.v1+json", '{"n": "café"}'.encode()),
        ("application/json; charset=iso-8859-1", '{"n": "café"}'.encode("latin-1")),
        ("application/json; charset=utf-16", '{"n": "café"}'.encode("utf-16")),
        ("application/json; charset=uft-8", '{"n": "café"}'.encode()),
        ("application/json", '{"n": "café"}'.encode("utf-16")),
    ],
)
def test_json_is_read_whatever_it_is_called_and_in_the_charset_that_it_states(content_type, raw):
    answered = httpx.Response(200, request=REQUEST, headers={"content-type": content_type}, content=raw)
    assert json_content(answered) == {"n": "café"}


@pytest.mark.parametrize("charset", ["latin-9", "x-user-defined", "hex"])
def test_what_an_unknown_charset_says_beyond_ascii_is_replaced(charset):
    headers = {"content-type": f"application/json; charset={charset}"}
    answered = httpx.Response(200, request=REQUEST, headers=headers, content=b'{"id": 7, "n": "caf\xe9"}')
    assert json_content(answered) == {"id": 7, "n": "caf\ufffd"}


def test_json_that_is_not_in_its_charset_is_refused_by_name():
    headers = {"content-type": "application/json; charset=shift_jis"}
    answered = httpx.Response(200, request=REQUEST, headers=headers, content=b'{"n": "\xff"}')
    with pytest.raises(ToolFailure, match="the text is not shift_jis, which its content type states"):
        json_content(answered)


DAY_MS = 24 * 3_600_000
SOON_S = int(time.time()) + 600


@pytest.mark.parametrize(
    ("stated", "least_ms", "most_ms"),
    [
        ("3", 3_000, 3_000),
        ("1.5", 1_500, 1_500),
        ("-7", 0, 0),
        ("1" + "0" * 8, DAY_MS, DAY_MS),
        ("1" + "0" * 20, DAY_MS, DAY_MS),
        (f"{SOON_S}", 1, 600_000),
        (f"{SOON_S}000", 1, 600_000),
        ("1000000001", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_retry_after_is_passed_on_within_bounds_whether_it_is_a_wait_or_a_time(stated, least_ms, most_ms):
    with pytest.raises(ToolFailure) as caught:
        check_status(httpx.Response(429, request=REQUEST, headers={"Retry-After": stated}))
    assert least_ms <= caught.value.retry_after_ms <= most_ms


@pytest.mark.parametrize("stated", ["soon", "nan", "inf", "", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_none(stated):
    with pytest.raises(ToolFailure) as caught:
        check_status(httpx.Response(429, request=REQUEST, headers={"Retry-After": stated}))
    assert caught.value.retry_after_ms is None


@pytest.mark.parametrize(
    ("error", "code", "undone"),
    [
        (httpx.ConnectError("x", request=REQUEST), ErrorCode.UNAVAILABLE, True),
        (httpx.ConnectTimeout("x", request=REQUEST), ErrorCode.UNAVAILABLE, True),
        (httpx.ReadTimeout("x", request=REQUEST), ErrorCode.TIMEOUT, False),
        (httpx.ReadError("x", request=REQUEST), ErrorCode.UNAVAILABLE, False),
        (httpx.RemoteProtocolError("x"), ErrorCode.UNAVAILABLE, False),
    ],
)
def test_only_what_never_left_is_certainly_undone(error, code, undone):
    failure = failure_of_request(error)
    assert (failure.code, failure.undone) == (code, undone)
    assert "hunter2" not in failure.message


@pytest.mark.parametrize(
    ("error", "undone"), [(asyncpg.SerializationError, True), (asyncpg.StatementCompletionUnknownError, False)]
)
def test_a_database_that_does_not_know_whether_it_committed_has_not_said_no(error, undone):
    failure = failure_of_postgres(error("restart transaction"), "crm.pay", undone=True)
    assert failure is not None
    assert failure.undone is undone


def test_a_reference_that_leads_to_no_tool_says_what_is_wrong():
    assert load_tool("triptych.tools.adapters.echo:tool").name == "echo"
    for reference, told in {
        "echo": "MODULE:ATTRIBUTE",
        "triptych.nowhere:tool": "Python path",
        "triptych.tools.adapters.echo:hammer": "has no hammer",
        "triptych.tools.adapters.echo:Echo": "not a triptych.tools.Tool",
    }.items():
        with pytest.raises(ConfigurationError, match=told):
            load_tool(reference)


def test_a_scaffolded_tool_is_written_once_and_its_name_is_checked(tmp_path):
    module, test = scaffold("parcels", tmp_path)
    assert "[tools.parcels]" in module.read_text("utf-8")
    assert test.name == "test_parcels.py"
    with pytest.raises(ScaffoldError, match="is there already"):
        scaffold("parcels", tmp_path)
    for name in ("Parcels", "import", "9lives", "a-b"):
        with pytest.raises(ScaffoldError, match="cannot name a tool"):
            scaffold(name, tmp_path)


async def test_a_scaffolded_tool_works(tmp_path, monkeypatch):
    scaffold("parcels", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = await call(load_tool("parcels:tool"), "greet", {"who": "Ana"})
    assert (result.status, result.data) == (ResultStatus.OK, {"text": "Hello Ana"})


@pytest.mark.parametrize(
    ("effect", "told", "code", "details"),
    [
        (Effect.ONCE, Result.ok("paid"), ErrorCode.CONTRACT_VIOLATION, {"effect": "done"}),
        (Effect.IDEMPOTENT, Result.empty(), ErrorCode.CONTRACT_VIOLATION, {"effect": "done"}),
        (Effect.READ, Result.ok("seen"), ErrorCode.CONTRACT_VIOLATION, {}),
        (Effect.ONCE, Result.failed(ErrorCode.CONFLICT, "no", effect="none"), ErrorCode.CONFLICT, {"effect": "none"}),
        (
            Effect.ONCE,
            Result.failed(ErrorCode.CONTRACT_VIOLATION, "odd", effect="done", odd="\0"),
            ErrorCode.CONTRACT_VIOLATION,
            {"effect": "done"},
        ),
        (Effect.ONCE, Result.failed(ErrorCode.IN_DOUBT, "who knows", odd="\0"), ErrorCode.IN_DOUBT, {}),
    ],
)
def test_in_the_place_of_an_answer_that_cannot_be_stored_what_is_known_of_its_effect_stays_known(
    effect, told, code, details
):
    made = upstream_that_says(ErrorCode.UNAVAILABLE, effect)
    worker, request = worker_of(made, None, None, FreshLedger()), request_for(made, "write", {})
    spend = Spend(tokens=3)
    given = CallAnswer(request_id=request.request_id, run_id=request.run_id, tenant="acme", spend=spend, result=told)
    instead = worker.unstorable(request, given, "the database refuses it")
    assert (instead.result.error.code, instead.result.error.details) == (code, details)
    assert instead.result.error.message == "the database refuses it"
    assert instead.spend == spend


def test_a_write_that_is_done_leaves_a_receipt_although_its_answer_cannot_be_stored():
    made = upstream_that_says(ErrorCode.UNAVAILABLE, Effect.ONCE)
    worker, request = worker_of(made, None, None, FreshLedger()), request_for(made, "write", {})
    given = CallAnswer(request_id=request.request_id, run_id=request.run_id, tenant="acme", result=Result.ok("paid"))
    instead = worker.unstorable(request, given, "the database refuses it")
    *_, receipt = _outcome(Finished(request, instead, None, instead.to_bytes()))
    assert receipt == instead.result.to_bytes()
