"""The example servers as their clients meet them: real processes, real HTTP, real kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, UnexpectedModelBehavior
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from triptych.schemas import StepSpec

START_DEADLINE_S = 30
TOKEN = "t0ken"  # noqa: S105 - of a server that lives as long as its test
REPLY = {"subject": "Re: Seats", "body": "You can buy seats in the settings."}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process of its own, with its URL once it answers."""
    port = free_port()
    command = [sys.executable, "-m", f"triptych.examples.{module}", "--port", str(port), *arguments]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env={**os.environ, "HELPDESK_TOKEN": TOKEN}) as process:
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not answers(url):
                assert process.poll() is None, f"{module} ended with {process.returncode}"
                assert time.monotonic() < deadline, f"{module} did not answer at {url}"
                time.sleep(0.05)
            yield process, url
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


# The helpdesk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("helpdesk") / "helpdesk.sqlite"


def client_of(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20)


@pytest.fixture(scope="module")
def helpdesk(data: Path) -> Iterator[httpx.Client]:
    with running("helpdesk", "--data", str(data)) as (_, url), client_of(url) as client:
        yield client


def reply(client: httpx.Client, ticket: str, key: str, **changes: str) -> httpx.Response:
    return client.post(f"/tickets/{ticket}/replies", json={**REPLY, **changes}, headers={"Idempotency-Key": key})


def times_applied(client: httpx.Client, key: str) -> int:
    return sum(effect["key"] == key for effect in client.get("/ledger").json()["effects"])


def test_a_write_takes_effect_and_shows_on_its_ticket(helpdesk: httpx.Client) -> None:
    written = reply(helpdesk, "T-1", "k-1")
    assert written.status_code == 201
    assert set(written.json()) == {"ticket_id", "id", "created_at"}
    assert [seen["body"] for seen in helpdesk.get("/tickets/T-1").json()["replies"]] == [REPLY["body"]]


def test_every_kind_of_write_is_accepted(helpdesk: httpx.Client) -> None:
    bodies = {
        "acknowledgements": {"text": "We are on it."},
        "tags": {"tags": ["billing"]},
        "assignments": {"team": "duty-desk", "note": "Urgent."},
    }
    for operation, body in bodies.items():
        path, headers = f"/tickets/T-kinds/{operation}", {"Idempotency-Key": operation}
        assert helpdesk.post(path, json=body, headers=headers).status_code == 201
    assert [seen["ticket_id"] for seen in helpdesk.get("/tickets?tag=billing").json()["tickets"]] == ["T-kinds"]


def test_a_repeat_gets_the_stored_answer_and_has_no_effect(helpdesk: httpx.Client) -> None:
    first, again = reply(helpdesk, "T-2", "k-2"), reply(helpdesk, "T-2", "k-2")
    assert first.json() == again.json()
    assert "idempotent-replay" not in first.headers
    assert again.headers["idempotent-replay"] == "true"
    assert times_applied(helpdesk, "k-2") == 1
    assert helpdesk.get("/ledger").json()["requests"]["k-2"] == 2


def test_a_key_is_refused_for_another_body(helpdesk: httpx.Client) -> None:
    reply(helpdesk, "T-3", "k-3")
    assert reply(helpdesk, "T-3", "k-3", body="Something else.").status_code == 409


def test_a_write_needs_a_key_a_token_and_a_body_that_fits(helpdesk: httpx.Client) -> None:
    assert helpdesk.post("/tickets/T-4/replies", json=REPLY).status_code == 400
    assert reply(helpdesk, "T-4", "k-4", subject="").status_code == 422
    anonymous = httpx.post(f"{helpdesk.base_url}/tickets/T-4/replies", json=REPLY, headers={"Idempotency-Key": "k-4"})
    assert anonymous.status_code == 401
    assert helpdesk.get("/tickets/T-4").status_code == 404


def test_a_dropped_connection_after_the_work_can_be_reconciled_or_repeated(helpdesk: httpx.Client) -> None:
    helpdesk.post("/faults", json={"fault": "drop_after", "operation": "replies", "ticket": "T-5"})
    with pytest.raises(httpx.TransportError):
        reply(helpdesk, "T-5", "k-5")
    assert helpdesk.get("/effects", params={"key": "k-5"}).json()["ticket"] == "T-5"
    assert reply(helpdesk, "T-5", "k-5").headers["idempotent-replay"] == "true"
    assert times_applied(helpdesk, "k-5") == 1


