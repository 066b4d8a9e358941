"""Whatever happens to a run, in whatever order, some things hold. Hypothesis looks for an order in which they do not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machine_story import REQUESTS, read

from generate import run_states
from triptych.executor import events as ev
from triptych.executor.fold import admit, evolve
from triptych.executor.machine import Message, Start, Tick, begin, decide
from triptych.executor.messages import messages
from triptych.executor.projections import touched_steps
from triptych.executor.state import RequestKind, Run, RunStatus, StepStatus
from triptych.executor.store import step_row
from triptych.schemas import (
    HANDOFF,
    CallAnswer,
    Control,
    Cost,
    Decision,
    Effect,
    ErrorCode,
    Fallback,
    Pin,
    Plan,
    PlanAnswer,
    PlanByTurns,
    Playbook,
    Reason,
    Result,
    Spend,
    StandIn,
    Step,
    Task,
    ToolError,
    Undo,
    VerdictAnswer,
)

RUN_ID = UUID("01900000-0000-7000-8000-000000000001")
NAMES = "abcdef"
CHANGES = run_states.changes()

results = st.one_of(
    st.just(Result.ok({"n": 1})),
    st.just(Result.ok({"n": 2})),
    st.just(Result.empty()),
    st.sampled_from(list(ErrorCode)).map(lambda code: Result.failed(code, "it broke")),
    st.sampled_from(["breaker", "rate"]).map(
        lambda part: Result.failed(ErrorCode.UNAVAILABLE, "full", retry_after_ms=10, postponed=part, effect="none")
    ),
)
child_results = st.sampled_from(
    [
        Result.ok({"n": 1}),
        Result.failed(ErrorCode.CANCELLED, "a person ended it", child="it", reason="aborted"),
        Result.failed(ErrorCode.INVALID_ARGUMENTS, "no such playbook", effect="none"),
    ]
)
ASKING = ("PlanRequested", "CallRequested", "ReviewRequested", "UndoRequested")
OPERATIONS = {Effect.READ: "echo.echo", Effect.IDEMPOTENT: "echo.put", Effect.ONCE: "echo.post"}
ORIGINS = ["input", "echo.echo", "steps.a"]


def stand_ins(pin: Pin) -> st.SearchStrategy[StandIn]:
    """Fallbacks as the checker lets them pass: only another operation stands in for a write."""
    other = StandIn(fallback=Fallback(operation="echo.other", arguments={"n": 7}), pin=pin)
    if pin.effect is not Effect.READ:
        return st.just(other)
    kept, written = StandIn(fallback=Fallback(cached_ms=1)), StandIn(fallback=Fallback(data={"n": 1}))
    return st.sampled_from([other, kept, written])


UNDO = Undo(operation="echo.back", contract_hash="1" * 16, effect=Effect.IDEMPOTENT, timeout_ms=1000)


@st.composite
def plans(draw: st.DrawFn, revision: int) -> Plan:
    """Plans as the checker lets them pass: acyclic, with references only to earlier steps."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    steps = []
    for index, name in enumerate(names):
        earlier = draw(st.sets(st.sampled_from(names[:index]), max_size=2)) if index else set()
        hands_over = draw(st.integers(0, 4)) == 0
        effect = Effect.IDEMPOTENT if hands_over else draw(st.sampled_from(list(Effect)))
        pin = Pin(
            contract_hash="0" * 16,
            effect=effect,
            timeout_ms=1000,
            cost=Cost(
                tokens=draw(st.integers(0, 60)),
                usd_micros=draw(st.integers(0, 60)),
                tool_calls=draw(st.integers(1, 2)) if hands_over else 0,
            ),
            undo=draw(st.sampled_from([None, UNDO])),
        )
        other = {"playbook": draw(st.sampled_from(["other", "other", "unheard-of"]))}
        fields = {
            "id": name,
            "operation": HANDOFF if hands_over else OPERATIONS[effect],
            "arguments": other if hands_over else {"n": draw(st.integers(0, 2))},
            "map": draw(st.sampled_from([None, None, None, [], [1, 2, 2], "${{ input.missing }}"])),
            "max_failed": draw(st.integers(0, 1)),
            "depends_on": tuple(sorted(earlier)),
            "pin": pin,
            "when": draw(st.sampled_from([None, "true", "false", "input.missing"])),
            "expect": draw(st.sampled_from([None, None, "result.data.n == 1", "result.data.nonsense"])),
            "fallback": () if hands_over else draw(st.lists(stand_ins(pin), max_size=2)),
            "must_come_from": {"n": [draw(st.sampled_from(ORIGINS))]} if draw(st.integers(0, 7)) == 0 else {},
            "retry": {"max_attempts": draw(st.integers(1, 3))},
            "rounds": draw(st.sampled_from([1, 1, 2])) if pin.effect is Effect.READ else 1,
        }
        steps.append(Step.model_validate(fields, strict=False))
    return Plan(revision=revision, steps=tuple(steps))


