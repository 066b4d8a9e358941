"""Judgement by a model, after the deterministic checks: what it is asked, and what its answer means.

The model gives an opinion with a confidence; whether that is enough is decided here, by the
threshold of the playbook.
"""

from __future__ import annotations

from typing import Any, Final

from triptych.critic.verdict import Verdict, shortened
from triptych.models import WorkingMemory, estimated_tokens
from triptych.schemas import Decision, Json, Judge, Reason, ReviewRequest, Step, Unmet, codec

MAX_EVIDENCE: Final = 5

FORM: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["pass", "confidence", "evidence"],
    "properties": {
        "pass": {"type": "boolean", "description": "Whether the answer meets every criterion."},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1, "description": "How sure you are of `pass`."},
        "evidence": {
            "type": "array",
            "items": {"type": "string"},
            "maxItems": 20,
            "description": "Quotes or facts that `pass` rests on, the weightiest first.",
        },
    },
}

GOAL_UNMET: Final = Unmet(decision=Decision.REPLAN, code="goal_unmet")


def question(request: ReviewRequest, judge: Judge) -> dict[str, Json]:
    """Return the question to the model. For a step its sources are the results that it was made from."""
    if request.step is not None:
        answer: Json = request.result.data if request.result else None
        sources = [record for record in request.steps if record.id in request.step.depends_on]
    else:
        answer, sources = request.output, list(request.steps)
    own = {} if request.index is None else {"item": request.item}
    # What is judged is told whole; its sources get what it leaves of half the grant.
    told = estimated_tokens(codec.encode((own, judge.criteria, request.goal, request.input, answer)))
    left = max(0, judge.tokens // 2 - told)
    return {
        **own,
        "criteria": judge.criteria,
        "goal": request.goal,
        "input": request.input,
        "sources": WorkingMemory.of(sources).within(left).data(),
        "answer": answer,
    }


def verdict(output: dict[str, Json], judge: Judge, step: Step | None) -> Verdict:
    """Make a verdict from the answer of the model."""
    passed, confidence = bool(output["pass"]), float(output["confidence"])
    evidence = tuple(shortened(str(item)) for item in output["evidence"][:MAX_EVIDENCE])
    what = f"step {step.id}" if step else "the run"
    said = "passes" if passed else "does not pass"
    if confidence < judge.threshold:
        message = (
            f"{what} {said} with a confidence of {confidence:.2f}, below the {judge.threshold:.2f} that is asked for"
        )
        return Verdict.escalate("low_confidence", message, *evidence, confidence=confidence)
    message = f"{what} {said}, with a confidence of {confidence:.2f}"
    if passed:
        return Verdict.go_on(message, *evidence, confidence=confidence)
    because = f"{message}: {evidence[0]}" if evidence else message
    unmet = step.unmet if step else GOAL_UNMET
    # The author's own message speaks of the expectation, and that one holds.
    return Verdict(unmet.decision, Reason(code=unmet.code, message=because), evidence, confidence)
