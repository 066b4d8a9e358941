"""The conformance suite of the effect ledger, against tools that keep their promise and tools that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import letters
import pytest

from triptych.tools.conformance import Case, Example, Report, Subject, Verdict, check


@pytest.fixture
def play(servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    file = str(tmp_path / "letters")
    monkeypatch.setenv("LETTERS", file)
    subject = Subject("letters:tool", path=Path(letters.__file__).parent, environment={"LETTERS": file})

    async def play(operation: str) -> Report:
        example = Example(operation, {"text": "hello"})
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
    assert report.passed, report
    assert {report.of(case).told for case in (Case.KILLED_AFTER, Case.SLOW, Case.LOST)} == {told}


@pytest.mark.parametrize("operation", ["spam", "forget"])
async def test_one_that_takes_effect_twice_fails_and_the_cases_are_named(play: Any, operation: str) -> None:
    report = await play(operation)
    failed = {finding.case for finding in report.findings if finding.verdict is Verdict.FAILED}
    assert failed == {Case.KILLED_AFTER, Case.SLOW, Case.LOST}, report
    assert "took effect 2 times" in report.of(Case.LOST).told
    assert report.of(Case.WRONG_SHAPE).verdict is (Verdict.SKIPPED if operation == "forget" else Verdict.PASSED)


async def test_a_call_that_does_not_work_fails_and_the_rest_is_skipped(play: Any) -> None:
    report = await play("broken")
    assert report.of(Case.ANSWERS).verdict is Verdict.FAILED
    assert {finding.verdict for finding in report.findings[1:]} == {Verdict.SKIPPED}
