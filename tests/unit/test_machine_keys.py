"""Business keys: who wants one asks first, and what became of the write of who has it decides."""

from __future__ import annotations

from uuid import UUID

import pytest
from machine_story import RUN_ID, Story, model_playbook, playbook, step

from triptych.executor import events as ev
from triptych.executor.keys import Holding, KeyReply, KeyState, holding_under, reply_to
from triptych.executor.messages import messages
from triptych.executor.state import RequestKind, RunStatus
from triptych.schemas import BusinessKey, Effect, ErrorCode, OnRepeat, Pin, Result, Step, Undo

OTHER = UUID("01900000-0000-7000-8000-000000000002")
BACK = Undo(operation="desk.back", contract_hash="1" * 16, effect=Effect.IDEMPOTENT, timeout_ms=1_000)
UNDONE = Result.failed(ErrorCode.UNAVAILABLE, "down", effect="none")


def refund(step_id: str = "a", *depends_on: str, **changes: object) -> Step:
    """A step that refunds an invoice."""
    unique = BusinessKey(value="refund:${{ arguments.invoice }}", on_repeat=changes.pop("on_repeat", "conflict"))
    pin = Pin(
        contract_hash="0" * 16,
        effect=Effect.ONCE,
        timeout_ms=1_000,
        business_key=unique,
        undo=changes.pop("undo", None),
    )
    fields = {"id": step_id, "operation": "desk.refund", "arguments": {"invoice": 7}, "depends_on": depends_on}
    return Step.model_validate({**fields, "pin": pin, **changes}, strict=False)


def tell(story: Story, standing: KeyState, step_id: str = "a", **fields: object) -> Story:
    request = story.request(RequestKind.KEY, step_id)
    return story.tell(KeyReply(request, standing, **fields))


def key_of(story: Story, step_id: str = "a") -> ev.KeyRequested:
    event = story.run.requests[story.request(RequestKind.KEY, step_id)].event
    assert isinstance(event, ev.KeyRequested)
    return event


def reason_of(story: Story) -> str | None:
    return story.run.reason.code if story.run.reason else None


def test_a_write_with_a_business_key_asks_for_it_first_and_sends_nothing() -> None:
    story = Story().plan(refund())
    assert (key_of(story).key, key_of(story).idempotency_key) == ("refund:7", f"{RUN_ID}:a:1")
    assert messages(story.run, story.last, story.now) == []


def test_who_is_granted_the_key_makes_the_call() -> None:
    story = tell(Story().plan(refund()), KeyState.GRANTED)
    assert story.request_of("a").business_key == "refund:7"
    assert story.result("a").run.status is RunStatus.SUCCEEDED


def test_a_repeat_gets_the_receipt_of_the_first_and_undoes_nothing_of_it() -> None:
    story = Story(playbook(output={"id": "${{ steps.a.data.id }}"})).plan(refund(on_repeat="receipt", undo=BACK))
    tell(story, KeyState.RECEIPT, holder=OTHER, holder_step="b", result=Result.ok({"id": 9}))
    assert story.run.status is RunStatus.SUCCEEDED
    assert story.run.output == {"id": 9}
    assert story.run.ledger.tool_calls == 0
    assert not story.run.steps["a"].took_effect


def test_a_repeat_is_a_conflict_that_names_the_other_run() -> None:
    story = Story().plan(refund())
    tell(story, KeyState.CONFLICT, holder=OTHER, holder_step="b", result=Result.ok({}), operation="desk.refund")
    assert (story.run.status, reason_of(story)) == (RunStatus.ESCALATED, "conflict")
    assert all(part in story.run.reason.message for part in ("'refund:7'", str(OTHER), "step b", "skip"))
    story = Story(model_playbook()).plan(refund())
    assert tell(story, KeyState.CONFLICT, holder=OTHER).run.status is RunStatus.PLANNING


def test_who_finds_the_key_held_asks_again_less_and_less_often() -> None:
    story, waits = Story(playbook(budgets={"wall_ms": 3_600_000})).plan(refund()), []
    for _ in range(6):
        tell(story, KeyState.HELD, holder=OTHER, holder_step="b")
        (retry,) = story.run.retries.values()
        waits.append(retry.due_at - story.now)
        story.now = retry.due_at
        story.wait()
    assert waits == sorted(waits)
    assert waits[-1] > 8 * waits[0]
    assert not story.run.retries
    tell(story, KeyState.RECEIPT, holder=OTHER, holder_step="b", result=Result.ok({}))
    assert story.run.status is RunStatus.SUCCEEDED


def test_who_is_known_to_have_done_nothing_asks_for_the_key_anew_and_who_is_not_keeps_it() -> None:
    story = tell(Story().plan(refund()), KeyState.GRANTED).result("a", UNDONE).wait(seconds=31)
    assert key_of(story).key == "refund:7"
    story = tell(Story().plan(refund()), KeyState.GRANTED).fail("a", ErrorCode.TIMEOUT).wait(seconds=31)
    assert story.request_of("a").attempt == 2, "the key is still its own"


