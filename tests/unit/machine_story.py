"""Plays messages against a run, for the tests of the state machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydantic_core import from_json

from triptych.executor import events as ev
from triptych.executor.fold import admit, evolve
from triptych.executor.machine import Message, Tick, begin, decide
from triptych.executor.state import RequestKind, Run
from triptych.executor.transition import Decided
from triptych.kernel.postgres.outbox import Send
from triptych.schemas import (
    CallAnswer,
    CallRequest,
    Control,
    Cost,
    Decision,
    Effect,
    ErrorCode,
    Pin,
    Plan,
    PlanAnswer,
    PlanRequest,
    Playbook,
    Reason,
    Result,
    ResultStatus,
    ReviewRequest,
    Spend,
    Step,
    Task,
    TaskLedger,
    VerdictAnswer,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN_ID = UUID("01900000-0000-7000-8000-000000000001")


def playbook(**changes: object) -> Playbook:
    fields: dict[str, object] = {
        "name": "test",
        "goal": "do it",
        "input": {},
        "tools": ("echo.*",),
        "plan": {"pattern": "fixed", "steps": [{"id": "a", "operation": "echo.echo"}]},
        **changes,
    }
    return Playbook.model_validate(fields, strict=False)


def model_playbook(**changes: object) -> Playbook:
    return playbook(plan={"pattern": "model", "tokens": 100, "usd": 0.01}, **changes)


def step(
    step_id: str, *depends_on: str, effect: Effect = Effect.READ, cost: Cost | None = None, **fields: object
) -> Step:
    undo = fields.pop("undo", None)
    pin = Pin(contract_hash="0" * 16, effect=effect, timeout_ms=1000, cost=cost or Cost(), undo=undo)
    return Step.model_validate(
        {"id": step_id, "operation": "echo.echo", "depends_on": depends_on, "pin": pin, **fields}, strict=False
    )


REQUESTS = {
    "triptych.plan-request": PlanRequest,
    "triptych.call": CallRequest,
    "triptych.review": ReviewRequest,
}


def read(send: Send) -> PlanRequest | CallRequest | ReviewRequest:
    """A request as who is asked reads it, and it says no more and no less than what was sent."""
    sent = send.body.to_bytes()
    request = REQUESTS[send.event_type].model_validate_json(sent)
    assert from_json(request.to_bytes()) == from_json(sent)
    if isinstance(request, ReviewRequest) and request.step is not None:
        assert request.result is not None
        assert request.result.status is not ResultStatus.ERROR, "what failed is not reviewed"
    return request


class Story:
    """Plays messages against a run and keeps the journal as it is written, so that every test also reads it back."""

    def __init__(self, book: Playbook | None = None, **task: object) -> None:
        self.now = NOW
        self.journal: list[tuple[ev.Event, datetime]] | None = []
        self.last: tuple[ev.Event, ...] = ()
        fields = Task.model_validate({"playbook": "test", "task_id": "t-1", **task}, strict=False)
        self._take(begin(fields, task_id="t-1", run_id=RUN_ID, playbook=book or playbook(), partition=0, now=self.now))

    @classmethod
    def of(cls, run: Run, now: datetime) -> Story:
        """A story that goes on from a run; its journal begins here."""
        story = object.__new__(cls)
        story.run, story.now, story.last, story.journal = run, now, (), None
        return story

    def _take(self, decided: Decided) -> None:
        self.run, self.last = decided.run, decided.events
        if self.journal is None:
            return
        lookup = ev.PlaybookLookup((self.run.playbook,))
        self.journal.extend((ev.decode(*ev.encode(event), lookup), self.now) for event in decided.events)
        assert self.folded() == self.run

    def folded(self) -> Run:
        (first, at), *rest = self.journal
        assert isinstance(first, ev.RunAdmitted)
        run = admit(RUN_ID, first, at)
        for event, recorded_at in rest:
            run = evolve(run, event, recorded_at)
        return run

    def tell(self, message: Message) -> Story:
        self._take(decide(self.run, message, self.now))
        return self

    def wait(self, **duration: float) -> Story:
        self.now += timedelta(**duration)
        return self.tell(Tick())

    def request(self, ask: RequestKind, step_id: str | None = None) -> str:
        found = [key for key, request in self.run.requests.items() if (request.kind, request.step) == (ask, step_id)]
        assert len(found) == 1, f"expected one open {ask} for {step_id}, found {found}"
        return found[0]

    def request_of(self, step_id: str) -> ev.CallRequested:
        event = self.run.requests[self.request(RequestKind.CALL, step_id)].event
        assert isinstance(event, ev.CallRequested)
        return event

    def plan(self, *steps: Step, spend: Spend | None = None, ledger: TaskLedger | None = None) -> Story:
        plan = Plan(revision=self.run.revision + 1, steps=steps)
        return self.tell(self._answer(PlanAnswer, RequestKind.PLAN, None, spend, plan=plan, ledger=ledger))

    def answer(self, **answer: object) -> Story:
        """The planner says that the goal is reached."""
        return self.tell(self._answer(PlanAnswer, RequestKind.PLAN, None, None, answer=answer))

    def result(self, step_id: str, result: Result | None = None, spend: Spend | None = None) -> Story:
        return self.tell(
            self._answer(CallAnswer, RequestKind.CALL, step_id, spend, result=result or Result.ok({"value": 1}))
        )

    def undone(self, step_id: str, result: Result | None = None) -> Story:
        """A tool answers that it has undone a step."""
        return self.tell(self._answer(CallAnswer, RequestKind.UNDO, step_id, None, result=result or Result.ok({})))

    def fail(self, step_id: str, code: ErrorCode, retry_after_ms: int | None = None) -> Story:
        return self.result(step_id, Result.failed(code, "it broke", retry_after_ms=retry_after_ms))

    def verdict(self, step_id: str | None, decision: Decision | None, code: str = "because", **fields: object) -> Story:
        reason = Reason(code=code, message="said the critic")
        return self.tell(
            self._answer(VerdictAnswer, RequestKind.REVIEW, step_id, None, decision=decision, reason=reason, **fields)
        )

    def control(self, action: str, command_id: str = "c-1", **fields: object) -> Story:
        command = {
            "command_id": command_id,
            "run_id": str(self.run.run_id),
            "action": action,
            "principal": "user:ana",
            **fields,
        }
        return self.tell(Control.model_validate(command, strict=False))

    def _answer(self, kind, ask: RequestKind, step_id: str | None, spend: Spend | None, **fields: object):
        request_id = self.request(ask, step_id)
        return kind(request_id=request_id, run_id=self.run.run_id, tenant="default", spend=spend or Spend(), **fields)

    def statuses(self) -> dict[str, str]:
        return {step_id: state.status.value for step_id, state in self.run.steps.items()}

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.last]
