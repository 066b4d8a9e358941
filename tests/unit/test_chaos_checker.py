"""The checker of the nemesis finds what it is there to find, and nothing in a run as it should be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from triptych_chaos.checker import (
    DELIVERIES,
    Effects,
    Event,
    Run,
    Violation,
    check_delivery,
    check_effects,
    check_leftovers,
    check_run,
    check_task,
)
from triptych_chaos.client import Observed
from triptych_chaos.webhook_sender import Delivery

RUN_ID, TASK_ID, OUTCOME = "0190-run", "task-1", ("0190-run:outcome", "5f2a")
LIMITS = {"steps": 3, "tool_calls": 4, "tokens": 1_000, "usd_micros": 500, "replans": 0, "wall_ms": 60_000}


def journal(*events: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(seq, name, data) for seq, (name, data) in enumerate(events, 1)]


def asked(request_id: str, step: str, **reserved: int) -> tuple[str, dict[str, Any]]:
    return "CallRequested", {"request_id": request_id, "step": step, "reserved": reserved}


def answered(request_id: str, **spend: int) -> tuple[str, dict[str, Any]]:
    return "CallAnswered", {"request_id": request_id, "step": request_id, "spend": spend}


ADMITTED: tuple[str, dict[str, Any]] = ("RunAdmitted", {})
ENDED: tuple[str, dict[str, Any]] = ("RunEnded", {"status": "succeeded"})
WRITES = [each for step in ("acknowledge", "stamp", "post") for each in (asked(step, step, tokens=100), answered(step))]


def a_run(*events: tuple[str, dict[str, Any]], status: str = "succeeded") -> Run:
    return Run(RUN_ID, "acme", TASK_ID, "calls", status, LIMITS, journal(*(events or (ADMITTED, *WRITES, ENDED))))


def effects(**more: int) -> Effects:
    by_place = Counter({(f"T-{TASK_ID}", "acknowledgements"): 1, (RUN_ID, "tags"): 1, (RUN_ID, "assignments"): 1})
    for collection, count in more.items():
        by_place[(f"T-{TASK_ID}" if collection == "acknowledgements" else RUN_ID), collection] += count
    return Effects(by_place, Counter(a=1, b=1, c=1))


def observed(**changes: Any) -> Observed:
    seen = Observed("acme", b"{}", ask_again=False, published=[1], acked=[2], finals={OUTCOME: [9]})
    return replace(seen, status="succeeded", run_id=RUN_ID, **changes)


def found_in(run: Run, seen: Effects, *, has_delivery: bool = False) -> list[str]:
    return checks(check_run(run, seen, has_delivery=has_delivery))


def checks(violations: Any) -> list[str]:
    return [violation.check for violation in violations]


def test_a_run_as_it_should_be_violates_nothing() -> None:
    assert list(check_task(TASK_ID, observed(), [a_run()])) == []
    assert found_in(a_run(), effects()) == []
    assert list(check_effects(effects(), [(RUN_ID, TASK_ID)])) == []
    assert list(check_leftovers({"executor.outbox": 0})) == []


def test_an_outcome_that_is_delivered_again_violates_nothing() -> None:
    assert list(check_task(TASK_ID, observed(finals={OUTCOME: [9, 12, 30]}), [a_run()])) == []


def test_a_task_that_was_acknowledged_and_never_ended_is_lost() -> None:
    (violation,) = check_task(TASK_ID, observed(finals={}), [])
    assert violation == Violation("lost", "no final outcome; there is no run", TASK_ID, RUN_ID, (1, 2))
    (violation,) = check_task(TASK_ID, observed(finals={}), [a_run(status="running")])
    assert "run 0190-run is running" in violation.message


@pytest.mark.parametrize(
    ("finals", "check"),
    [
        ({OUTCOME: [9], ("other:outcome", "5f2a"): [10]}, "two outcomes"),
        ({OUTCOME: [9], (OUTCOME[0], "77aa"): [10]}, "changed outcome"),
    ],
)
def test_a_second_final_outcome_is_found_and_so_is_another_body(finals: Any, check: str) -> None:
    (violation,) = check_task(TASK_ID, observed(finals=finals), [a_run()])
    assert (violation.check, violation.lines) == (check, (9, 10))


def test_a_task_that_became_two_runs_is_found() -> None:
    assert checks(check_task(TASK_ID, observed(), [a_run(), replace(a_run(), run_id="other")])) == ["two runs"]


def test_an_outcome_that_the_database_knows_nothing_of_is_found() -> None:
    assert checks(check_task(TASK_ID, observed(), [])) == ["no run"]
    assert checks(check_task(TASK_ID, observed(), [a_run(status="failed")])) == ["contradiction"]


@pytest.mark.parametrize("collection", ["acknowledgements", "tags", "assignments"])
def test_a_write_that_took_effect_twice_is_found(collection: str) -> None:
    assert found_in(a_run(), effects(**{collection: 1})) == ["effect twice"]


def test_a_write_that_counts_as_done_and_was_not_is_found() -> None:
    assert found_in(a_run(), effects(tags=-1)) == ["effect lost"]


def test_a_run_with_a_plan_by_a_model_has_another_write() -> None:
    plan = (("ReplanDecided", {"repair": True}), asked("assign", "assign"), answered("assign"))
    run = replace(a_run(ADMITTED, *plan, ENDED), playbook="review")
    assigned = Effects(Counter({(f"T-{TASK_ID}", "assignments"): 1}))
    assert found_in(run, assigned) == []
    assert found_in(run, Effects()) == ["effect lost"]


def test_a_key_with_two_effects_and_an_effect_of_no_run_are_found() -> None:
    strange = effects()
    strange.by_key["a"] += 1
    strange.by_place["elsewhere", "tags"] += 1
    assert checks(check_effects(strange, [(RUN_ID, TASK_ID)])) == ["effect twice", "stray effect"]


def test_a_letter_that_a_person_took_for_posted_need_not_be_there() -> None:
    doubt = ("RunEscalated", {"reason": {"code": "in_doubt"}, "step": "post"})
    run = a_run(ADMITTED, *WRITES, doubt, ("StepOverridden", {"step": "post"}), ENDED)
    assert found_in(run, effects(assignments=-1)) == []
    assert found_in(run, effects()) == []


def test_a_doubt_that_could_be_resolved_is_found() -> None:
    doubt = ("RunEscalated", {"reason": {"code": "in_doubt"}, "step": "stamp"})
    assert found_in(a_run(ADMITTED, *WRITES, doubt, ENDED), effects()) == ["needless doubt"]


@pytest.mark.parametrize(
    "events",
    [
        (asked("r1", "a", tokens=600), asked("r2", "b", tokens=600), answered("r1"), answered("r2")),
        (asked("r1", "a", tokens=600), answered("r1", tokens=1_001)),
        (asked("r1", "a", usd_micros=501), answered("r1")),
        tuple(each for n in range(5) for each in (asked(f"r{n}", "a"), answered(f"r{n}"))),
        tuple(each for n in range(4) for each in (asked(f"r{n}", f"step-{n}"), answered(f"r{n}"))),
        (("ReplanDecided", {}),),
    ],
    ids=["reserved at once", "spent", "money", "tool calls", "steps", "replans"],
)
def test_a_budget_that_was_exceeded_is_found(events: Any) -> None:
    assert "budget" in found_in(a_run(ADMITTED, *events, ENDED), effects())


def test_what_a_person_added_to_a_budget_may_be_used() -> None:
    more = ("RunResumed", {"extend": {"tokens": 1_000, "usd": 0.001}})
    spent = (asked("r1", "a", tokens=1_500, usd_micros=1_400), answered("r1", tokens=1_400, usd_micros=1_400))
    assert found_in(a_run(ADMITTED, more, *spent, ENDED), effects()) == []


@pytest.mark.parametrize(
    "broken",
    [
        [Event(1, "RunAdmitted", {}), Event(3, "RunEnded", {})],
        journal(ADMITTED, ENDED, ENDED),
        journal(ADMITTED, ENDED, answered("r1")),
        journal(ADMITTED),
        journal(ENDED),
        journal(ADMITTED, asked("r1", "a"), answered("r1"), answered("r1"), ENDED),
        [],
    ],
    ids=["a hole", "two ends", "after the end", "no end", "no beginning", "answered twice", "empty"],
)
def test_a_journal_that_is_not_whole_is_found(broken: list[Event]) -> None:
    assert "journal" in found_in(replace(a_run(), journal=broken), effects())


def test_a_run_that_succeeded_with_a_request_open_is_found() -> None:
    assert found_in(a_run(ADMITTED, *WRITES, asked("r1", "stamp"), ENDED), effects()) == ["open request"]


def delivered(run_id: str = RUN_ID, status: str = "ok") -> tuple[str, dict[str, Any]]:
    result = {"status": status, "data": {"run": run_id}}
    return "CallAnswered", {"request_id": "deliver", "step": "deliver", "result": result}


def with_deliveries(count: int) -> Effects:
    seen = effects()
    seen.by_place[RUN_ID, DELIVERIES] = count
    return seen


@pytest.mark.parametrize(
    ("answers", "deliveries", "has_delivery", "wrong"),
    [
        ([delivered()], 1, True, []),
        ([delivered(status="error"), delivered()], 1, True, []),
        ([], 0, False, []),
        ([delivered()], 2, True, ["effect twice"]),
        ([], 1, False, ["effect twice"]),
        ([delivered()], 0, True, ["effect lost"]),
        ([], 1, True, ["effect lost"]),
        ([delivered("0190-other")], 1, True, ["wrong answer"]),
    ],
    ids=["once", "after an error", "none", "twice", "unwanted", "not at all", "not told", "of another run"],
)
def test_a_delivery_is_accepted_once_for_a_run_that_wants_one_and_the_run_is_told(
    *, answers: Any, deliveries: int, has_delivery: bool, wrong: list[str]
) -> None:
    calls = [each for answer in answers for each in (asked("deliver", "deliver"), answer)]
    limits = LIMITS | {"steps": 4, "tool_calls": 6}
    run = replace(a_run(ADMITTED, *WRITES, *calls, ENDED), limits=limits)
    assert found_in(run, with_deliveries(deliveries), has_delivery=has_delivery) == wrong


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"said": ["taken", "known"]}, []),
        ({"said": ["kept"]}, []),
        ({"said": ["known", "known"]}, []),
        ({"said": ["kept", "taken"]}, ["callback twice"]),
        ({"refused": ["404 nobody waits for this"], "said": ["taken"]}, ["refused callback"]),
        ({"moved": ["http://elsewhere"], "said": ["taken"]}, ["moved callback"]),
    ],
)
def test_a_callback_counts_once_is_never_refused_and_has_one_address(changes: Any, wrong: list[str]) -> None:
    found = list(check_delivery("key-1", Delivery(RUN_ID, "http://here", lines=[4, 7], **changes)))
    assert checks(found) == wrong
    assert all((violation.run_id, violation.lines) == (RUN_ID, (4, 7)) for violation in found)


def test_what_is_left_behind_is_named() -> None:
    (violation,) = check_leftovers({"executor.timers": 0, "tool_kb.jobs": 2})
    assert violation.message == "2 rows: tool_kb.jobs"