def test_a_dropped_connection_before_the_work_leaves_nothing(helpdesk: httpx.Client) -> None:
    helpdesk.post("/faults", json={"fault": "drop_before", "ticket": "T-6"})
    with pytest.raises(httpx.TransportError):
        reply(helpdesk, "T-6", "k-6")
    assert helpdesk.get("/effects", params={"key": "k-6"}).status_code == 404
    assert reply(helpdesk, "T-6", "k-6").status_code == 201


def test_it_fails_as_it_is_told_and_stops_when_told(helpdesk: httpx.Client) -> None:
    helpdesk.post("/faults", json={"fault": "500", "ticket": "T-7"})
    helpdesk.post("/faults", json={"fault": "429", "ticket": "T-7", "retry_after_s": 0.5})
    helpdesk.post("/faults", json={"fault": "hang", "ticket": "T-7", "hang_ms": 10})
    failed, limited, late = (reply(helpdesk, "T-7", "k-7") for _ in range(3))
    assert (failed.status_code, limited.status_code, late.status_code) == (500, 429, 201)
    assert limited.headers["retry-after"] == "0.5"
    helpdesk.post("/faults", json={"fault": "503", "ticket": "T-7", "times": 100})
    assert reply(helpdesk, "T-7", "k-8").status_code == 503
    helpdesk.delete("/faults")
    assert reply(helpdesk, "T-7", "k-8").status_code == 201


def test_tickets_known_for_trouble_give_it_without_setup(helpdesk: httpx.Client) -> None:
    assert [reply(helpdesk, "T-flaky-8", "k-flaky").status_code for _ in range(3)] == [503, 503, 201]
    assert [reply(helpdesk, "T-limited-8", "k-limited").status_code for _ in range(2)] == [429, 201]
    assert [reply(helpdesk, "T-down-8", "k-down").status_code for _ in range(4)] == [503] * 4
    assert helpdesk.get("/tickets/T-down-8").status_code == 503
    with pytest.raises(httpx.TransportError):
        reply(helpdesk, "T-drop-8", "k-drop")
    assert times_applied(helpdesk, "k-drop") == 1


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "killed.sqlite"
    with running("helpdesk", "--data", str(file)) as (process, url), client_of(url) as client:
        before = reply(client, "T-9", "k-9").json()
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with running("helpdesk", "--data", str(file)) as (_, url), client_of(url) as client:
        again = reply(client, "T-9", "k-9")
        assert again.json() == before
        assert again.headers["idempotent-replay"] == "true"
        assert times_applied(client, "k-9") == 1
        assert client.get("/ledger").json()["requests"]["k-9"] == 2


def test_it_ends_well_on_sigterm(tmp_path: Path) -> None:
    with running("helpdesk", "--data", str(tmp_path / "ended.sqlite")) as (process, _):
        process.terminate()
        assert process.wait() == 0


# The scripted model, through the client that the services use


class Classification(BaseModel):
    category: str
    urgency: str
    confidence: float
    summary: str


class Draft(BaseModel):
    subject: str
    body: str
    citations: list[str]


class Written(BaseModel):
    steps: list[StepSpec]


class Answered(BaseModel):
    answer: str
    citations: list[str]


ARTICLE = {"id": "kb-1", "title": "Refund a payment", "body": "Open the payment and choose Refund.", "score": 0.9}
TICKET = {"subject": "Refund", "body": "How do I refund a payment?", "customer": "Ana", "articles": [ARTICLE]}
OPERATIONS = [{"operation": name} for name in ("kb.search", "helpdesk.lookup", "model.draft", "helpdesk.assign")]
REVIEW = {"account": "Osterfeld", "ticket_id": "T-1", "question": "How do I refund a payment?"}


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with running("model_server") as (_, url):
        yield url


@pytest.fixture(scope="module")
async def provider(model_url: str) -> AsyncIterator[OpenAIProvider]:
    async with httpx2.AsyncClient() as http:
        yield OpenAIProvider(base_url=f"{model_url}/v1", api_key="any", http_client=http)


@pytest.fixture(scope="module")
def model(provider: OpenAIProvider) -> OpenAIChatModel:
    return OpenAIChatModel("scripted-strong", provider=provider)


async def ask(model: OpenAIChatModel, task: str, material: dict[str, Any], output: Any, retries: int = 0) -> Any:
    agent = Agent(model, output_type=output, system_prompt=f"TASK: {task}\nAnswer.", retries=retries)
    return await agent.run(json.dumps(material))


