"""What a conformance check has found, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Case(StrEnum):
    """What happens to the call."""

    ANSWERS = "answers"
    """Nothing: it is made once, and its result fits the contract."""
    DUPLICATE = "duplicate"
    """It is delivered twice, and attempted again after that."""
    KILLED_BEFORE = "killed before the call"
    """The process dies between the intent and the call."""
    KILLED_AFTER = "killed after the call"
    """The process dies between the call and the receipt."""
    SLOW = "slow"
    """The work is done and the answer comes after the time limit."""
    LOST = "lost answer"
    """The work is done and the connection breaks before the answer is there."""
    WRONG_SHAPE = "wrong shape"
    """The answer is not what the contract says."""
    EARLY = "early callback"
    """Its upstream calls back before the call has returned."""
    TWICE = "repeated callback"
    """Its upstream calls back twice."""
    FORGED = "forged callback"
    """Somebody calls back without the secret, before its upstream does."""
    OVERDUE = "late callback"
    """Its upstream calls back when the call has been given up; then it is attempted again."""


class CaseStatus(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case and how it went."""

    case: Case
    verdict: CaseStatus
    told: str


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """All cases of one operation."""

    operation: str
    findings: Sequence[CaseResult]

    @property
    def passed(self) -> bool:
        """Return whether nothing failed. What was skipped says why."""
        return all(finding.verdict is not CaseStatus.FAILED for finding in self.findings)

    def of(self, case: Case) -> CaseResult:
        """Return how one case went."""
        return next(finding for finding in self.findings if finding.case is case)

    def __str__(self) -> str:
        lines = [f"{each.verdict.value:8}{each.case.value}: {each.told}" for each in self.findings]
        return "\n".join([self.operation, *lines])
