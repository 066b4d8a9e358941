"""The recount of `triptych verify` agrees with the ledger on what counts as a call."""

from __future__ import annotations

from triptych.operator.audit.money import RunAccount
from triptych.schemas import FixedPlan, Playbook, StepSpec

PLAYBOOK = Playbook(
    name="p",
    goal="g",
    input={"type": "object"},
    tools=("desk.put",),
    plan=FixedPlan(steps=(StepSpec(id="put", operation="desk.put"),)),
)


def retry(**fields: object) -> dict[str, object]:
    return {"ask": "call", "step": "put", "postponed": False, **fields}


def test_a_call_that_was_refused_before_it_was_made_does_not_count() -> None:
    account = RunAccount.of(PLAYBOOK)
    for request_id in ("put:1", "put:2"):
        assert list(account.book("CallRequested", {"request_id": request_id, "step": "put", "reserved": {}})) == []
    list(account.book("RetryScheduled", retry(postponed=True)))
    assert account.used["tool_calls"] == 1


def test_a_call_that_met_an_outage_does_not_count_and_is_given_back_once() -> None:
    account = RunAccount.of(PLAYBOOK)
    for request_id in ("put:1", "put:2"):
        list(account.book("CallRequested", {"request_id": request_id, "step": "put", "reserved": {}}))
        list(account.book("CallAnswered", {"request_id": request_id, "step": "put", "uncounted": True}))
        assert account.used["tool_calls"] == 0
        list(account.book("RetryScheduled", retry(postponed=True)))
    assert account.used["tool_calls"] == 0


def test_an_attempt_that_failed_counts() -> None:
    account = RunAccount.of(PLAYBOOK)
    list(account.book("CallRequested", {"request_id": "put:1", "step": "put", "reserved": {}}))
    list(account.book("RetryScheduled", retry()))
    assert account.used["tool_calls"] == 1


def test_what_an_answer_cost_beyond_its_grant_is_no_fault_once_it_is_on_record() -> None:
    def exceeded(*events: tuple[str, dict[str, object]]) -> list[str]:
        account = RunAccount.of(PLAYBOOK)
        return [problem for event, data in events for problem in account.book(event, data)]

    asked = ("CallRequested", {"request_id": "put:1", "step": "put", "reserved": {"tokens": 10}})
    answered = ("CallAnswered", {"request_id": "put:1", "spend": {"tokens": 10**9, "usd_micros": 0}})
    noted = ("Overspent", {"request_id": "put:1", "granted": {"tokens": 10}, "spent": {"tokens": 10**9}})
    assert exceeded(asked, answered)
    assert exceeded(asked, noted, answered) == []
