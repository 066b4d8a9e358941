"""The model client against a real HTTP endpoint, well behaved and not."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from triptych.kernel.process.health import serve_app
from triptych.models import ModelClient, ModelFailure, ModelReply, ModelSettings
from triptych.schemas import ErrorCode, Grant, Spend

GRANT = Grant(tokens=4_000, usd_micros=10_000)
WHOLE = Spend(tokens=GRANT.tokens, usd_micros=GRANT.usd_micros)
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["category", "confidence"],
    "properties": {"category": {"type": "string"}, "confidence": {"type": "number"}},
}


class Classified(BaseModel):
    category: str
    urgency: str


def settings(url: str) -> ModelSettings:
    prices = {"scripted-cheap": (0.5, 1.5), "scripted-strong": (3.0, 15.0)}
    return ModelSettings(base_url=f"{url}/v1", cheap="scripted-cheap", strong="scripted-strong", prices=prices)


async def ask(url: str, body: str = "Please refund my invoice.", form: Any = FORM, **changes: Any) -> ModelReply:
    limits = {"grant": GRANT, "timeout_ms": 10_000} | changes
    payload = {"input": {"subject": "Refund", "body": body}}
    async with ModelClient(settings(url)) as client:
        return await client.ask("classify", "cheap", payload, form, **limits)


async def failure(url: str, body: str = "Please refund my invoice.", **changes: Any) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        await ask(url, body, **changes)
    return caught.value


def arm(url: str, fault: str, **more: Any) -> None:
    httpx.post(f"{url}/faults", json={"fault": fault, **more}).raise_for_status()


def disarm(url: str) -> None:
    httpx.delete(f"{url}/faults").raise_for_status()


def armed(url: str) -> list[int]:
    """How many times each armed fault can still strike."""
    return [fault["times"] for fault in httpx.get(f"{url}/faults").json()]


async def test_a_structured_answer_comes_with_what_it_cost(model_server: str) -> None:
    reply = await ask(model_server)
    assert reply.output["category"] == "billing"
    (call,) = reply.spend.model_calls
    assert (call.model, call.tier) == ("scripted-cheap", "cheap")
    assert reply.spend.tokens == call.tokens_in + call.tokens_out > 0
    assert reply.spend.usd_micros == -(-(call.tokens_in + 3 * call.tokens_out) // 2)


async def test_the_form_may_be_a_pydantic_model(model_server: str) -> None:
    reply = await ask(model_server, form=Classified)
    assert set(reply.output) == {"category", "urgency"}


@pytest.mark.parametrize(
    ("marker", "code", "complaint"),
    [
        ("invalid-json-once", ErrorCode.CONTRACT_VIOLATION, "not JSON"),
        ("truncate", ErrorCode.CONTRACT_VIOLATION, "was cut off at"),
        ("refuse", ErrorCode.FORBIDDEN, "refused to answer"),
        ("500-once", ErrorCode.UNAVAILABLE, "HTTP 500"),
    ],
)
async def test_each_misbehaviour_has_a_name_of_its_own(
    model_server: str, marker: str, code: ErrorCode, complaint: str
) -> None:
    failed = await failure(model_server, f"Refund, please. [[model:{marker}]]")
    assert failed.code is code
    assert complaint in failed.message
    assert (failed.spend.tokens > 0) is (code is not ErrorCode.UNAVAILABLE)


async def test_an_output_that_does_not_fit_names_the_field(model_server: str) -> None:
    form = {"type": "object", "properties": {"category": {"type": "integer"}}}
    failed = await failure(model_server, form=form)
    assert failed.code is ErrorCode.CONTRACT_VIOLATION
    assert "category: " in failed.message


async def test_a_rate_limit_says_how_long_to_wait_and_costs_nothing(model_server: str) -> None:
    arm(model_server, "429", retry_after_s=2)
    failed = await failure(model_server)
    assert (failed.code, failed.retry_after_ms, failed.spend.tokens) == (ErrorCode.RATE_LIMITED, 2_000, 0)


async def test_one_attempt_is_one_request(model_server: str) -> None:
    arm(model_server, "503", times=2)
    assert (await failure(model_server)).code is ErrorCode.UNAVAILABLE
    assert armed(model_server) == [1]
    assert (await failure(model_server)).code is ErrorCode.UNAVAILABLE


async def test_a_call_that_takes_too_long_counts_as_the_whole_grant(model_server: str) -> None:
    arm(model_server, "hang", hang_ms=20_000)
    failed = await failure(model_server, timeout_ms=200)
    assert failed.code is ErrorCode.TIMEOUT
    assert (failed.spend.tokens, failed.spend.usd_micros) == (WHOLE.tokens, WHOLE.usd_micros)


async def test_a_connection_that_breaks_after_the_question_counts_as_the_whole_grant(model_server: str) -> None:
    arm(model_server, "drop_after")
    failed = await failure(model_server)
    assert failed.code is ErrorCode.UNAVAILABLE
    assert failed.spend.tokens == WHOLE.tokens


@asynccontextmanager
async def endpoint(call: dict[str, Any], finish: str, usage: dict[str, Any]) -> AsyncIterator[str]:
    """A server that always gives this call of a tool; gives its URL."""
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    completion = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}

    async def complete(_request: Request) -> JSONResponse:
        return JSONResponse(completion | {"usage": usage})

    app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with serve_app(app, "127.0.0.1", port, "endpoint"):
        yield f"http://127.0.0.1:{port}"


SAID = {"category": "billing", "confidence": 1}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@pytest.mark.parametrize(
    ("call", "finish"),
    [
        ({"id": "1", "type": "function", "function": {"name": "answer", "arguments": SAID}}, "tool_calls"),
        ({"type": "function", "function": {"name": "answer", "arguments": json.dumps(SAID)}}, "tool_calls"),
        ({"id": None, "type": "function", "function": {"name": "answer", "arguments": SAID}}, "stop"),
        ({"id": "1", "type": "function", "function": {"name": "answer", "arguments": json.dumps(SAID)}}, "length"),
    ],
)
async def test_a_server_that_almost_speaks_the_api_is_understood(call: dict[str, Any], finish: str) -> None:
    async with endpoint(call, finish, USAGE) as url:
        reply = await ask(url)
    assert (reply.output, reply.spend.tokens) == (SAID, 15)


async def test_an_answer_whose_usage_cannot_be_is_used_and_counts_as_the_whole_grant() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "answer", "arguments": json.dumps(SAID)}}
    async with endpoint(call, "tool_calls", USAGE | {"prompt_tokens_details": {"cached_tokens": 50}}) as url:
        reply = await ask(url)
    assert reply.output == {"category": "billing", "confidence": 1}
    assert (reply.spend.tokens, reply.spend.usd_micros) == (GRANT.tokens, GRANT.usd_micros)


async def test_an_endpoint_that_is_not_there_costs_nothing() -> None:
    failed = await failure("http://127.0.0.1:9")
    assert failed.code is ErrorCode.UNAVAILABLE
    assert failed.spend.tokens == 0


async def test_nothing_is_sent_that_the_grant_does_not_cover(model_server: str) -> None:
    arm(model_server, "500")
    failed = await failure(model_server, grant=Grant(tokens=100, usd_micros=10_000))
    assert failed.code is ErrorCode.BUDGET_EXCEEDED
    assert failed.spend == Spend()
    assert armed(model_server) == [1]
    disarm(model_server)


async def test_a_tier_that_is_not_configured_says_what_to_set(model_server: str) -> None:
    async with ModelClient(settings(model_server)) as client:
        with pytest.raises(ModelFailure, match="set TRIPTYCH_MODEL_STRONG"):
            await client.ask("classify", "huge", {}, FORM, grant=GRANT, timeout_ms=1_000)
