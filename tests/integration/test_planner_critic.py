"""Planner and critic as services: on a real broker, a real database, and a model behind HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import aiokafka
import httpx
import pytest

from triptych.critic.__main__ import serve as serve_critic
from triptych.kernel.postgres.migrate import MODELS, WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.models import ModelSettings
from triptych.planner.__main__ import serve as serve_planner
from triptych.schemas import (
    Answer,
    Contract,
    Decision,
    Effect,
    ErrorCode,
    FixedPlan,
    Grant,
    Judge,
    ModelPlan,
    Pin,
    PlanAnswer,
    PlanRequest,
    Reason,
    Request,
    Result,
    ReviewRequest,
    Step,
    StepRecord,
    StepSpec,
    ToolContracts,
    Unmet,
    VerdictAnswer,
)

AnswerT = TypeVar("AnswerT", bound=Answer)
ANYTHING = {"type": "object"}


def contract(operation: str, *arguments: str, effect: Effect = Effect.READ) -> Contract:
    schema = {"type": "object", "properties": {name: {} for name in arguments}, "required": list(arguments)}
    return Contract(operation=operation, description=operation, arguments=schema, result=ANYTHING, effect=effect)


TOOLS = (
    ToolContracts(tool="kb", contracts=(contract("kb.search", "query", "limit"),)),
    ToolContracts(
        tool="helpdesk",
        contracts=(
            contract("helpdesk.lookup", "ticket_id"),
            contract("helpdesk.assign", "ticket_id", "team", "note", effect=Effect.IDEMPOTENT),
        ),
    ),
    ToolContracts(
        tool="model", contracts=(contract("model.draft", "subject", "body", "customer", "category", "articles"),)
    ),
)
INPUT = {"account": "Globex", "ticket_id": "T-7", "question": "How do we export invoices for our audit?"}
SEARCH = StepSpec(id="search", operation="kb.search", arguments={"query": "${{ input.question }}", "limit": 3})


@dataclass
class Ends:
    """Both ends of the two services."""

    settings: ServiceSettings
    producer: aiokafka.AIOKafkaProducer
    records: list[aiokafka.ConsumerRecord]

    async def announce(self, tool: str, value: bytes | None) -> None:
        await self.producer.send_and_wait(self.settings.topic("contracts"), value, key=tool.encode(), partition=0)

    async def ask(self, noun: str, request: Request) -> None:
        topic = self.settings.topic(noun)
        await self.producer.send_and_wait(topic, request.to_bytes(), partition=request.partition)

    def answer(self, noun: str, request: Request, answer_type: type[AnswerT]) -> AnswerT | None:
        for record in self.records:
            if record.topic == self.settings.topic(noun):
                answer = answer_type.model_validate_json(record.value)
                if answer.request_id == request.request_id:
                    assert record.partition == request.partition
                    return answer
        return None


@pytest.fixture(scope="module")
async def ends(servers, prefix, database, create_topics, model_server) -> AsyncIterator[Ends]:
    await create_topics("plan-requests", "plans", "reviews", "verdicts", "dead-letters")
    await create_topics("contracts", partitions=1)
    dsns = database.prepare({"planner": (WORKER, MODELS), "critic": (WORKER, MODELS)}).services
    models = ModelSettings(
        base_url=f"{model_server}/v1",
        strong="scripted-strong",
        cheap="scripted-cheap",
        prices={"scripted-strong": (3.0, 15.0), "scripted-cheap": (0.5, 1.5)},
    )

    def settings_of(name: str) -> ServiceSettings:
        return ServiceSettings(
            kafka=servers.kafka, postgres=dsns[name], topic_prefix=prefix, instance=name, shutdown_timeout_ms=4_000
        )

    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=servers.kafka)
    await producer.start()
    consumer = aiokafka.AIOKafkaConsumer(
        f"{prefix}.plans", f"{prefix}.verdicts", bootstrap_servers=servers.kafka, auto_offset_reset="earliest"
    )
    await consumer.start()
    ends = Ends(settings_of("planner"), producer, [])

    async def read() -> None:
        async for record in consumer:
            ends.records.append(record)

    reading = asyncio.create_task(read())
    # A record that nobody can read must not keep the services from learning the others.
    await ends.announce("broken", b"{not json")
    for tool in TOOLS:
        await ends.announce(tool.tool, tool.to_bytes())
    stopping = asyncio.Event()
    tasks = []
    for name, serve in (("planner", serve_planner), ("critic", serve_critic)):
        service = Service(name, configure_logging("error", "console"), Health(name, name), stopping)
        tasks.append(asyncio.create_task(serve(service, settings_of(name), models)))
    yield ends
    stopping.set()
    await asyncio.gather(*tasks)
    reading.cancel()
    await consumer.stop()
    await producer.stop()


def common(**changes: Any) -> dict[str, Any]:
    return {
        "request_id": f"r-{uuid4().hex[:12]}",
        "run_id": uuid4(),
        "tenant": "acme",
        "partition": 1,
        "deadline_at": datetime.now(UTC) + timedelta(seconds=60),
    } | changes


def plan_request(spec: FixedPlan | ModelPlan, **changes: Any) -> PlanRequest:
    fields = {
        "playbook": "account-review",
        "goal": "Brief the account manager.",
        "input": INPUT,
        "spec": spec,
        "tools": ("kb.search", "helpdesk.lookup", "helpdesk.assign", "model.draft"),
        "revision": 1,
        "max_steps": 10,
        "grant": Grant(tokens=20_000, usd_micros=200_000),
    }
    return PlanRequest(**common(**fields | changes))


async def planned(ends: Ends, eventually, request: PlanRequest) -> PlanAnswer:
    await ends.ask("plan-requests", request)
    await eventually(lambda: ends.answer("plans", request, PlanAnswer))
    answer = ends.answer("plans", request, PlanAnswer)
    assert answer is not None
    return answer


async def reviewed(ends: Ends, eventually, request: ReviewRequest) -> VerdictAnswer:
    await ends.ask("reviews", request)
    await eventually(lambda: ends.answer("verdicts", request, VerdictAnswer))
    answer = ends.answer("verdicts", request, VerdictAnswer)
    assert answer is not None
    return answer


async def test_a_fixed_plan_comes_back_pinned(ends: Ends, eventually) -> None:
    answer = await planned(ends, eventually, plan_request(FixedPlan(steps=(SEARCH,)), grant=Grant()))
    assert answer.plan is not None
    (step,) = answer.plan.steps
    assert step.pin.contract_hash == TOOLS[0].contracts[0].hash
    assert (answer.worker, answer.spend.tokens) == ("planner", 0)


async def test_a_model_writes_a_plan_with_two_branches_and_another_one_after_a_failure(ends: Ends, eventually) -> None:
    first = await planned(ends, eventually, plan_request(ModelPlan()))
    assert first.plan is not None, first.error
    branches = [step for step in first.plan.steps if not step.depends_on]
    assert {step.operation for step in branches} == {"kb.search", "helpdesk.lookup"}
    assert first.spend.model_calls[0].model == "scripted-strong"

    known = StepRecord(id="history", operation="helpdesk.lookup", status="succeeded", result=Result.empty())
    failure = Reason(code="search_too_narrow", message="no article names the account")
    request = plan_request(ModelPlan(), revision=2, known=(known,), failure=failure)
    second = await planned(ends, eventually, request)
    assert second.plan is not None, second.error
    assert second.plan.revision == 2
    assert "search_topic" in [step.id for step in second.plan.steps]


async def test_a_model_that_answers_nonsense_once_gets_to_mend_its_plan(ends: Ends, eventually) -> None:
    provoked = INPUT | {"question": f"{INPUT['question']} [[model:plan:invalid-json-once]]"}
    answer = await planned(ends, eventually, plan_request(ModelPlan(), input=provoked))
    assert answer.plan is not None, answer.error
    assert len(answer.spend.model_calls) == 2


async def test_a_model_that_plans_more_than_is_allowed_ends_as_plan_invalid(ends: Ends, eventually) -> None:
    answer = await planned(ends, eventually, plan_request(ModelPlan(repairs=1), max_steps=2))
    assert answer.code == "plan_invalid"
    assert answer.error is not None
    assert "at most 2 are left" in answer.error.message
    assert len(answer.spend.model_calls) == 2


async def test_a_tool_that_starts_after_the_question_is_waited_for(ends: Ends, eventually) -> None:
    late = ToolContracts(tool="late", contracts=(contract("late.do", "x"),))
    spec = FixedPlan(steps=(StepSpec(id="do", operation="late.do", arguments={"x": 1}),))
    request = plan_request(spec, tools=("late.*",), grant=Grant())
    await ends.ask("plan-requests", request)
    await ends.announce("late", late.to_bytes())
    await eventually(lambda: ends.answer("plans", request, PlanAnswer))
    answer = ends.answer("plans", request, PlanAnswer)
    assert answer is not None
    assert answer.plan is not None

    await ends.announce("late", None)
    gone = await planned(ends, eventually, plan_request(spec, tools=("late.*",), grant=Grant()))
    assert gone.error is not None
    assert gone.error.code is ErrorCode.UNAVAILABLE


def arm(url: str, fault: str, operation: str) -> None:
    httpx.post(f"{url}/faults", json={"fault": fault, "operation": operation}).raise_for_status()


def review(step: Step | None, result: Result | None, **changes: Any) -> ReviewRequest:
    fields = {"goal": "Answer.", "input": INPUT, "step": step, "result": result}
    return ReviewRequest(**common(**fields | changes))


def step(**changes: Any) -> Step:
    pin = Pin(contract_hash=TOOLS[0].contracts[0].hash, effect=Effect.READ, timeout_ms=1_000)
    return Step(**{"id": "search", "operation": "kb.search", "pin": pin} | changes)


async def test_an_unmet_expectation_comes_back_with_its_evidence(ends: Ends, eventually) -> None:
    unmet = Unmet(decision=Decision.ESCALATE, code="low_confidence")
    request = review(step(expect="result.data.top_score >= 0.5", unmet=unmet), Result.ok({"top_score": 0.2}))
    answer = await reviewed(ends, eventually, request)
    assert answer.decision is Decision.ESCALATE
    assert "result.data.top_score = 0.2" in answer.evidence


ARTICLE = "Open Settings, choose Exports, and select the invoices of the year that your auditor asked for."


@pytest.mark.parametrize(
    ("body", "decision"),
    [(ARTICLE, Decision.CONTINUE), ("Bananas are yellow. Whales swim deep. Trains run late.", Decision.RETRY)],
)
async def test_a_judge_tells_a_borne_out_answer_from_an_invented_one(
    ends: Ends, eventually, body: str, decision: Decision
) -> None:
    judge = Judge(criteria="Every statement is borne out by the sources.", threshold=0.5)
    draft = step(id="draft", operation="model.draft", depends_on=("search",), judge=judge)
    draft = draft.model_copy(update={"unmet": Unmet(decision=Decision.RETRY, code="draft_invalid")})
    found = Result.ok({"hits": [{"id": "kb-1", "body": ARTICLE}]})
    request = review(
        draft,
        Result.ok({"body": body}),
        steps=(StepRecord(id="search", operation="kb.search", status="succeeded", result=found),),
        judge=judge,
        grant=Grant(tokens=judge.tokens, usd_micros=10_000),
    )
    answer = await reviewed(ends, eventually, request)
    assert answer.decision is decision, answer
    assert answer.spend.model_calls[0].tier == "cheap"


async def test_a_judge_that_cannot_answer_is_an_error_with_what_it_cost(
    ends: Ends, eventually, model_server: str
) -> None:
    arm(model_server, "503", "judge")
    request = review(
        None, None, output={"x": 1}, judge=Judge(criteria="Good."), grant=Grant(tokens=4_000, usd_micros=9_999)
    )
    answer = await reviewed(ends, eventually, request)
    assert answer.decision is None
    assert answer.error is not None
    assert answer.error.code is ErrorCode.UNAVAILABLE


@pytest.mark.parametrize("module", ["triptych.planner", "triptych.critic"])
def test_a_model_without_a_price_ends_the_process_with_one_clear_line(module: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "TRIPTYCH_POSTGRES": "postgresql://nobody@127.0.0.1:1/none",
        "TRIPTYCH_MODEL_BASE_URL": "http://127.0.0.1:9/v1",
        "TRIPTYCH_MODEL_STRONG": "of-my-own",
    }
    ended = subprocess.run(
        [sys.executable, "-m", module], check=False, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "TRIPTYCH_MODEL_PRICES: the price of of-my-own is not known" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["planner", "critic"])
async def test_the_process_is_ready_and_ends_cleanly_on_sigterm(
    ends: Ends, database, eventually, name: str, unused_tcp_port: int
) -> None:
    dsn = database.prepare({"planner": (WORKER, MODELS), "critic": (WORKER, MODELS)}).services[name]
    environment = {
        "PATH": os.environ["PATH"],
        "TRIPTYCH_KAFKA": ends.settings.kafka,
        "TRIPTYCH_POSTGRES": dsn,
        "TRIPTYCH_TOPIC_PREFIX": ends.settings.topic_prefix,
        "TRIPTYCH_INSTANCE": f"{name}-process",
        "TRIPTYCH_HEALTH_PORT": str(unused_tcp_port),
    }
    url = f"http://127.0.0.1:{unused_tcp_port}/health/ready"

    def is_ready() -> bool:
        try:
            return httpx.get(url).is_success
        except httpx.TransportError:
            return False

    process = await asyncio.create_subprocess_exec(sys.executable, "-m", f"triptych.{name}", env=environment)
    try:
        await eventually(is_ready)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
