"""The conformance suite of the effect ledger, against tools that keep their promise and tools that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import letters
import pytest

from triptych.tools.conformance import Case, CaseStatus, ConformanceReport, Example, Subject, check


@pytest.fixture
def play(servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    file = str(tmp_path / "letters")
    monkeypatch.setenv("LETTERS", file)
    subject = Subject("letters:tool", path=Path(letters.__file__).parent, environment={"LETTERS": file})

    async def play(operation: str, callback: Any = None) -> ConformanceReport:
        example = Example(operation, {"text": "hello"}, callback)
        return await check(subject, example, postgres=servers.owner_dsn, witness=letters.sent)

    return play


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ("count", "made again"),
        ("send", "made again"),
        ("register", "reconciled"),
        ("drop", "in doubt, for a person to decide; offer a reconcile, and it need not be"),
    ],
)
async def test_a_tool_that_keeps_its_effect_class_passes(play: Any, operation: str, told: str) -> None:
    report = await play(operation)
    assert report.passed, str(report)
    assert {report.of(case).told for case in (Case.KILLED_AFTER, Case.SLOW, Case.LOST)} == {told}


@pytest.mark.parametrize("operation", ["spam", "forget"])
async def test_one_that_takes_effect_twice_fails_and_the_cases_are_named(play: Any, operation: str) -> None:
    report = await play(operation)
    failed = {finding.case for finding in report.findings if finding.verdict is CaseStatus.FAILED}
    assert failed == {Case.KILLED_AFTER, Case.SLOW, Case.LOST}, str(report)
    assert "took effect 2 times" in report.of(Case.LOST).told
    assert report.of(Case.WRONG_SHAPE).verdict is (CaseStatus.SKIPPED if operation == "forget" else CaseStatus.PASSED)


async def test_a_call_that_does_not_work_fails_and_the_rest_is_skipped(play: Any) -> None:
    report = await play("broken")
    assert report.of(Case.ANSWERS).verdict is CaseStatus.FAILED
    assert {finding.verdict for finding in report.findings[1:]} == {CaseStatus.SKIPPED}


CALLED_BACK = (Case.EARLY, Case.TWICE, Case.FORGED, Case.OVERDUE)


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ("order", "made again"),
        ("order_once", "in doubt, for a person to decide; offer a reconcile, and it need not be"),
    ],
)
async def test_a_call_that_a_callback_completes_is_played_with_its_upstream(
    play: Any, operation: str, told: str
) -> None:
    report = await play(operation, {"printed": "yes"})
    assert report.passed, str(report)
    assert {report.of(case).told for case in (Case.KILLED_AFTER, Case.SLOW, Case.LOST)} == {told}
    assert {report.of(case).verdict for case in CALLED_BACK} == {CaseStatus.PASSED}
    assert report.of(Case.WRONG_SHAPE).told == "refused, never as data"


async def test_an_upstream_that_does_the_work_again_is_found_by_its_effects(play: Any) -> None:
    report = await play("order_anew", {"printed": "yes"})
    failed = {finding.case for finding in report.findings if finding.verdict is CaseStatus.FAILED}
    assert failed == {Case.KILLED_AFTER, Case.SLOW, Case.LOST}, str(report)
    assert report.of(Case.WRONG_SHAPE).verdict is CaseStatus.SKIPPED


async def test_a_check_has_to_be_told_what_the_upstream_says(play: Any) -> None:
    report = await play("order")
    assert "say with which body" in report.of(Case.ANSWERS).told
    assert not report.passed
