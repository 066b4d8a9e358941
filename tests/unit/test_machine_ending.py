"""The end of a run reaches what has not begun, names what is under way, and records what is told later."""

from __future__ import annotations

import pytest
from machine_story import Story, model_playbook, playbook, read, step

from triptych.executor import events as ev
from triptych.executor.messages import final_outcome, messages
from triptych.executor.state import RequestKind, RunStatus
from triptych.kernel.postgres.outbox import Send
from triptych.schemas import CallAnswer, CallRequest, Cost, Effect, ErrorCode, PlanAnswer, Result, Spend, Undo, topics

BACK = Undo(operation="desk.back", contract_hash="1" * 16, effect=Effect.IDEMPOTENT, timeout_ms=1_000)
WRITE = {"effect": Effect.ONCE, "operation": "desk.refund"}
WITHDRAWN = Result.failed(ErrorCode.CANCELLED, "the run was over", effect="none", withdrawn=True)


def sent(story: Story, noun: str) -> list[Send]:
    return [send for send in messages(story.run, story.last, story.now) if send.noun == noun]


def withdrawn(story: Story) -> dict[str, str]:
    """Where each withdrawal goes."""
    return {send.body.fields["request_id"]: send.body.fields["topic"] for send in sent(story, topics.WITHDRAWALS)}


def late(story: Story, request_id: str, result: Result, **fields: object) -> Story:
    answer = CallAnswer(request_id=request_id, run_id=story.run.run_id, tenant="default", result=result, **fields)
    return story.tell(answer)


@pytest.mark.parametrize("end", ["cancel", "abort"])
def test_the_end_withdraws_every_open_request_where_it_was_asked(end: str) -> None:
    story = Story(playbook(parallel=9)).plan(step("a", **WRITE), step("b", arguments={"n": 2}), step("c"))
    asked = {story.request(RequestKind.CALL, name): name for name in "ab"}
    if end == "abort":
        story.fail("c", ErrorCode.FORBIDDEN)
    else:
        asked[story.request(RequestKind.CALL, "c")] = "c"
    story.control(end)
    topic = {"a": "calls.desk", "b": "calls.echo", "c": "calls.echo"}
    assert withdrawn(story) == {request: topic[name] for request, name in asked.items()}


def test_a_plan_and_a_review_that_are_asked_for_are_withdrawn_too() -> None:
    story = Story(model_playbook()).control("cancel")
    assert list(withdrawn(story).values()) == ["plan-requests"]
    story = Story(playbook(review="every_step")).plan(step("a")).result("a").control("cancel")
    assert list(withdrawn(story).values()) == ["reviews"]


def test_a_withdrawal_has_an_id_of_its_own_that_follows_from_its_request() -> None:
    story = Story().plan(step("a", **WRITE))
    request = story.request(RequestKind.CALL, "a")
    (send,) = sent(story.control("cancel"), topics.WITHDRAWALS)
    assert send.event_id == f"{request}:withdrawn"


def test_writes_under_way_at_the_end_are_named_with_their_keys() -> None:
    story = Story(playbook(parallel=9)).plan(step("a", **WRITE), step("read"))
    key = story.request_of("a").idempotency_key
    story.control("cancel")
    (named,) = final_outcome(story.run).body.under_way
    assert named.model_dump() == {"step": "a", "operation": "desk.refund", "idempotency_key": key, "known": "asked"}
    ended = story.last[-1]
    assert isinstance(ended, ev.RunEnded)
    assert ended.under_way == (named,)


def test_a_write_that_waits_for_its_retry_is_not_made_and_is_named_as_in_doubt() -> None:
    story = Story().plan(step("a", **WRITE)).fail("a", ErrorCode.TIMEOUT)
    assert story.run.retries
    story.control("cancel")
    (named,) = final_outcome(story.run).body.under_way
    assert (named.step, named.known) == ("a", "in_doubt")
    assert story.wait(hours=1).last == ()


def test_what_certainly_did_nothing_is_not_named() -> None:
    story = Story().plan(step("a", **WRITE)).result("a", Result.failed(ErrorCode.UNAVAILABLE, "down", effect="none"))
    assert final_outcome(story.control("cancel").run).body.under_way == ()


def test_a_late_answer_is_recorded_and_changes_neither_outcome_nor_status() -> None:
    story = Story().plan(step("a", cost=Cost(tokens=50, usd_micros=70), **WRITE))
    request = story.request(RequestKind.CALL, "a")
    story.control("cancel")
    outcome = final_outcome(story.run).body.to_bytes()
    late(story, request, Result.ok({"id": 7}), spend=Spend(tokens=40, usd_micros=60))
    assert story.kinds() == ["AnsweredLate"]
    assert sent(story, topics.OUTCOMES) == []
    assert final_outcome(story.run).body.to_bytes() == outcome
    assert story.run.status is RunStatus.CANCELLED
    assert (story.run.ledger.tokens, story.run.ledger.usd_micros, story.run.ledger.reserved_tokens) == (40, 60, 0)
    assert story.run.state("a").answer_to_keep == Result.ok({"id": 7})
    assert late(story, request, Result.ok({"id": 7})).last == (), "it is told once"