def test_a_question_that_the_database_did_not_answer_is_asked_again_and_answered_once() -> None:
    story = Story().plan(refund())
    request = story.request(RequestKind.KEY, "a")
    story.wait(seconds=6)
    assert story.kinds() == ["RequestReissued"]
    assert messages(story.run, story.last, story.now) == []
    story.tell(KeyReply(request, KeyState.GRANTED))
    assert story.tell(KeyReply(request, KeyState.GRANTED)).last == ()


def test_a_key_that_is_granted_while_a_person_has_the_run_is_asked_for_again() -> None:
    story = Story(playbook(parallel=9)).plan(refund(), step("stop")).fail("stop", ErrorCode.FORBIDDEN)
    assert not tell(story, KeyState.GRANTED).run.requests
    assert key_of(story.control("resume")).key == "refund:7"


def test_a_key_that_cannot_be_made_is_told_and_nothing_is_asked_for() -> None:
    for arguments in ({}, {"invoice": "x" * 400}, {"invoice": "a\0b"}):
        story = Story().plan(refund(arguments=arguments))
        assert (story.run.status, reason_of(story)) == (RunStatus.ESCALATED, "expression_error")
        assert "business" in story.run.reason.message


# --- what becomes of who has a key ----------------------------------------------------------------


def granted(*more: Step, **changes: object) -> Story:
    return tell(Story(playbook(parallel=9)).plan(refund(**changes), *more), KeyState.GRANTED)


def holding(story: Story) -> Holding:
    return holding_under(story.run, f"{RUN_ID}:a:1")


def test_the_time_of_a_key_begins_with_the_last_answer_that_leaves_its_write_open() -> None:
    story = granted().fail("a", ErrorCode.TIMEOUT).wait(seconds=31)
    story.fail("a", ErrorCode.TIMEOUT)
    assert story.run.steps["a"].written.answered_at == story.now
    open_since = story.now
    story.wait(seconds=31).result("a", UNDONE)
    assert story.run.steps["a"].written.answered_at == open_since


def test_a_key_is_held_while_its_call_is_asked_for_open_or_waits_for_its_retry() -> None:
    assert holding(Story().plan(refund())).is_under_way
    story = granted()
    assert holding(story).is_under_way
    assert holding(story.fail("a", ErrorCode.UNAVAILABLE)).is_under_way


def test_a_key_is_free_when_its_call_certainly_did_nothing_or_was_undone_or_never_made() -> None:
    assert holding(granted().result("a", UNDONE)).is_free
    assert holding(Story().plan(refund()).control("cancel")).is_free
    story = granted(step("stop"), undo=BACK).result("a").fail("stop", ErrorCode.FORBIDDEN)
    assert not holding(story).is_free
    assert holding(story.control("abort", undo=True).undone("a")).is_free


def test_a_key_whose_call_was_open_at_the_end_is_held_until_it_is_told() -> None:
    story = granted()
    request = story.request(RequestKind.CALL, "a")
    assert holding(story.control("cancel")).is_under_way
    from test_machine_ending import WITHDRAWN, late  # noqa: PLC0415

    assert holding(late(story, request, WITHDRAWN)).is_free
    story = granted()
    request = story.request(RequestKind.CALL, "a")
    assert holding(late(story.control("cancel"), request, Result.ok({"id": 1}))).result == Result.ok({"id": 1})


def test_of_a_write_in_doubt_the_key_is_taken_and_nobody_has_a_receipt() -> None:
    story = granted().fail("a", ErrorCode.IN_DOUBT)
    held = holding(story)
    assert (held.is_free, held.is_under_way, held.result) == (False, False, None)
    told = reply_to(key_of(Story().plan(refund(on_repeat="receipt"))), "desk.refund", OTHER, held)
    assert told.key_state is KeyState.CONFLICT


@pytest.mark.parametrize(
    ("on_repeat", "operation", "standing"),
    [
        ("receipt", "desk.refund", KeyState.RECEIPT),
        ("receipt", "desk.other", KeyState.CONFLICT),
        ("conflict", "desk.refund", KeyState.CONFLICT),
    ],
)
def test_a_receipt_is_given_where_it_is_declared_and_of_the_same_operation(
    on_repeat: str, operation: str, standing: KeyState
) -> None:
    asked = key_of(Story().plan(refund(on_repeat=on_repeat)))
    assert reply_to(asked, operation, OTHER, holding(granted().result("a"))).key_state is standing


def test_a_key_is_written_as_a_text_or_with_its_time_and_what_a_repeat_gets() -> None:
    assert BusinessKey.model_validate_json('"refund:1"').for_ms == 30 * 86_400_000
    written = BusinessKey.model_validate_json('{"value": "x", "for": "36h", "on_repeat": "receipt"}')
    assert (written.for_ms, written.on_repeat) == (36 * 3_600_000, OnRepeat.RECEIPT)
    with pytest.raises(ValueError, match="for example 30d"):
        BusinessKey.model_validate_json('{"value": "x", "for": "soon"}')
