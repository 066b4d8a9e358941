"""Each provider's real client against a server that speaks the provider's API, and the order in which they are asked."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn

from triptych.examples.model_server.app import create_app
from triptych.examples.serving import SeveringProtocol
from triptych.models import ModelClient, ModelFailure, ModelReply, ModelSettings
from triptych.schemas import ErrorCode, Grant

GRANT = Grant(tokens=4_000, usd_micros=100_000)
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["category"],
    "properties": {"category": {"type": "string"}, "confidence": {"type": "number"}},
}
KEY = "a-key-of-our-own"
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Provider:
    """A server that is asked by real clients, and what they asked."""

    url: str
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        provider = Provider(f"http://127.0.0.1:{bound.getsockname()[1]}")
        served = create_app()

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] != "/faults":
                headers = {name.decode(): value.decode() for name, value in scope["headers"]}
                provider.requests.append((scope["path"], headers))
            await served(scope, receive, send)

        config = uvicorn.Config(
            watched, log_level="warning", lifespan="off", http=SeveringProtocol, timeout_graceful_shutdown=1
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()
        yield provider
        running.should_exit = True
        thread.join()


@pytest.fixture
def provider(server: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    server.requests.clear()
    monkeypatch.setenv("OUR_KEY", KEY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret")
    yield server
    httpx.delete(f"{server.url}/faults").raise_for_status()


def settings(url: str, *names: str, **changes: Any) -> ModelSettings:
    endpoints = {
        "gpt": {"provider": "openai", "base_url": f"{url}/v1", "key_env": "OUR_KEY"},
        "claude": {"provider": "anthropic", "base_url": url, "key_env": "OUR_KEY"},
        "gemini": {"provider": "google", "base_url": url, "key_env": "OUR_KEY"},
        "aws": {"provider": "bedrock", "base_url": url, "region": "eu-central-1"},
        "azure-eu": {"provider": "azure", "base_url": url, "key_env": "OUR_KEY", "api_version": "2024-10-21"},
        "ollama-gpu": {"provider": "ollama", "base_url": f"{url}/v1"},
        "other": {"provider": "openai-compatible", "base_url": f"{url}/v1", "key_env": "OUR_KEY"},
        "gone": {"provider": "anthropic", "base_url": NOWHERE, "key_env": "OUR_KEY"},
    }
    prices = {"ollama-gpu:scripted-cheap": (0.0, 0.0), "other:scripted-cheap": (0.5, 1.5)}
    return ModelSettings(**{"cheap": ", ".join(names), "endpoints": endpoints, "prices": prices} | changes)


async def ask(configured: ModelSettings, body: str = "Please refund my invoice.", **changes: Any) -> ModelReply:
    async with ModelClient(configured) as client:
        return await asked(client, body, **changes)


async def asked(client: ModelClient, body: str = "Please refund my invoice.", **changes: Any) -> ModelReply:
    limits = {"grant": GRANT, "timeout_ms": 10_000} | changes
    return await client.ask("classify", "cheap", {"input": {"subject": "Refund", "body": body}}, FORM, **limits)


def arm(provider: Provider, fault: str, **more: Any) -> None:
    httpx.post(f"{provider.url}/faults", json={"fault": fault, **more}).raise_for_status()


PROVIDERS = [
    ("other:scripted-cheap", "/v1/chat/completions", "authorization"),
    ("ollama-gpu:scripted-cheap", "/v1/chat/completions", None),
    ("claude:claude-haiku-4-5", "/v1/messages", "authorization"),
    ("gemini:gemini-2.5-flash", "/v1beta/models/gemini-2.5-flash:generateContent", "x-goog-api-key"),
    ("aws:us.amazon.nova-lite-v1:0", "/model/us.amazon.nova-lite-v1:0/converse", "authorization"),
    ("azure-eu:gpt-4o-mini", "/openai/deployments/gpt-4o-mini/chat/completions", "api-key"),
]
NAMES = [name for name, _, _ in PROVIDERS]


@pytest.mark.parametrize(("name", "path", "header"), PROVIDERS, ids=NAMES)
async def test_each_provider_is_asked_in_its_own_words_under_its_own_key(
    provider: Provider, name: str, path: str, header: str | None
) -> None:
    reply = await ask(settings(provider.url, name))
    assert reply.output["category"] == "billing"
    assert provider.paths == [path]
    if header is not None:
        assert KEY in provider.requests[0][1][header]
    (call,) = reply.spend.model_calls
    assert (call.model, call.tier, call.failed) == (name, "cheap", "")
    assert reply.spend.tokens == call.tokens_in + call.tokens_out > 0
    assert (reply.spend.usd_micros > 0) is (not name.startswith("ollama"))


async def test_openai_itself_is_asked_by_the_same_words(provider: Provider) -> None:
    with pytest.raises(ModelFailure, match="HTTP 404"):
        await ask(settings(provider.url, "gpt:gpt-4o-mini"))
    assert provider.paths == ["/v1/chat/completions"]
    assert KEY in provider.requests[0][1]["authorization"]


@pytest.mark.parametrize(("variable", "name"), [("ANTHROPIC", "anthropic:claude-haiku-4-5")])
async def test_a_provider_without_an_endpoint_reads_its_own_variables(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv(f"{variable}_API_KEY", KEY)
    monkeypatch.setenv(f"{variable}_BASE_URL", provider.url)
    assert (await ask(ModelSettings(cheap=name))).output["category"] == "billing"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("marker", "fault", "code"),
    [("truncate", "truncated", ErrorCode.CONTRACT_VIOLATION), ("refuse", "refused", ErrorCode.FORBIDDEN)],
)
async def test_a_cut_answer_and_a_refusal_are_known_in_every_language(
    provider: Provider, name: str, marker: str, fault: str, code: ErrorCode
) -> None:
    with pytest.raises(ModelFailure) as caught:
        await ask(settings(provider.url, name), f"Refund, please. [[model:{marker}]]")
    assert (caught.value.code, caught.value.details["model"]) == (code, fault)
    (call,) = caught.value.spend.model_calls
    assert call.failed == fault
    assert call.tokens_out > 0


@pytest.mark.parametrize("name", NAMES)
async def test_a_busy_provider_is_asked_once_and_costs_nothing(provider: Provider, name: str) -> None:
    arm(provider, "429", times=5, retry_after_s=2)
    with pytest.raises(ModelFailure) as caught:
        await ask(settings(provider.url, name))
    assert caught.value.code is ErrorCode.RATE_LIMITED
    assert caught.value.spend.tokens == 0
    assert len(provider.requests) == 1


@pytest.mark.parametrize("name", NAMES)
async def test_a_provider_that_does_not_answer_in_time_is_given_up(provider: Provider, name: str) -> None:
    arm(provider, "hang", hang_ms=60_000)
    with pytest.raises(ModelFailure) as caught:
        await ask(settings(provider.url, name), timeout_ms=300)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert caught.value.spend.tokens == GRANT.tokens


async def test_the_next_model_answers_when_the_first_is_not_there(provider: Provider) -> None:
    reply = await ask(settings(provider.url, "gone:claude-haiku-4-5", "gemini:gemini-2.5-flash"))
    assert reply.output["category"] == "billing"
    first, second = reply.spend.model_calls
    assert (first.model, first.failed, first.tokens_in) == ("gone:claude-haiku-4-5", "unavailable", 0)
    assert (second.model, second.failed) == ("gemini:gemini-2.5-flash", "")
    assert reply.spend.tokens == second.tokens_in + second.tokens_out


@pytest.mark.parametrize(("fault", "code"), [("429", "rate_limited"), ("503", "unavailable"), ("500", "unavailable")])
async def test_the_next_model_answers_when_the_first_is_busy_or_broken(
    provider: Provider, fault: str, code: str
) -> None:
    arm(provider, fault)
    reply = await ask(settings(provider.url, "claude:claude-haiku-4-5", "aws:us.amazon.nova-lite-v1:0"))
    assert [call.failed for call in reply.spend.model_calls] == [code, ""]


async def test_a_model_that_was_not_there_is_asked_last_for_a_while(provider: Provider) -> None:
    configured = settings(provider.url, "claude:claude-haiku-4-5", "gemini:gemini-2.5-flash")
    arm(provider, "429", retry_after_s=1)
    async with ModelClient(configured) as client:
        assert len((await asked(client)).spend.model_calls) == 2
        second = await asked(client)
        assert [call.model for call in second.spend.model_calls] == ["gemini:gemini-2.5-flash"]
        await asyncio.sleep(1.1)
        third = await asked(client)
        assert [call.model for call in third.spend.model_calls] == ["claude:claude-haiku-4-5"]


async def test_when_no_model_is_there_every_one_is_named(provider: Provider) -> None:
    arm(provider, "429", retry_after_s=2)
    configured = settings(provider.url, "other:scripted-cheap", "gone:claude-haiku-4-5")
    with pytest.raises(ModelFailure, match=r"other:scripted-cheap .* 429.*; then gone:claude-haiku-4-5") as caught:
        await ask(configured)
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert [call.failed for call in caught.value.spend.model_calls] == ["rate_limited", "unavailable"]


@pytest.mark.parametrize("marker", ["refuse", "truncate", "invalid-json-once"])
async def test_a_bad_answer_is_an_answer_and_nobody_else_is_asked(provider: Provider, marker: str) -> None:
    configured = settings(provider.url, "claude:claude-haiku-4-5", "gemini:gemini-2.5-flash")
    with pytest.raises(ModelFailure):
        await ask(configured, f"Refund! {time.monotonic_ns()} [[model:{marker}]]")
    assert provider.paths == ["/v1/messages"]


async def test_a_lost_answer_may_have_cost_the_grant_so_nobody_else_is_asked(provider: Provider) -> None:
    arm(provider, "drop_after")
    configured = settings(provider.url, "claude:claude-haiku-4-5", "gemini:gemini-2.5-flash")
    with pytest.raises(ModelFailure) as caught:
        await ask(configured)
    assert caught.value.spend.tokens == GRANT.tokens
    assert provider.paths == ["/v1/messages"]