def test_what_was_withdrawn_before_it_began_costs_nothing_and_did_nothing() -> None:
    story = Story().plan(step("a", cost=Cost(tokens=50, usd_micros=70), **WRITE))
    request = story.request(RequestKind.CALL, "a")
    late(story.control("cancel"), request, WITHDRAWN)
    assert (story.run.ledger.tokens, story.run.ledger.reserved_tokens) == (0, 0)
    assert not story.run.state("a").took_effect


def test_of_what_nobody_tells_the_whole_grant_counts_as_spent() -> None:
    story = Story().plan(step("a", cost=Cost(tokens=50, usd_micros=70), **WRITE)).control("cancel")
    assert (story.run.ledger.reserved_tokens, story.run.ledger.reserved_usd_micros) == (50, 70)


def test_a_late_answer_that_cost_more_than_its_grant_is_on_record_with_what_it_cost() -> None:
    story = Story().plan(step("a", cost=Cost(tokens=50), **WRITE))
    request = story.request(RequestKind.CALL, "a")
    late(story.control("cancel"), request, Result.ok({}), spend=Spend(tokens=80))
    assert story.kinds() == ["Overspent", "AnsweredLate"]
    assert story.run.ledger.tokens == 80


def test_a_plan_that_comes_late_is_recorded_with_its_cost() -> None:
    story = Story(model_playbook())
    request = story.request(RequestKind.PLAN)
    story.control("cancel")
    story.tell(PlanAnswer(request_id=request, run_id=story.run.run_id, tenant="default", spend=Spend(tokens=9)))
    assert story.kinds() == ["AnsweredLate"]
    assert story.run.ledger.tokens == 9


def test_an_answer_that_was_never_asked_for_changes_nothing_after_the_end_either() -> None:
    story = Story().plan(step("a", **WRITE))
    request = story.request(RequestKind.CALL, "a")
    story.control("cancel")
    assert late(story, "something:else", Result.ok({})).last == ()
    verdict = PlanAnswer(request_id=request, run_id=story.run.run_id, tenant="default")
    assert story.tell(verdict).last == (), "an answer of another kind is none"


def test_an_abort_with_undo_withdraws_what_has_not_begun_and_knows_what_the_others_said() -> None:
    writes = [step(name, undo=BACK, effect=Effect.IDEMPOTENT, arguments={"n": name}) for name in ("a", "b")]
    story = Story(playbook(parallel=9)).plan(*writes, step("stop"))
    asked = {name: story.request(RequestKind.CALL, name) for name in ("a", "b")}
    story.fail("stop", ErrorCode.FORBIDDEN).control("abort", undo=True)
    assert set(withdrawn(story)) == set(asked.values())
    assert story.run.status is RunStatus.UNDOING
    story.result("a", WITHDRAWN)
    story.result("b", Result.ok({"value": 1}))
    (send,) = messages(story.run, [event for event in story.last if isinstance(event, ev.UndoRequested)], story.now)
    request = read(send)
    assert isinstance(request, CallRequest)
    assert request.idempotency_key.endswith(":b:undo")
    story.undone("b")
    assert "undone: b" in story.run.reason.message
    assert "a" not in story.run.reason.message.partition("undone: ")[2]


def test_an_undo_that_is_asked_for_is_withdrawn_when_the_run_is_cancelled_and_named() -> None:
    story = Story(playbook(parallel=9)).plan(step("a", undo=BACK, effect=Effect.IDEMPOTENT), step("stop", "a"))
    story.result("a").fail("stop", ErrorCode.FORBIDDEN).control("abort", undo=True)
    undo = story.request(RequestKind.UNDO, "a")
    story.control("cancel", "c-2")
    assert withdrawn(story) == {undo: "calls.desk"}
    (named,) = final_outcome(story.run).body.under_way
    assert (named.operation, named.idempotency_key) == ("desk.back", f"{story.run.run_id}:a:undo")


def test_a_request_that_an_aborted_run_waits_for_is_withdrawn_again_and_not_asked_again() -> None:
    story = Story(playbook(parallel=9)).plan(step("a", undo=BACK, effect=Effect.IDEMPOTENT), step("stop"))
    request = story.request(RequestKind.CALL, "a")
    story.fail("stop", ErrorCode.FORBIDDEN).control("abort", undo=True).wait(minutes=2)
    assert story.kinds() == ["RequestReissued"]
    assert list(withdrawn(story)) == [request]
    assert sent(story, "calls.echo") == []
