"""A run that hands over to another playbook, and the run that comes of it: both play, by the messages they send."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from machine_story import NOW, RUN_ID, Story, playbook, step

from triptych.executor import events as ev
from triptych.executor.deployments import Deployment
from triptych.executor.fold import admit, evolve
from triptych.executor.intake import Executor
from triptych.executor.machine import Tick
from triptych.executor.messages import messages
from triptych.executor.state import Run, RunStatus
from triptych.executor.store import run_row
from triptych.executor.trust import ForgedRecord, MisdirectedRecord
from triptych.kernel.decider import AdmissionState, InboundRecord, RejectedRecord
from triptych.kernel.kafka.bus import Record
from triptych.kernel.postgres.outbox import Send
from triptych.operator.audit.run import _run_columns
from triptych.schemas import (
    HANDOFF,
    CallAnswer,
    ChildTask,
    Control,
    ControlAction,
    Cost,
    Decision,
    Effect,
    ErrorCode,
    Grant,
    Parent,
    Playbook,
    Result,
    Spend,
    Step,
    Task,
    topics,
)

HANDS_OVER = {"playbook": "specialist", "input": {"who": "Ana"}}
GRANT = Cost(tokens=1_000, usd_micros=50_000, tool_calls=5)


def book(name: str, **changes: object) -> Playbook:
    return playbook(**{"handoffs": ("specialist", "other"), "parallel": 9, **changes, "name": name})


def model_book() -> Playbook:
    return book("test", plan={"pattern": "model", "tokens": 100, "usd": 0.01})


def hand_over(step_id: str = "a", **fields: object):
    fields = {"arguments": HANDS_OVER, "effect": Effect.IDEMPOTENT, "cost": GRANT, **fields}
    return step(step_id, operation=HANDOFF, **fields)


class Family:
    """Runs of one partition and the executor that reads what they send, in order; nobody else is there."""

    def __init__(self, parent: Playbook | None = None, more: tuple[Playbook, ...] = (), **specialist: object) -> None:
        specialist.setdefault("handoffs", ())
        playbooks = [parent or book("test"), book("specialist", **specialist), *more]
        self.executor = Executor({one.name: Deployment.of(one) for one in playbooks})
        self.now = NOW
        self.runs: dict[UUID, Run] = {}
        self.journals: dict[UUID, list[tuple[ev.Event, datetime]]] = {}
        self.sent: list[Send] = []
        self.offset = 0
        self.deaf = False
        """Nobody reads what the runs send."""
        self.publish(Task(playbook="test", task_id="t-1").to_bytes(), topics.TASKS)
        (self.parent_id,) = self.runs

    @property
    def parent(self) -> Run:
        return self.runs[self.parent_id]

    @property
    def children(self) -> list[Run]:
        return [run for run in self.runs.values() if run.parent is not None]

    @property
    def child(self) -> Run:
        (child,) = self.children
        return child

    def publish(self, body: bytes, noun: str) -> None:
        """A record comes in; whatever follows is sent and comes in too, until nobody but a worker is asked."""
        self.offset += 1
        record = Record(
            topic=noun, partition=0, offset=self.offset, timestamp=1, timestamp_type=0, key=b"", value=body,
            checksum=None, serialized_key_size=0, serialized_value_size=0, headers=(),
        )  # fmt: skip
        message = self.executor.read(InboundRecord(noun, record, body, self.now))
        state = self.runs.get(message.run_id)
        witness = self.runs.get(message.witness)
        transition = self.executor.apply(state, message, 0, self.now, has_room=not state, witness=witness)
        self.take(transition.state.run_id if transition else message.run_id, transition)

    def take(self, run_id: UUID, transition) -> None:
        if transition is None:
            return
        self.runs[run_id] = transition.state
        self.journals.setdefault(run_id, []).extend((event, self.now) for event in transition.events)
        self.check(run_id)
        for send in transition.sends:
            self.sent.append(send)
            if not self.deaf and send.noun in topics.EXECUTOR_INPUTS:
                self.publish(send.body.to_bytes(), send.noun)

    def check(self, run_id: UUID) -> None:
        (first, at), *rest = self.journals[run_id]
        run = admit(run_id, first, at)
        for event, recorded_at in rest:
            run = evolve(run, event, recorded_at)
        assert run == self.runs[run_id]
        ledger = run.ledger
        assert ledger.tool_calls + ledger.reserved_tool_calls <= ledger.max_tool_calls
        assert ledger.tokens + ledger.reserved_tokens <= ledger.max_tokens

    def tell(self, run: Run, act: Callable[[Story], object]) -> Family:
        """Play one message to one run, as a story of its own would."""
        story = Story.of(run, self.now)
        act(story)
        events = story.run.seq - run.seq
        self.runs[run.run_id] = story.run
        self.journals[run.run_id].extend((event, self.now) for event in story.last[-events:] if events)
        self.check(run.run_id)
        for send in messages(story.run, story.last, self.now):
            self.sent.append(send)
            if not self.deaf and send.noun in topics.EXECUTOR_INPUTS:
                self.publish(send.body.to_bytes(), send.noun)
        return self

    def wait(self, **duration: float) -> Family:
        self.now += timedelta(**duration)
        for run in list(self.runs.values()):
            self.tell(run, lambda story: story.tell(Tick()))
        return self


def family(*steps, work: Step | None = None, **fields: object) -> Family:
    """A parent that has handed over, and its child that has its plan."""
    one = Family(**fields)
    one.tell(one.parent, lambda story: story.plan(*(steps or [hand_over()])))
    for child in one.children:
        one.tell(child, lambda story: story.plan(work or step("work")))
    return one


def test_a_step_starts_a_run_of_another_playbook_and_answers_with_its_output() -> None:
    one = family(output={"said": "${{ steps.work.data.value }}"})
    assert (one.child.playbook.name, one.child.input, one.child.principal) == (
        "specialist",
        {"who": "Ana"},
        "anonymous",
    )
    assert one.child.parent.run_id == one.parent_id
    one.tell(one.child, lambda story: story.result("work"))
    assert (one.parent.status, one.child.status) == (RunStatus.SUCCEEDED, RunStatus.SUCCEEDED)
    assert one.parent.steps["a"].result.data == {
        "run_id": str(one.child.run_id),
        "playbook": "specialist",
        "output": {"said": 1},
    }


def test_a_child_draws_on_what_its_parent_has_reserved_and_is_settled_at_its_end() -> None:
    one = family(work=step("work", cost=Cost(tokens=100, usd_micros=10)))
    ledger = one.parent.ledger
    assert (ledger.reserved_tokens, ledger.reserved_usd_micros, ledger.reserved_tool_calls) == (1_000, 50_000, 5)
    limits = one.child.ledger
    assert (limits.max_tokens, limits.max_usd_micros, limits.max_tool_calls) == (1_000, 50_000, 5)
    one.tell(one.child, lambda story: story.result("work", spend=Spend(tokens=70, usd_micros=9)))
    ledger = one.parent.ledger
    assert (ledger.tokens, ledger.usd_micros, ledger.tool_calls) == (70, 9, 2), "its own call, and the child's"
    assert (ledger.reserved_tokens, ledger.reserved_tool_calls) == (0, 0)


def test_a_budget_that_cannot_bear_a_child_starts_none() -> None:
    one = Family(book("test", budgets={"tool_calls": 5}))
    one.tell(one.parent, lambda story: story.plan(hand_over()))
    assert (one.parent.reason.code, one.children) == ("budget_tool_calls", [])


def test_a_request_that_is_sent_again_makes_no_second_run() -> None:
    one = family()
    known = one.child
    one.wait(seconds=100)
    assert [event for event, _ in one.journals[one.parent_id] if isinstance(event, ev.RequestReissued)]
    assert one.child.run_id == known.run_id
    assert len([send for send in one.sent if send.noun == topics.CHILD_TASKS]) >= 2


def test_an_answer_that_was_lost_comes_again_with_the_same_words() -> None:
    one = family()
    one.tell(one.child, lambda story: story.result("work"))
    (first,) = [send for send in one.sent if send.noun == topics.RESULTS]
    again = one.executor.again(one.child).sends
    assert again[-1] == first
    before = one.parent
    one.publish(first.body.to_bytes(), topics.RESULTS)
    assert one.parent is before


def test_only_the_run_that_was_asked_can_answer() -> None:
    one = family()
    request = one.parent.requests[next(iter(one.parent.requests))].event
    forged = CallAnswer(request_id=request.request_id, run_id=one.parent_id, tenant="default", result=Result.ok({}))
    with pytest.raises(MisdirectedRecord):
        one.publish(forged.to_bytes(), topics.RESULTS)
    for claimed in (RUN_ID, one.child.run_id, one.parent_id):  # no run, one that has not ended, and no child
        with pytest.raises(ForgedRecord):
            one.publish(forged.model_copy(update={"child": claimed}).to_bytes(), topics.RESULTS)
    assert one.parent.status is RunStatus.RUNNING


def test_what_a_child_answers_is_taken_from_its_record_and_not_from_the_message() -> None:
    one = family(work=step("work", cost=Cost(tokens=7)), output={"said": "${{ steps.work.data.value }}"})
    one.deaf = True
    one.tell(one.child, lambda story: story.result("work", spend=Spend(tokens=7)))
    one.deaf = False
    (answer,) = [send.body for send in one.sent if send.noun == topics.RESULTS]
    lie = {"result": Result.ok({"output": "mine"}), "spend": Spend(tokens=10**9), "extended": Grant(tokens=10**9)}
    one.publish(answer.model_copy(update=lie).to_bytes(), topics.RESULTS)
    assert one.parent.steps["a"].result.data["output"] == {"said": 1}
    assert (one.parent.ledger.tokens, one.parent.ledger.max_tokens) == (7, book("test").budgets.tokens)


def asked(one: Family) -> ChildTask:
    """The task that the parent has sent, which nobody has read."""
    (task,) = [send.body for send in one.sent if send.noun == topics.CHILD_TASKS]
    return task


def asking() -> Family:
    one = Family()
    one.deaf = True
    one.tell(one.parent, lambda story: story.plan(hand_over()))
    return one


LIES = {
    "another tenant": {"tenant": "bank"},
    "another principal": {"principal": "user:root"},
    "another playbook": {"playbook": "test"},
    "another input": {"input": {"who": "Eve"}},
    "another task": {"task_id": "mine"},
    "a larger grant": {"grant": Grant(tokens=10**9, usd_micros=10**9, tool_calls=10**6)},
    "no grant": {"grant": Grant()},
    "no ancestors": {"ancestors": ()},
    "another request": {"request_id": "mine"},
    "another run": {"run_id": RUN_ID},
    "another moment": {"asked_at_ms": 77},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_child_that_its_parent_has_not_asked_for_in_these_words_is_none(lie: dict[str, object]) -> None:
    one = asking()
    task = asked(one)
    of_parent = {name: value for name, value in lie.items() if name in Parent.model_fields}
    of_task = {name: value for name, value in lie.items() if name not in of_parent}
    forged = task.model_copy(update={**of_task, "parent": task.parent.model_copy(update=of_parent)})
    before = dict(one.runs)
    with pytest.raises(ForgedRecord):
        one.publish(forged.to_bytes(), topics.CHILD_TASKS)
    assert one.runs == before
    one.publish(task.to_bytes(), topics.CHILD_TASKS)
    assert one.child.input == {"who": "Ana"}


def test_the_deadline_of_a_child_is_that_of_the_record_of_its_parent() -> None:
    one = asking()
    task = asked(one)
    later = task.parent.model_copy(update={"deadline_at": task.parent.deadline_at + timedelta(days=9)})
    one.publish(task.model_copy(update={"parent": later}).to_bytes(), topics.CHILD_TASKS)
    assert one.child.deadline_at == one.parent.deadline_at


def test_a_child_whose_task_comes_after_the_end_of_its_parent_does_not_begin() -> None:
    one = asking()
    one.tell(one.parent, lambda story: story.control("cancel"))
    task, withdrawal = (send.body for send in one.sent if send.noun == topics.CHILD_TASKS)
    one.publish(task.to_bytes(), topics.CHILD_TASKS)
    one.publish(withdrawal.to_bytes(), topics.CHILD_TASKS)
    assert one.children == []


def test_a_clients_task_that_says_that_a_run_has_sent_it_is_rejected_by_name() -> None:
    one = Family()
    task = ChildTask(
        task_id="t-9", playbook="specialist", parent=Parent(
            run_id=RUN_ID, request_id="x", asked_at_ms=1, grant=Grant(tokens=1), deadline_at=NOW, ancestors=()
        )
    )  # fmt: skip
    for forged in (task, task.model_copy(update={"parent": task.parent.model_copy(update={"withdrawn": True})})):
        with pytest.raises(RejectedRecord, match="parent") as refusal:
            one.publish(forged.to_bytes(), topics.TASKS)
        (reply,) = refusal.value.replies
        assert (reply.body.task_id, reply.body.status, reply.body.reason.code) == ("t-9", "rejected", "invalid_task")
    assert one.children == []


def test_a_child_that_was_asked_for_on_the_topic_of_the_clients_by_an_earlier_version_begins() -> None:
    one = asking()
    one.publish(asked(one).to_bytes(), topics.TASKS)
    assert one.child.parent.run_id == one.parent_id
    one.tell(one.parent, lambda story: story.control("cancel"))
    withdrawal = next(send.body for send in one.sent if send.noun == topics.CHILD_TASKS and send.body.parent.withdrawn)
    one.publish(withdrawal.to_bytes(), topics.TASKS)
    assert one.child.status is RunStatus.CANCELLED


def test_a_run_that_goes_on_withdraws_no_child_and_a_run_that_has_ended_only_its_own() -> None:
    one, other = family(), family()
    other.tell(other.parent, lambda story: story.control("cancel"))
    stranger = other.parent.run_id = UUID(int=7)
    one.runs[stranger] = other.parent
    (withdrawal,) = [send.body for send in other.sent if send.noun == topics.CHILD_TASKS and send.body.parent.withdrawn]
    for run_id in (one.parent_id, stranger, RUN_ID):
        forged = withdrawal.model_copy(update={"parent": withdrawal.parent.model_copy(update={"run_id": run_id})})
        with pytest.raises(ForgedRecord):
            one.publish(forged.to_bytes(), topics.CHILD_TASKS)
    assert one.child.status.is_active


def test_nobody_but_a_child_says_how_it_stands() -> None:
    one = family()
    for child, principal in ((RUN_ID, "user:eve"), (one.parent_id, f"run:{one.parent_id}")):
        told = Control(
            command_id="mine", run_id=one.parent_id, action=ControlAction.CHILD, principal=principal,
            data={"run_id": str(child), "status": "escalated"},
        )  # fmt: skip
        with pytest.raises(ForgedRecord):
            one.publish(told.to_bytes(), topics.CONTROL)
    about_the_child = told.model_copy(update={"data": {"run_id": str(one.child.run_id), "status": "escalated"}})
    one.publish(about_the_child.to_bytes(), topics.CONTROL)
    assert one.parent.children_waiting == {}, "its record says that it goes on"


def test_whoever_ends_a_run_ends_its_children() -> None:
    one = family(hand_over("a"), hand_over("b", arguments={**HANDS_OVER, "input": {"who": "Ben"}}))
    one.tell(one.parent, lambda story: story.control("cancel"))
    assert [child.status for child in one.children] == [RunStatus.CANCELLED] * 2


def test_a_child_that_never_began_is_not_begun_by_its_withdrawal() -> None:
    one = family()
    one.tell(one.parent, lambda story: story.control("cancel"))
    (withdrawal,) = [send for send in one.sent if send.noun == topics.CHILD_TASKS and send.body.parent.withdrawn]
    assert withdrawal.to == one.child.run_id
    del one.runs[one.child.run_id]
    one.publish(withdrawal.body.to_bytes(), topics.CHILD_TASKS)
    assert one.children == []


def test_a_child_that_waits_for_a_person_is_seen_at_the_parent_and_stops_its_clock() -> None:
    one = family(budgets={"wall_ms": 3_600_000})
    one.tell(one.child, lambda story: story.fail("work", ErrorCode.FORBIDDEN))
    assert one.child.status is RunStatus.ESCALATED
    assert {step: reason.code for step, reason in one.parent.children_waiting.items()} == {"a": one.child.reason.code}
    one.wait(hours=5)
    assert one.parent.status is RunStatus.RUNNING
    one.tell(one.child, lambda story: story.control("resume"))
    assert one.parent.children_waiting == {}
    assert one.parent.deadline_at == NOW + timedelta(hours=5, minutes=10)
    one.tell(one.child, lambda story: story.result("work"))
    assert one.parent.status is RunStatus.SUCCEEDED


BUDGETS = {"tool_calls": 40, "tokens": 9_000, "usd": 0.5}
AS_BUDGETED = Cost(tokens=9_000, usd_micros=500_000, tool_calls=40)


def test_a_child_gets_no_more_of_its_budgets_than_its_parent_has_left() -> None:
    one = family(hand_over(cost=AS_BUDGETED), budgets=BUDGETS)
    limits = one.child.ledger
    assert (limits.max_tool_calls, limits.max_tokens, limits.max_usd_micros) == (40, 9_000, 500_000)
    poor = book("test", budgets={"tool_calls": 10, "tokens": 8_000, "usd": 0.1})
    one = Family(poor, budgets=BUDGETS)
    one.tell(one.parent, lambda story: story.plan(hand_over(cost=AS_BUDGETED)))
    limits = one.child.ledger
    assert (limits.max_tool_calls, limits.max_tokens, limits.max_usd_micros) == (9, 8_000, 100_000)
    one = Family(book("test", budgets={"tool_calls": 1}), budgets=BUDGETS)
    one.tell(one.parent, lambda story: story.plan(hand_over(cost=AS_BUDGETED)))
    assert (one.parent.reason.code, one.children) == ("budget_tool_calls", []), "it could do nothing"


@pytest.mark.parametrize("fans", [False, True])
def test_children_for_which_the_budgets_do_not_suffice_at_once_run_one_after_the_other(*, fans: bool) -> None:
    told = {"arguments": {**HANDS_OVER, "input": {"who": "${{ item }}"}}, "map": [1, 2, 3]}
    named = [hand_over(name, cost=AS_BUDGETED, arguments={**HANDS_OVER, "input": {"n": name}}) for name in "abc"]
    one = Family(budgets=BUDGETS)
    one.tell(one.parent, lambda story: story.plan(*([hand_over(cost=AS_BUDGETED, **told)] if fans else named)))
    for number in range(1, 4):
        assert len(one.children) == number, "one at a time"
        child = one.children[-1]
        one.tell(child, lambda story: story.plan(step("work")))
        one.tell(one.runs[child.run_id], lambda story: story.result("work"))
    assert (one.parent.status, one.parent.ledger.tool_calls) == (RunStatus.SUCCEEDED, 6)


def told_client(one: Family, run: Run) -> list[tuple[str, bool, str]]:
    """What the client of a run was told, in order."""
    bodies = [send.body for send in one.sent if send.noun == topics.OUTCOMES]
    return [(body.status.value, body.final, body.reason.code) for body in bodies if body.run_id == run.run_id]


def test_the_client_of_a_parent_is_told_that_a_child_waits_for_a_person() -> None:
    one = family()
    one.tell(one.child, lambda story: story.fail("work", ErrorCode.FORBIDDEN))
    assert told_client(one, one.parent) == [("escalated", False, "identity")]
    assert one.parent.status is RunStatus.RUNNING
    assert (one.parent.public_status, one.parent.public_reason.code) == (RunStatus.ESCALATED, "identity")
    assert "the run of step a waits for a person" in one.parent.public_reason.message
    assert one.executor.admission_state(one.parent) is AdmissionState.AWAY
    row, audited = run_row(one.parent), _run_columns(one.parent)
    assert row[7:10] == tuple(audited[name] for name in ("status", "reason_code", "reason_message")), "as verify says"
    assert row[7:9] == ("escalated", "identity")
    before = one.parent.seq
    one.tell(one.parent, lambda story: story.control("resume", command_id="too-early"))
    assert one.parent.seq == before + 1
    (refused,) = [event for event, _ in one.journals[one.parent_id] if isinstance(event, ev.CommandRefused)]
    assert (
        f"waits for the run {one.child.run_id} of step a, which is escalated: resume that one" in refused.reason.message
    )
    one.tell(one.child, lambda story: story.control("resume"))
    assert (one.parent.public_status, one.executor.admission_state(one.parent)) == (
        RunStatus.RUNNING,
        AdmissionState.ACTIVE,
    )
    one.tell(one.child, lambda story: story.result("work"))
    assert told_client(one, one.parent) == [("escalated", False, "identity"), ("succeeded", True, "done")]


def three_levels() -> tuple[Family, Run, Run]:
    """A run, its child, and the child of that, which has its plan."""
    one = Family(handoffs=("other",), more=(book("other", handoffs=()),))
    one.tell(one.parent, lambda story: story.plan(hand_over()))
    middle = one.child
    inner = hand_over("inner", arguments={"playbook": "other"}, cost=Cost(tokens=500, tool_calls=3))
    one.tell(middle, lambda story: story.plan(inner))
    (deepest,) = [run for run in one.children if run.run_id != middle.run_id]
    one.tell(deepest, lambda story: story.plan(step("work")))
    return one, one.runs[middle.run_id], one.runs[deepest.run_id]


def test_every_run_above_one_that_waits_for_a_person_is_told_and_stops_its_clock() -> None:
    one, middle, deepest = three_levels()
    for times in (1, 2):
        one.tell(one.runs[deepest.run_id], lambda story: story.fail("work", ErrorCode.FORBIDDEN))
        assert one.parent.public_status is one.runs[middle.run_id].public_status is RunStatus.ESCALATED
        assert told_client(one, one.parent) == [("escalated", False, "identity")] * times
        one.wait(hours=5)
        one.tell(one.runs[deepest.run_id], lambda story, name=f"c-{times}": story.control("resume", command_id=name))
        assert one.parent.public_status is one.runs[middle.run_id].public_status is RunStatus.RUNNING
    assert one.parent.deadline_at == NOW + timedelta(hours=10, minutes=10)
    one.tell(one.runs[deepest.run_id], lambda story: story.result("work"))
    assert one.parent.status is RunStatus.SUCCEEDED


def test_a_run_two_levels_up_goes_on_when_a_person_aborts_the_one_that_waits() -> None:
    one, middle, deepest = three_levels()
    one.tell(deepest, lambda story: story.fail("work", ErrorCode.FORBIDDEN))
    one.tell(one.runs[deepest.run_id], lambda story: story.control("abort"))
    assert one.runs[middle.run_id].reason.code == one.parent.public_reason.code == "child_failed"
    one.tell(one.runs[middle.run_id], lambda story: story.control("skip"))
    assert (one.runs[middle.run_id].status, one.parent.status) == (RunStatus.SUCCEEDED, RunStatus.SUCCEEDED)


@pytest.mark.parametrize("first", ["child", "parent"])
def test_the_time_in_which_persons_have_both_parent_and_child_is_given_back_once(first: str) -> None:
    one = family(hand_over(), step("b"))
    one.tell(one.child, lambda story: story.fail("work", ErrorCode.FORBIDDEN))
    one.wait(hours=1).tell(one.parent, lambda story: story.fail("b", ErrorCode.FORBIDDEN))
    for is_childs in (first == "child", first == "parent"):
        one.wait(hours=1).tell(one.child if is_childs else one.parent, lambda story: story.control("resume"))
        if is_childs:
            one.tell(one.child, lambda story: story.result("work"))
    assert (one.parent.status, one.parent.children_waiting) == (RunStatus.RUNNING, {})
    assert one.parent.deadline_at == NOW + timedelta(hours=3, minutes=10)


def test_what_a_person_gives_a_child_the_parent_has_too() -> None:
    one = family(work=step("work", cost=Cost(tokens=4_000)))
    assert one.child.reason.code == "budget_tokens"
    one.tell(one.child, lambda story: story.control("resume", extend={"tokens": 5_000, "tool_calls": 3}))
    before = one.parent.ledger
    one.tell(one.child, lambda story: story.result("work", spend=Spend(tokens=4_000)))
    assert one.parent.ledger.max_tokens == before.max_tokens + 5_000
    assert one.parent.ledger.max_tool_calls == before.max_tool_calls + 3
    assert one.parent.ledger.tokens == 4_000


def test_a_child_that_a_person_aborts_fails_the_step_and_a_resume_starts_another() -> None:
    one = family()
    one.tell(one.child, lambda story: story.fail("work", ErrorCode.FORBIDDEN))
    one.tell(one.child, lambda story: story.control("abort"))
    assert (one.parent.status, one.parent.reason.code) == (RunStatus.ESCALATED, "child_failed")
    one.tell(one.parent, lambda story: story.control("resume"))
    assert len(one.children) == 2
    assert one.parent.steps["a"].call == 2


def test_a_child_that_is_refused_fails_the_step_with_the_reason() -> None:
    one = Family(input={"type": "object", "required": ["something else"]})
    one.tell(one.parent, lambda story: story.plan(hand_over()))
    assert (one.parent.reason.code, one.children) == ("invalid_arguments", [])
    assert "something else" in one.parent.reason.message


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"playbook": "unheard-of"}, "invalid_arguments"),
        ({"playbook": "specialist", "input": "text"}, "invalid_arguments"),
        ({}, "invalid_arguments"),
    ],
)
def test_a_run_hands_over_only_as_its_playbook_allows(arguments: dict[str, object], code: str) -> None:
    one = Family()
    one.tell(one.parent, lambda story: story.plan(hand_over(arguments=arguments)))
    assert (one.parent.reason.code, one.children) == (code, [])


def test_playbooks_do_not_hand_over_in_a_circle() -> None:
    one = Family(handoffs=("test",))
    one.tell(one.parent, lambda story: story.plan(hand_over()))
    back = hand_over("back", arguments={"playbook": "test"}, cost=Cost())
    one.tell(one.child, lambda story: story.plan(back))
    assert (one.child.status, one.child.reason.code) == (RunStatus.ESCALATED, "loop")


def test_a_fan_out_may_hand_over_each_item() -> None:
    each = hand_over("a", map=["Ana", "Ben"], arguments={"playbook": "specialist", "input": {"who": "${{ item }}"}})
    one = family(each, output={"who": "${{ input.who }}"})
    assert [child.input for child in one.children] == [{"who": "Ana"}, {"who": "Ben"}]
    for child in reversed(one.children):
        one.tell(child, lambda story: story.result("work"))
    branches = one.parent.steps["a"].result.data["branches"]
    assert [branch["data"]["output"]["who"] for branch in branches] == ["Ana", "Ben"]
    assert one.parent.status is RunStatus.SUCCEEDED


def test_the_clock_of_a_child_is_within_that_of_its_parent() -> None:
    one = Family(book("test", budgets={"wall_ms": 1_000}))
    one.tell(one.parent, lambda story: story.plan(hand_over()))
    assert one.child.deadline_at == one.parent.deadline_at


def test_a_later_plan_that_hands_over_in_a_step_of_the_same_name_starts_a_child_of_its_own() -> None:
    one = family(hand_over(expect="false"), parent=model_book())
    child = one.child
    one.tell(child, lambda story: story.result("work"))
    one.tell(one.parent, lambda story: story.verdict("a", Decision.REPLAN))
    one.tell(one.parent, lambda story: story.plan(hand_over(arguments={**HANDS_OVER, "input": {"who": "Bea"}})))
    _, second = one.children
    assert second.task_id != child.task_id
    one.tell(second, lambda story: story.plan(step("work")))
    one.tell(one.children[1], lambda story: story.result("work"))
    assert one.parent.status is RunStatus.SUCCEEDED


def test_what_a_child_had_under_way_at_its_end_counts_in_whole_at_its_parent() -> None:
    one = Family()
    one.tell(one.parent, lambda story: story.plan(hand_over()))
    one.tell(one.child, lambda story: story.plan(step("work", cost=Cost(tokens=900, usd_micros=40_000))))
    one.tell(one.child, lambda story: story.control("cancel"))
    assert (one.parent.ledger.tokens, one.parent.ledger.usd_micros) == (900, 40_000)
    assert one.parent.ledger.reserved_tokens == 0


def test_a_call_that_is_asked_while_the_clock_stands_still_has_as_long_as_the_clock_has_left() -> None:
    one = Family(book("test", budgets={"wall_ms": 60_000}))
    one.tell(one.parent, lambda story: story.plan(hand_over(), step("b"), step("c", "b")))
    one.tell(one.child, lambda story: story.plan(step("work")))
    one.wait(seconds=10)
    one.tell(one.child, lambda story: story.fail("work", ErrorCode.FORBIDDEN))
    one.wait(hours=1)
    one.tell(one.parent, lambda story: story.result("b"))
    (asked,) = [request.event for request in one.parent.requests.values() if request.step == "c"]
    assert asked.deadline_at == one.now + timedelta(seconds=50)


def test_what_is_sent_again_to_a_child_of_a_run_that_is_being_undone_is_withdrawn_again() -> None:
    story = Story(book("test")).plan(hand_over(), step("stop")).fail("stop", ErrorCode.FORBIDDEN)
    story.control("abort", undo=True).wait(minutes=2)
    tasks = [send.body for send in messages(story.run, story.last, story.now)]
    assert [task.parent.withdrawn for task in tasks] == [False, True]


def test_a_parent_asks_for_its_child_under_the_same_id_whenever_it_asks() -> None:
    """As after the database came back with an older state: then it asks later, and its child may be there already."""

    def child_asked_at(later: timedelta) -> object:
        story = Story(playbook(handoffs=["other"]))
        story.now += later
        step_of_child = step(
            "hand", operation="playbook.run", arguments={"playbook": "other"}, effect=Effect.IDEMPOTENT
        )
        return story.plan(step_of_child).request_of("hand").child

    assert child_asked_at(timedelta(0)) == child_asked_at(timedelta(hours=3))