@pytest.mark.parametrize("form", [lambda kind: kind, NativeOutput, PromptedOutput], ids=["tool", "native", "prompted"])
@pytest.mark.parametrize(
    ("task", "material", "kind"),
    [
        ("classify", {"input": TICKET}, Classification),
        ("draft", {"input": TICKET}, Draft),
        ("plan", {"input": REVIEW, "operations": OPERATIONS, "revision": 1}, Written),
        ("answer", {"input": {"question": TICKET["body"], "articles": [ARTICLE]}}, Answered),
    ],
)
async def test_every_task_is_answered_in_every_form(
    model: OpenAIChatModel, form: Any, task: str, material: dict[str, Any], kind: type[BaseModel]
) -> None:
    told = await ask(model, task, material, form(kind))
    assert isinstance(told.output, kind)
    assert told.usage.input_tokens > 0
    assert told.usage.output_tokens > 0


def test_a_verdict_has_the_field_pass(model_url: str) -> None:
    schema = {"type": "object", "properties": {name: {} for name in ("pass", "confidence", "evidence")}}
    request = {
        "model": "scripted-cheap",
        "messages": [
            {"role": "system", "content": "TASK: judge"},
            {"role": "user", "content": json.dumps({"answer": ARTICLE["body"], "sources": [ARTICLE]})},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}},
    }
    answer = httpx.post(f"{model_url}/v1/chat/completions", json=request).json()
    assert json.loads(answer["choices"][0]["message"]["content"])["pass"] is True


async def test_the_same_prompt_gets_the_same_answer(model: OpenAIChatModel) -> None:
    first, again = [await ask(model, "draft", {"input": TICKET}, Draft) for _ in range(2)]
    assert first.output == again.output


async def test_a_bare_list_is_wrapped_as_the_client_asks(model: OpenAIChatModel) -> None:
    told = await ask(model, "plan", {"input": REVIEW, "operations": OPERATIONS}, list[StepSpec])
    assert [step.operation for step in told.output] == [offer["operation"] for offer in OPERATIONS]


def provoking(marker: str, text: str) -> dict[str, Any]:
    return {"input": {**TICKET, "body": f"{text} [[model:{marker}]]"}}


async def test_invalid_json_once_is_mended_by_one_repair(model: OpenAIChatModel) -> None:
    material = provoking("invalid-json-once", "How do I refund it?")
    told = await ask(model, "draft", material, Draft, retries=1)
    assert told.usage.requests == 2
    assert "[[" not in told.output.body


async def test_a_truncated_answer_never_becomes_valid(model: OpenAIChatModel) -> None:
    with pytest.raises(UnexpectedModelBehavior):
        await ask(model, "draft", provoking("truncate", "Refund?"), Draft, retries=1)


async def test_an_answer_is_cut_at_the_tokens_the_client_allows(model: OpenAIChatModel) -> None:
    agent = Agent(model, system_prompt="TASK: draft", output_type=str, model_settings={"max_tokens": 10})
    told = await agent.run(json.dumps({"input": TICKET}))
    assert told.response.finish_reason == "length"
    assert told.usage.output_tokens == 10


async def test_a_refusal_is_told_as_one(model: OpenAIChatModel) -> None:
    with pytest.raises(ContentFilterError):
        await ask(model, "draft", provoking("refuse", "Refund?"), NativeOutput(Draft))


def test_faults_can_be_armed_over_http(model_url: str) -> None:
    request = {
        "model": "scripted-cheap",
        "messages": [
            {"role": "system", "content": "TASK: classify"},
            {"role": "user", "content": json.dumps({"input": {"subject": "T-armed"}})},
        ],
    }
    completions = f"{model_url}/v1/chat/completions"
    httpx.post(f"{model_url}/faults", json={"fault": "429", "operation": "classify", "ticket": "T-armed"})
    assert [httpx.post(completions, json=request).status_code for _ in range(2)] == [429, 200]


async def test_an_unknown_model_is_refused(provider: OpenAIProvider) -> None:
    with pytest.raises(ModelHTTPError) as refused:
        await ask(OpenAIChatModel("gpt-nonesuch", provider=provider), "draft", {"input": TICKET}, Draft)
    assert refused.value.status_code == 404


def test_a_prompt_without_a_task_is_refused(model_url: str) -> None:
    request = {"model": "scripted-strong", "messages": [{"role": "user", "content": "Hello"}]}
    refused = httpx.post(f"{model_url}/v1/chat/completions", json=request)
    assert refused.status_code == 400
    assert "TASK" in refused.json()["error"]["message"]
