"""A verdict before it is addressed to a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from triptych.schemas import Decision, Reason, Unmet

MAX_EVIDENCE_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, why, and what it rests on."""

    decision: Decision
    reason: Reason
    evidence: tuple[str, ...] = ()
    confidence: float | None = None

    @classmethod
    def go_on(cls, message: str, *evidence: str, confidence: float | None = None) -> Verdict:
        """Make a verdict that all is as expected."""
        return cls(Decision.CONTINUE, Reason(code="as_expected", message=message), evidence, confidence)

    @classmethod
    def escalate(cls, code: str, message: str, *evidence: str, confidence: float | None = None) -> Verdict:
        """Make a verdict that hands this to a person."""
        return cls(Decision.ESCALATE, Reason(code=code, message=message), evidence, confidence)

    @classmethod
    def unmet(cls, unmet: Unmet, message: str, *evidence: str, confidence: float | None = None) -> Verdict:
        """Make a verdict on an expectation that does not hold: its author said what follows, and may have said why."""
        return cls(unmet.decision, Reason(code=unmet.code, message=unmet.message or message), evidence, confidence)


def shortened(text: str) -> str:
    """Cut a piece of evidence to a length that people read."""
    return text if len(text) <= MAX_EVIDENCE_CHARS else f"{text[:MAX_EVIDENCE_CHARS]}…"
