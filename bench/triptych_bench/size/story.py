"""Runs of five steps as the executor decides them, one batch for each message, without Kafka.

The decisions and the rows are the product's own; only who answers is made up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from pydantic import SecretStr

from triptych.executor.machine import begin, decide
from triptych.executor.messages import messages
from triptych.executor.state import Run
from triptych.executor.transition import Decided
from triptych.kernel.decider import Batch, Transition
from triptych.kernel.decider.batch import outbox_messages
from triptych.kernel.postgres.outbox import Envelope, OutboxKey
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import (
    CallAnswer,
    CallRequest,
    Effect,
    FixedPlan,
    Pin,
    Plan,
    PlanAnswer,
    Playbook,
    Result,
    ResultStatus,
    Spend,
    Step,
    StepSpec,
    Task,
)

STEPS = 5
TENANT = "acme"
_ENVELOPE = Envelope(ServiceSettings(kafka="none:9092", postgres=SecretStr("postgresql://none")), "executor")
_SPECS = tuple(
    StepSpec(
        id=name,
        operation="echo.echo",
        arguments={"value": 1},
        depends_on=(before,) if before else (),
        expect="result.data.value == 1",
    )
    for before, name in zip(("", *"abcd"), "abcde", strict=True)
)
PLAYBOOK = Playbook(
    name="five-steps",
    goal="Five steps that do nothing, one after the other.",
    input={"type": "object"},
    tools=("echo.echo",),
    plan=FixedPlan(steps=_SPECS),
)
_PIN = Pin(contract_hash="0" * 16, effect=Effect.READ, timeout_ms=1_000)
_PLAN = Plan(
    revision=1,
    steps=tuple(
        Step(
            id=spec.id,
            operation=spec.operation,
            arguments=spec.arguments,
            depends_on=spec.depends_on,
            expect=spec.expect,
            pin=_PIN,
        )
        for spec in _SPECS
    ),
)


@dataclass(slots=True)
class Story:
    """Some runs that move on together. `batch` gives what the executor writes next, until all are over."""

    epochs: dict[int, int]
    task_ids: dict[UUID, str]
    numbers: Iterator[int]
    """Numbers the batches, over all stories of a claim."""
    published: list[OutboxKey]
    """The rows of the outbox that the next batch forgets."""
    states: dict[UUID, Run] = field(default_factory=dict)
    requests: dict[UUID, CallRequest] = field(default_factory=dict)
    """The call that each run waits for."""

    @property
    def is_over(self) -> bool:
        return bool(self.states) and all(run.finished_at is not None for run in self.states.values())

    def admit(self, now: datetime) -> Batch[Run]:
        """Admit every task as a run, which asks for a plan."""
        return self._batch({run_id: self._begin(run_id, now) for run_id in self.task_ids}, now)

    def plan(self, now: datetime) -> Batch[Run]:
        """Give every run its plan, so that it begins its first step."""
        decisions = {}
        for run_id, run in self.states.items():
            (asked,) = run.requests
            decisions[run_id] = decide(run, PlanAnswer(request_id=asked, run_id=run_id, tenant=TENANT, plan=_PLAN), now)
        return self._batch(decisions, now)

    def answer(self, now: datetime) -> Batch[Run]:
        """Answer every call: a step ends and the next begins, or the run ends."""
        answers = {run_id: answer_to(request) for run_id, request in self.requests.items()}
        return self._batch({run_id: decide(self.states[run_id], each, now) for run_id, each in answers.items()}, now)

    def _begin(self, run_id: UUID, now: datetime) -> Decided:
        task_id = self.task_ids[run_id]
        task = Task(playbook=PLAYBOOK.name, tenant=TENANT, task_id=task_id)
        return begin(task, task_id=task_id, run_id=run_id, playbook=PLAYBOOK, partition=0, now=now)

    def _batch(self, decisions: dict[UUID, Decided], now: datetime) -> Batch[Run]:
        batch: Batch[Run] = Batch(epochs=self.epochs, offsets={0: {"p.results": 1}}, at=now, published=self.published)
        batch.number = next(self.numbers)
        self.requests = {}
        for run_id, decided in sorted(decisions.items()):
            if run_id not in self.states:
                batch.created.append(run_id)
            before = self.states.get(run_id)
            self._take(batch, decided, before.seq + 1 if before else 1, now)
            wake_at = decided.run.wake_at()
            if wake_at is None:
                batch.disarmed.add(run_id)
            elif before is None or before.wake_at() != wake_at:
                batch.armed[run_id] = (0, wake_at)
        self.published = [row.key for row in batch.outbox_rows()]
        return batch

    def _take(self, batch: Batch[Run], decided: Decided, first_seq: int, now: datetime) -> None:
        run_id, sends = decided.run.run_id, messages(decided.run, decided.events, now)
        batch.states[run_id] = self.states[run_id] = decided.run
        batch.events.extend((run_id, first_seq + number, event) for number, event in enumerate(decided.events))
        transition = Transition(decided.run, decided.run.name, TENANT, 0, first_seq, decided.events, sends)
        batch.outbox.extend(outbox_messages(_ENVELOPE, run_id, transition))
        calls = [send.body.to_bytes() for send in sends if send.event_type == "triptych.call"]
        self.requests.update((run_id, CallRequest.model_validate_json(call)) for call in calls)


def answer_to(request: CallRequest) -> CallAnswer:
    """Make the answer of the tool."""
    result = Result(status=ResultStatus.OK, data={"value": 1})
    return CallAnswer(
        request_id=request.request_id, run_id=request.run_id, tenant=request.tenant, result=result, spend=Spend()
    )