class RunMachine(RuleBasedStateMachine):
    """Workers that answer anything, in any order, twice; people who interfere; and time."""

    @initialize(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        fields = {
            "name": "p",
            "goal": "g",
            "input": {},
            "tools": ("echo.*",),
            "handoffs": ("other",),
            "plan": data.draw(
                st.sampled_from(
                    [
                        {"pattern": "model", "tokens": 50, "usd": 0.00005},
                        {"pattern": "react", "tokens": 50, "usd": 0.00005, "max_turns": 3, "max_stalls": 1},
                        {"pattern": "manager", "tokens": 50, "usd": 0.00005, "max_turns": 3, "max_stalls": 0},
                        {"pattern": "fixed", "steps": [{"id": "a", "operation": "echo.echo"}]},
                    ]
                )
            ),
            "review": data.draw(st.sampled_from(["every_step", "exceptions", "final"])),
            "parallel": data.draw(st.integers(1, 3)),
            "budgets": {"steps": 6, "tool_calls": 12, "tokens": 400, "usd": 0.0004, "wall_ms": 600_000, "replans": 2},
        }
        self.playbook = Playbook.model_validate(fields, strict=False)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.journal: list[tuple[ev.Event, datetime]] = []
        self.heard: list[Message] = []
        self.commands = 0
        self.written: dict[str, Any] = {}
        """What came under each idempotency key first; a tool's ledger refuses anything else."""
        self.rows: dict[str, tuple[Any, ...]] = {}
        begun = begin(
            Task(playbook="p", task_id="t"),
            task_id="t",
            run_id=RUN_ID,
            playbook=self.playbook,
            partition=0,
            now=self.now,
            has_room=data.draw(st.booleans()),
        )
        self.run_state = begun.run
        self.journal.extend((event, self.now) for event in begun.events)

    def tell(self, message: Message) -> tuple[ev.Event, ...]:
        was_final = self.run_state.status.is_final
        decided = decide(self.run_state, message, self.now)
        assert not (was_final and decided.events), "something followed the end"
        # The page with the states of a run is generated from far fewer stories than these.
        assert run_states.changes_of(decided.events, self.run_state) <= CHANGES
        self.run_state = decided.run
        self.journal.extend((event, self.now) for event in decided.events)
        batch = SimpleNamespace(states={RUN_ID: decided.run}, events=[(RUN_ID, 0, event) for event in decided.events])
        self.rows |= {step: step_row(decided.run, step) for step in touched_steps(batch).get(RUN_ID, ())}
        for send in messages(decided.run, decided.events, self.now):
            if send.event_type in REQUESTS:
                assert read(send).run_id == RUN_ID
        for event in decided.events:
            assert ev.decode(*ev.encode(event), ev.PlaybookLookup((self.playbook,))) == event
        return decided.events

    @precondition(lambda self: self.run_state.requests)
    @rule(data=st.data(), answers=st.integers(1, 4))
    def workers_answer(self, data: st.DataObject, answers: int) -> None:
        for _ in range(answers):
            if self.run_state.requests:
                self._answer(data)

    def _answer(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.run_state.requests)))
        request = self.run_state.requests[request_id]
        spend = Spend(
            tokens=data.draw(st.integers(0, request.reserved.tokens)),
            usd_micros=data.draw(st.integers(0, request.reserved.usd_micros)),
            tool_calls=data.draw(st.integers(0, request.reserved.tool_calls)),
        )
        about = {"request_id": request_id, "run_id": RUN_ID, "tenant": "default", "spend": spend}
        error = ToolError(code=data.draw(st.sampled_from(list(ErrorCode))), message="no")
        is_well = data.draw(st.integers(0, 4)) > 0
        message: Message
        match request.kind:
            case RequestKind.PLAN if (
                is_well and isinstance(self.playbook.plan, PlanByTurns) and data.draw(st.booleans())
            ):
                message = PlanAnswer(**about, answer={"so": 1})
            case RequestKind.PLAN if is_well:
                message = PlanAnswer(**about, plan=data.draw(plans(self.run_state.revision + 1)))
            case RequestKind.PLAN:
                message = PlanAnswer(**about, error=error, code=data.draw(st.sampled_from([None, "plan_invalid"])))
            case RequestKind.CALL:
                child = request.event.child
                result = data.draw(child_results if child else results)
                if self.written.setdefault(request.event.idempotency_key, request.event.arguments) != (
                    request.event.arguments
                ):
                    result = Result.failed(ErrorCode.CONFLICT, "the key was for something else", effect="none")
                message = CallAnswer(**about, result=result, child=child)
            case RequestKind.UNDO:
                message = CallAnswer(**about, result=data.draw(results))
            case RequestKind.REVIEW if is_well:
                decision = data.draw(st.sampled_from(list(Decision)))
                message = VerdictAnswer(**about, decision=decision, reason=Reason(code="why", message="so"))
            case _:
                message = VerdictAnswer(**about, error=error)
        self.heard.append(message)
        self.tell(message)

    @precondition(lambda self: self.heard)
    @rule(data=st.data())
    def an_answer_is_delivered_again(self, data: st.DataObject) -> None:
        before = self.run_state
        events = self.tell(data.draw(st.sampled_from(self.heard)))
        assert events == ()
        assert self.run_state == before

    @precondition(lambda self: any(getattr(r.event, "child", None) for r in self.run_state.requests.values()))
    @rule(data=st.data(), status=st.sampled_from(["escalated", "running"]))
    def a_child_says_how_it_stands(self, data: st.DataObject, status: str) -> None:
        asked = [r.event.child for r in self.run_state.requests.values() if getattr(r.event, "child", None)]
        self.commands += 1
        told = {"run_id": str(data.draw(st.sampled_from(asked))), "status": status, "reason": None}
        fields = {"command_id": f"n-{self.commands}", "run_id": str(RUN_ID), "action": "child", "principal": "run:x"}
        self.tell(Control.model_validate({**fields, "data": told}, strict=False))

    @precondition(lambda self: self.run_state.status is RunStatus.QUEUED)
    @rule()
    def there_is_room(self) -> None:
        assert self.tell(Start())
        assert not self.tell(Start())

    @rule(seconds=st.sampled_from([0, 1, 5, 31, 400]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.tell(Tick())

    @precondition(lambda self: self.run_state.status is RunStatus.ESCALATED or self.heard)
    @rule(
        action=st.sampled_from(["resume", "resume", "resume", "skip", "abort", "cancel"]),
        extend=st.sampled_from([{}, {"tool_calls": 5, "steps": 5, "tokens": 100, "usd": 0.0001, "wall_ms": 60_000.0}]),
        rarely=st.integers(0, 5),
        undo=st.booleans(),
    )
    def a_person_interferes(self, action: str, extend: dict[str, float], rarely: int, undo: bool) -> None:  # noqa: FBT001
        is_escalated = self.run_state.status is RunStatus.ESCALATED
        if rarely and (action == "cancel" or not is_escalated):
            return
        self.commands += 1
        fields = {
            "command_id": f"c-{self.commands}",
            "run_id": str(RUN_ID),
            "action": action,
            "principal": "user:ana",
            "extend": extend if action == "resume" else {},
            "undo": undo and action == "abort",
        }
        self.tell(Control.model_validate(fields, strict=False))

    @invariant()
    def the_journal_folds_to_the_run(self) -> None:
        (first, at), *rest = self.journal
        assert isinstance(first, ev.RunAdmitted)
        run = admit(RUN_ID, first, at)
        for event, recorded_at in rest:
            run = evolve(run, event, recorded_at)
        assert run == self.run_state
        assert run.seq == len(self.journal)

    @invariant()
    def every_step_has_the_row_that_the_fold_gives(self) -> None:
        run = self.run_state
        begun = (key for key, branch in run.branches.items() if branch.started_at is not None)
        for step in (*run.steps, *begun):
            assert self.rows.get(step) == step_row(run, step)

    @invariant()
    def budgets_hold(self) -> None:
        ledger = self.run_state.ledger
        assert ledger.steps <= ledger.max_steps
        assert ledger.tool_calls + ledger.reserved_tool_calls <= ledger.max_tool_calls
        assert ledger.tokens + ledger.reserved_tokens <= ledger.max_tokens
        assert ledger.usd_micros + ledger.reserved_usd_micros <= ledger.max_usd_micros
        assert ledger.replans <= ledger.max_replans
        if not self.run_state.status.is_final:
            open_requests = self.run_state.requests.values()
            assert ledger.reserved_tokens == sum(request.reserved.tokens for request in open_requests)

    @invariant()
    def a_step_knows_how_far_its_branches_are(self) -> None:
        run = self.run_state
        for state in run.steps.values():
            if (fan := state.fan_out) is not None:
                statuses = [branch.status for branch in run.branches_of(state)]
                assert fan.ended == sum(status.has_ended for status in statuses)
                assert fan.failed == statuses.count(StepStatus.FAILED)
                assert fan.under_way == sum(status.is_under_way for status in statuses)
                assert fan.answered == statuses.count(StepStatus.ANSWERED)
                assert StepStatus.WAITING not in statuses[: fan.next]
                assert not state.status.has_ended or fan.failed <= state.step.max_failed or state.status == "skipped"

    @invariant()
    def no_more_than_allowed_is_under_way(self) -> None:
        calls = [request for request in self.run_state.requests.values() if request.kind is not RequestKind.PLAN]
        assert len(calls) <= self.playbook.parallel

    @invariant()
    def a_clock_stands_still_only_for_a_child_that_is_under_way(self) -> None:
        run = self.run_state
        if run.status.is_active:  # while a person has this run too, its own resume gives the time back
            assert bool(run.children_waiting) == (run.children_waiting_since is not None)
            under_way = {request.step for request in run.requests.values() if request.kind is RequestKind.CALL}
            assert run.children_waiting.keys() <= under_way

    @invariant()
    def an_active_run_waits_for_something(self) -> None:
        run = self.run_state
        if run.status.is_active:
            assert run.requests or run.retries, "an active run with nothing under way"
            assert run.wake_at() is not None

    @invariant()
    def what_is_undone_is_undone_once_and_the_latest_first(self) -> None:
        run = self.run_state
        if run.status is RunStatus.UNDOING:
            assert run.requests or run.retries, "it undoes nothing and does not end"
            assert run.wake_at() is not None
        asked = [event for event, _ in self.journal if isinstance(event, ev.UndoRequested)]
        done = [e.step for e, _ in self.journal if isinstance(e, ev.UndoAnswered) and e.result.status != "error"]
        assert len(done) == len(set(done))
        assert len({event.idempotency_key for event in asked}) == len({event.step for event in asked})

    @invariant()
    def a_queued_run_asks_nothing_and_does_not_age(self) -> None:
        run = self.run_state
        if run.status is RunStatus.QUEUED:
            assert not run.requests
            assert run.wake_at() is None
            assert run.usage(self.now).wall_ms == 0
        elif run.active_since is not None:
            assert run.usage(self.now).wall_ms <= (self.now - run.active_since).total_seconds() * 1000

    @invariant()
    def the_end_is_told_once_and_leaves_nothing_open(self) -> None:
        endings = [event for event, _ in self.journal if isinstance(event, ev.RunEnded)]
        assert len(endings) == self.run_state.status.is_final
        if self.run_state.status.is_final:
            assert not self.run_state.requests
            assert not self.run_state.retries
            assert self.run_state.wake_at() is None

    @invariant()
    def no_write_changes_its_key_within_a_plan(self) -> None:
        keys: dict[tuple[int, str], set[str]] = {}
        revision = 0
        for event, _ in self.journal:
            if isinstance(event, ev.PlanAccepted):
                revision = event.plan.revision
            if isinstance(event, ev.CallRequested):
                known = {**self.run_state.steps, **self.run_state.branches}
                step = known.get(event.step)
                if step and step.revision == revision and step.has_key_to_keep:
                    # What stands in for a write is another one, and that it has not happened is certain.
                    call = event.idempotency_key.partition(":fallback-")[0]
                    keys.setdefault((revision, event.step), set()).add(call)
        assert all(len(found) == 1 for found in keys.values())

    @invariant()
    def every_request_and_every_child_run_is_another_one(self) -> None:
        asked = [event.request_id for event, _ in self.journal if type(event).__name__ in ASKING]
        assert len(asked) == len(set(asked))
        tasks = [e.idempotency_key for e, _ in self.journal if isinstance(e, ev.CallRequested) and e.child]
        assert len(tasks) == len(set(tasks))

    @invariant()
    def no_plan_makes_a_write_again_that_an_earlier_one_has_made(self) -> None:
        asked: dict[str, tuple[str, str]] = {}
        done: dict[str, dict[str, int]] = {}
        revision, steps = 0, {}
        for event, _ in self.journal:
            match event:
                case ev.PlanAccepted():
                    revision, steps = event.plan.revision, {step.id: step for step in event.plan.steps}
                case ev.CallRequested() if ":fallback" not in event.idempotency_key and not event.child:
                    step = steps[event.step.partition(".")[0]]
                    write, key = f"{step.operation} {event.arguments}", event.idempotency_key
                    if step.pin.effect is not Effect.READ:
                        asked[event.request_id] = write, key
                        earlier = {key for key, made_in in done.get(write, {}).items() if made_in < revision}
                        assert not earlier or key in earlier
                case ev.CallAnswered() if event.request_id in asked and event.result.status != "error":
                    write, key = asked[event.request_id]
                    done.setdefault(write, {}).setdefault(key, revision)

    @invariant()
    def no_model_makes_the_same_call_more_often_than_allowed(self) -> None:
        calls: dict[str, set[tuple[int, str]]] = {}
        revision, steps = 0, {}
        for event, _ in self.journal:
            match event:
                case ev.RunResumed():
                    calls.clear()
                case ev.PlanAccepted():
                    revision, steps = event.plan.revision, {step.id: step for step in event.plan.steps}
                case ev.CallRequested() if "." not in event.step and event.child is None:
                    call = f"{steps[event.step].operation} {event.arguments}"
                    calls.setdefault(call, set()).add((revision, event.step))
        if self.playbook.is_planned_by_model:
            assert all(len(steps) <= self.playbook.same_call(call.partition(" ")[0]) for call, steps in calls.items())

    @invariant()
    def no_write_is_made_twice_under_two_keys(self) -> None:
        """The same write that may have happened is not asked for again, in whichever step, branch or plan."""
        writes: dict[str, set[str]] = {}
        asked: dict[str, tuple[str, str]] = {}
        unknown: set[str] = set()
        steps: dict[str, Step] = {}
        for event, _ in self.journal:
            match event:
                case ev.PlanAccepted():
                    steps |= {step.id: step for step in event.plan.steps}
                case ev.CallRequested() if ":fallback" not in event.idempotency_key:
                    step = steps[event.step.partition(".")[0]]
                    if step.pin.effect is Effect.READ:
                        continue
                    asked[event.request_id] = write, key = f"{step.operation} {event.arguments}", event.idempotency_key
                    writes.setdefault(write, set()).add(key)
                    assert len(writes[write]) == 1
                case ev.CallAnswered() if event.request_id in asked:
                    write, key = asked[event.request_id]
                    error, hands_over = event.result.error, write.startswith(HANDOFF)
                    is_undone = error is not None and (hands_over or error.details.get("effect") == "none")
                    if is_undone and key not in unknown:
                        writes[write].discard(key)
                    elif error is not None:
                        unknown.add(key)

    def teardown(self) -> None:
        """From wherever it got to: when everybody answers well, the run ends."""
        if not hasattr(self, "run_state"):
            return
        for _ in range(200):
            run = self.run_state
            if run.status.is_final:
                return
            if run.status is RunStatus.QUEUED:
                self.tell(Start())
                continue
            if run.status is RunStatus.ESCALATED:
                self.commands += 1
                fields = {
                    "command_id": f"end-{self.commands}",
                    "run_id": str(RUN_ID),
                    "action": "abort",
                    "principal": "p",
                }
                self.tell(Control.model_validate(fields, strict=False))
                continue
            self._answer_well(run)
        raise AssertionError(f"the run does not end: {self.run_state.status}, {self.run_state.requests}")

    def _answer_well(self, run: Run) -> None:
        if not run.requests:
            self.now += timedelta(seconds=60)
            self.tell(Tick())
            return
        request_id, request = next(iter(run.requests.items()))
        about = {"request_id": request_id, "run_id": RUN_ID, "tenant": "default"}
        pin = Pin(contract_hash="0" * 16, effect=Effect.READ, timeout_ms=1000)
        step = Step(id="z", operation="echo.echo", pin=pin)
        match request.kind:
            case RequestKind.PLAN:
                if isinstance(self.playbook.plan, PlanByTurns):
                    self.tell(PlanAnswer(**about, answer={}))
                else:
                    self.tell(PlanAnswer(**about, plan=Plan(revision=run.revision + 1, steps=(step,))))
            case RequestKind.CALL:
                self.tell(CallAnswer(**about, result=Result.ok({"n": 1}), child=request.event.child))
            case RequestKind.UNDO:
                self.tell(CallAnswer(**about, result=Result.ok({})))
            case RequestKind.REVIEW:
                self.tell(VerdictAnswer(**about, decision=Decision.CONTINUE))


RunMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestAnyStoryOfARunKeepsItsPromises = RunMachine.TestCase
