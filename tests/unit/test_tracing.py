"""A trace goes through: from a client's record over the messages of its run to upstreams, with run id and tenant."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiokafka import ConsumerRecord
from machine_story import NOW, playbook, step
from structlog.testing import CapturingLogger

from triptych.executor import events as ev
from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor
from triptych.kernel.decider import Batch, InboundRecord, RejectedRecord, Transition
from triptych.kernel.decider.admission import AdmissionControl, AdmissionLimits
from triptych.kernel.decider.batch import BatchBuilder, PartitionState, outbox_messages
from triptych.kernel.postgres.outbox import Envelope
from triptych.kernel.process.health import Health
from triptych.kernel.process.tracing import TraceContext, on_behalf_of, upstream_headers
from triptych.kernel.worker.contract import JobAttempt, WorkerConfig
from triptych.kernel.worker.job_runner import Job, JobRunner
from triptych.kernel.worker.jobs import TakenOverJob
from triptych.kernel.worker.lease import LeaseRenewer
from triptych.models.providers import Candidate
from triptych.schemas import CallAnswer, CallRequest, Plan, PlanAnswer, Result, topics
from triptych.tools.adapters.mcp.tool import _meta
from triptych.tools.http.client import open_client

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
STATED = f"00-{TRACE}-00f067aa0ba902b7-00"
RUN = UUID("01900000-0000-7000-8000-000000000001")
SETTINGS: Any = SimpleNamespace(topic="triptych.{}".format, inline_max_bytes=262_144, topic_prefix="triptych")
TASK = b'{"playbook":"test","task_id":"t-1","tenant":"acme","input":{}}'


def record(value: bytes, *headers: tuple[str, bytes]) -> ConsumerRecord[Any, Any]:
    return ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, value, None, -1, len(value), headers)


def begun(*headers: tuple[str, bytes]) -> tuple[Executor, Transition[Any]]:
    executor = Executor({"test": Deployment.of(playbook())})
    addressed = executor.read(InboundRecord(topics.TASKS, record(TASK, *headers), TASK, NOW))
    transition = executor.apply(None, addressed, 0, NOW)
    assert transition is not None
    return executor, transition


def traces(transition: Transition[Any]) -> list[str]:
    """The trace and flags of each message that a transition sends."""
    rows = outbox_messages(Envelope(SETTINGS, "executor"), transition.state.run_id, transition)
    stated = [dict(row.outgoing.headers)["traceparent"].decode() for row in rows]
    return [f"{trace}-{flags}" for _, trace, _, flags in (each.split("-") for each in stated)]


@pytest.mark.parametrize("name", ["traceparent", "ce_traceparent"])
def test_the_trace_of_a_client_is_continued_by_every_message_of_its_run(name: str) -> None:
    executor, transition = begun((name, STATED.encode()))
    assert traces(transition) == [f"{TRACE}-00"]
    run = transition.state
    (request_id,) = run.requests
    planned = PlanAnswer(
        request_id=request_id, run_id=run.run_id, tenant="acme", plan=Plan(revision=1, steps=(step("a"),))
    )
    asked = executor.apply(run, executor.read(told(topics.PLANS, planned.to_bytes())), 0, NOW)
    (request_id,) = asked.state.requests
    result = CallAnswer(request_id=request_id, run_id=run.run_id, tenant="acme", result=Result.ok({}))
    ended = executor.apply(
        asked.state, executor.read(told(topics.RESULTS, result.to_bytes(), "/triptych/tool-echo")), 0, NOW
    )
    assert traces(asked) + traces(ended) == [f"{TRACE}-00", f"{TRACE}-00"], "the call, and the outcome"
    assert traces(executor.again(ended.state)) == [f"{TRACE}-00"]


def told(noun: str, body: bytes, source: str = "/triptych/planner") -> InboundRecord:
    return InboundRecord(noun, record(body, ("ce_source", source.encode())), body, NOW)


@pytest.mark.parametrize(
    "stated",
    [
        b"",
        b"\xff\x00",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"ff" + STATED[2:].encode(),
        STATED.upper().encode(),
    ],
)
def test_what_is_no_trace_is_ignored_and_the_run_is_its_own(stated: bytes) -> None:
    _, transition = begun(("traceparent", stated))
    assert traces(transition) == [f"{transition.state.run_id.hex}-01"]


def test_a_run_from_before_traces_were_kept_is_its_own_trace() -> None:
    _, transition = begun()
    (admitted, *_) = transition.events
    assert "traceparent" not in ev.encode(admitted)[1]
    assert traces(transition) == [f"{transition.state.run_id.hex}-01"]


def test_the_refusal_of_a_task_goes_back_on_the_trace_of_its_record() -> None:
    refused = record(b'{"playbook":"none","task_id":"t-1"}', ("traceparent", STATED.encode()))
    with pytest.raises(RejectedRecord) as caught:
        Executor({}).read(InboundRecord(topics.TASKS, refused, refused.value, NOW))
    service = SimpleNamespace(name="executor", health=Health("executor", "one"), log=CapturingLogger())
    context: Any = SimpleNamespace(service=service, settings=SETTINGS, envelope=Envelope(SETTINGS, "executor"))
    batch: Batch[Any] = Batch(at=NOW)
    BatchBuilder(context, PartitionState(AdmissionControl(AdmissionLimits(1), 1)), batch).dead_letter(
        refused, caught.value
    )
    outcome = batch.outbox[-1].outgoing
    assert outcome.topic == "triptych.outcomes"
    assert TraceContext.of_headers(outcome.headers)[1] == TraceContext(TRACE, "00")
    ((_, notice),) = batch.notices
    assert (notice.level, notice.event, notice.counter) == ("warning", "record dead-lettered", "dead_letters")
    told_of = {"tenant": "default", "task_id": "t-1", "trace_id": TRACE, "code": "unknown_playbook", "offset": 7}
    assert dict(notice.fields, **told_of) == notice.fields


async def test_an_upstream_is_told_the_trace_the_run_and_the_tenant_and_nothing_outside_of_a_call() -> None:
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200)

    async with open_client(transport=httpx.MockTransport(answer)) as client:
        with on_behalf_of(RUN, "acme", STATED):
            await client.get("http://crm/")
            await client.get("http://crm/", headers={"traceparent": "of the operation"})
        await client.get("http://crm/")
    told_of = [
        {name: each.get(name) for name in ("traceparent", "triptych-run-id", "triptych-tenant")} for each in seen
    ]
    named = {"triptych-run-id": str(RUN), "triptych-tenant": "acme"}
    assert told_of[:2] == [{"traceparent": STATED, **named}, {"traceparent": "of the operation", **named}]
    assert set(told_of[2].values()) == {None}


class Listener:
    """A worker that says for whom it works."""

    def __init__(self) -> None:
        self.heard: dict[str, str] = {}

    async def execute(self, request: CallRequest, _attempt: JobAttempt) -> CallAnswer:
        self.heard = dict(upstream_headers())
        return CallAnswer(request_id=request.request_id, run_id=RUN, tenant="acme", result=Result.ok({}))


def call_request() -> CallRequest:
    return CallRequest(
        request_id="r-1",
        run_id=RUN,
        tenant="acme",
        task_id="t-1",
        partition=0,
        deadline_at=NOW.replace(year=2100),
        principal="p",
        step="a",
        operation="echo.echo",
        arguments={},
        attempt=1,
        idempotency_key="k",
        contract_hash="0" * 16,
        timeout_ms=1_000,
    )


ABOUT = {"run_id": str(RUN), "task_id": "t-1", "tenant": "acme", "trace_id": TRACE, "request_id": "r-1"}


async def test_a_job_is_done_on_behalf_of_its_run_and_a_line_about_it_names_run_task_tenant_and_trace() -> None:
    request = call_request()
    job = Job(request, JobAttempt(lease=0), STATED)
    worker, answers = Listener(), []
    service: Any = SimpleNamespace(log=CapturingLogger(), stopping=asyncio.Event())
    outbox: Any = SimpleNamespace(add=answers.append)
    config = WorkerConfig("calls.echo", topics.RESULTS, CallAnswer, "echo")
    runner: JobRunner[Any] = JobRunner(worker, config, None, outbox, instance="one", service=service)  # type: ignore[arg-type]
    await runner._do(job)
    assert len(answers) == 1
    assert worker.heard == {"traceparent": STATED, "triptych-run-id": str(RUN), "triptych-tenant": "acme"}
    assert job.about == ABOUT


def test_each_job_that_is_taken_over_has_a_line_with_run_task_tenant_and_trace() -> None:
    log, put = CapturingLogger(), []
    service: Any = SimpleNamespace(health=None, log=log, stopping=asyncio.Event())
    runner: Any = SimpleNamespace(put=put.append)
    jobs: Any = SimpleNamespace(lease=3)
    renewer = LeaseRenewer(CallRequest, jobs, runner, None, lease_ms=15_000, service=service)  # type: ignore[arg-type]
    renewer._give_out(TakenOverJob(RUN, "r-1", "acme", 0, call_request().to_bytes(), STATED, None, 2, True, False))  # noqa: FBT003
    assert [job.attempt.taken_over for job in put] == [True]
    (line,) = log.calls
    assert (line.method_name, line.args) == ("warning", ("job taken over",))
    assert line.kwargs == {**ABOUT, "deliveries": 2, "was_started": True}


def test_an_mcp_server_is_told_the_trace_the_run_and_the_tenant_in_meta() -> None:
    call: Any = SimpleNamespace(idempotency_key="k")
    key = {"triptych.dev/idempotency-key": "k"}
    assert _meta(call) == key
    with on_behalf_of(RUN, "acme", STATED):
        told_of = {"traceparent": STATED, "triptych.dev/run-id": str(RUN), "triptych.dev/tenant": "acme"}
        assert _meta(call) == {**key, **told_of}


def test_a_model_is_told_the_trace_the_run_and_the_tenant() -> None:
    asked = Candidate("m", None, None, "m", sets_transport=True)  # type: ignore[arg-type]
    assert "extra_headers" not in asked.request_settings(10, 1.0)
    with on_behalf_of(RUN, "acme", STATED):
        told_of = {"traceparent": STATED, "triptych-run-id": str(RUN), "triptych-tenant": "acme"}
        assert asked.request_settings(10, 1.0)["extra_headers"] == told_of
