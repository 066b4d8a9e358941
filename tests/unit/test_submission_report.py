"""Every line that was submitted is accounted for: by an outcome, by a dead letter, or as a duplicate."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from triptych.client import Receipt
from triptych.operator.submission_report import SubmissionReport, lines_of, task_key
from triptych.schemas import DeadLetter, Outcome, OutcomeStatus, Reason

REASON = Reason(code="done", message="done")


def receipt(offset: int) -> Receipt:
    return Receipt("triptych.tasks", 0, offset)


def report(*values: bytes) -> SubmissionReport:
    return SubmissionReport.of(dict(enumerate(values, 1)), [receipt(offset) for offset in range(len(values))])


def outcome(task_id: str, status: OutcomeStatus = OutcomeStatus.SUCCEEDED, *, tenant: str = "default") -> Outcome:
    final = status is not OutcomeStatus.ESCALATED
    return Outcome(task_id=task_id, playbook="p", tenant=tenant, status=status, final=final, reason=REASON)


def dead_letter(offset: int) -> DeadLetter:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return DeadLetter(
        service="executor", topic="triptych.tasks", partition=0, offset=offset, reason=REASON, failed_at=at
    )


def test_a_line_is_settled_by_the_outcome_of_its_task() -> None:
    lines = report(b'{"task_id": "a"}', b'{"task_id": "b", "tenant": "acme"}')
    assert lines.add(outcome("a"))
    assert lines.waiting == 1
    assert lines.add(outcome("b", tenant="acme"))
    assert lines.settled


def test_an_outcome_of_another_tenant_or_another_task_is_not_ours() -> None:
    lines = report(b'{"task_id": "a"}')
    assert not lines.add(outcome("a", tenant="acme"))
    assert not lines.add(outcome("b"))
    assert lines.waiting == 1


def test_an_escalation_settles_a_line_and_a_final_outcome_replaces_it_but_not_the_other_way_round() -> None:
    lines = report(b'{"task_id": "a"}')
    lines.add(outcome("a", OutcomeStatus.ESCALATED))
    assert lines.settled
    lines.add(outcome("a"))
    assert not lines.add(outcome("a", OutcomeStatus.ESCALATED))
    assert lines.counts() == {"succeeded": 1}


def test_what_nobody_can_read_is_settled_by_the_dead_letter_of_its_place() -> None:
    lines = report(b"not json", b"[1]")
    assert lines.add(dead_letter(1))
    assert not lines.add(dead_letter(7))
    assert lines.add(dead_letter(0))
    assert lines.settled
    assert lines.counts() == {"dead letter": 2}


def test_what_has_an_id_waits_for_its_outcome_after_its_dead_letter() -> None:
    lines = report(b'{"task_id": "a", "playbook": "none"}')
    lines.add(dead_letter(0))
    assert (lines.waiting, lines.settled) == (0, False)
    lines.add(outcome("a", OutcomeStatus.REJECTED))
    assert lines.settled


def test_a_duplicate_is_counted_once_and_names_the_line_it_repeats() -> None:
    lines = report(b'{"task_id": "a"}', b'{"task_id": "a"}', b'{"task_id": "a", "tenant": "acme"}')
    assert [line.duplicate_of for line in lines.lines] == [None, 1, None]
    assert len(lines.runs) == 2


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'{"task_id": "a", "tenant": "acme"}', ("acme", "a")),
        (b'{"task_id": "a"}', ("default", "a")),
        (b"{}", ("default", "triptych.tasks:0:7")),
        (b'{"task_id": 5, "tenant": null}', ("default", "triptych.tasks:0:7")),
        (b"[1]", None),
        (b"not json", None),
    ],
)
def test_the_key_of_a_line_is_the_one_that_its_outcome_will_bear(value: bytes, key: tuple[str, str] | None) -> None:
    assert task_key(value, receipt(7)) == key


def test_an_outcome_of_a_line_without_an_id_says_after_its_place_when_it_was_published() -> None:
    lines = SubmissionReport.of({1: b"{}"}, [receipt(7)])
    assert lines.add(outcome("triptych.tasks:0:7:1764137245000", tenant="default"))
    assert lines.settled


def test_empty_lines_are_no_tasks_and_the_others_keep_their_number_in_the_file() -> None:
    values = lines_of(b"a\n\n  \r\nb")
    assert values == {1: b"a", 4: b"b"}
    assert [line.number for line in SubmissionReport.of(values, [receipt(0), receipt(1)]).lines] == [1, 4]


def conflict(task_id: str, record: str) -> Outcome:
    reason = Reason(code="conflict", message="taken")
    return Outcome(
        task_id=task_id, playbook="", tenant="default", status=OutcomeStatus.REJECTED, final=False, reason=reason,
        record=record,
    )  # fmt: skip


def test_a_line_whose_id_belongs_to_another_task_is_known_by_its_place() -> None:
    lines = report(b'{"task_id": "a"}', b'{"task_id": "a", "input": {"n": 2}}', b'{"task_id": "b"}')
    assert lines.add(conflict("a", "triptych.tasks:0:1"))
    assert lines.add(outcome("a"))
    assert lines.add(conflict("b", "triptych.tasks:0:2"))
    assert [line.status for line in lines.runs] == ["succeeded", "rejected", "rejected"]
    assert lines.settled


def test_the_conflict_of_somebody_elses_task_is_no_outcome_of_ours() -> None:
    lines = report(b'{"task_id": "a"}')
    assert not lines.add(conflict("a", "triptych.tasks:1:0"))
    assert not lines.settled
