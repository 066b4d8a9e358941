"""The deterministic checks of a step: its schema, then its expectation.

Pure, and before any model is asked. A step that failed is not reviewed. An `empty` result without an expectation is
as good as any: to find nothing is not to fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from triptych.contracts.compiled_contract import CompiledContract
from triptych.critic.verdict import Verdict, shortened
from triptych.playbook import expressions
from triptych.playbook.expressions import ExpressionError
from triptych.schemas import (
    Decision,
    Json,
    Reading,
    Reason,
    Result,
    ResultStatus,
    ReviewRequest,
    Step,
    StepRecord,
    codec,
)

MAX_EXPECTATIONS = 1_024


@expressions.metered
def check_step(request: ReviewRequest, step: Step, result: Result, offer: CompiledContract | None) -> Verdict:
    """Return the verdict on a step as far as code can tell. `offer` is what the step's operation offers today."""
    if (verdict := _against_schema(step, result, offer)) is not None:
        return verdict
    return _against_expectation(step, result, scope(request, result))


def scope(request: ReviewRequest, result: Result) -> dict[str, Json]:
    """Return the variables that an expectation can see."""
    own = {} if request.index is None else {"item": request.item, "index": request.index}
    return {
        **own,
        "input": request.input,
        "steps": {record.id: {"status": _status(record), "data": _data(record)} for record in request.steps},
        "result": {"status": result.status.value, "data": result.data},
    }


def _status(record: StepRecord) -> str:
    return record.result.status.value if record.result else "skipped"


def _data(record: StepRecord) -> Json:
    return record.result.data if record.result else None


def _against_schema(step: Step, result: Result, offer: CompiledContract | None) -> Verdict | None:
    """Hold the data to the contract that the plan pinned. A contract that has changed since says nothing."""
    if result.status is not ResultStatus.OK or offer is None or offer.hash != step.pin.contract_hash:
        return None
    if offer.contract.reading is Reading.LENIENT:
        return None  # what may pass was decided when it came
    error = next(iter(offer.result.schema_errors(result.data, 1)), None)
    if error is None:
        return None
    place = ".".join(("result.data", *map(str, error.place)))
    message = f"step {step.id}: {step.operation} broke its contract at {place}: {shortened(error.message)}"
    # A read can be asked again. A write has happened, even if its answer is wrong.
    decision = Decision.ESCALATE if step.pin.effect.writes else Decision.RETRY
    return Verdict(decision, Reason(code="contract_violation", message=message), (f"contract {offer.hash}",))


def _against_expectation(step: Step, result: Result, variables: Mapping[str, Json]) -> Verdict:
    if step.expect is None:
        what = "found nothing, which is not a failure" if result.status is ResultStatus.EMPTY else "answered"
        return Verdict.go_on(f"step {step.id}: {step.operation} {what}")
    evidence = (f"expected: {shortened(step.expect)}", *_values(step.expect, variables))
    try:
        holds = expressions.holds(step.expect, variables)
    except ExpressionError as error:
        if result.status is not ResultStatus.EMPTY:
            message = f"step {step.id}, expect: {error}"
            return Verdict.escalate("expectation_error", message, *evidence)
        # Something was expected of data that is not there: that is unmet, not a mistake in the expectation.
        holds = False
    if holds:
        return Verdict.go_on(f"step {step.id}: {step.operation} answered as expected", *evidence)
    message = f"step {step.id}: what was expected of {step.operation} does not hold"
    return Verdict.unmet(step.unmet, message, *evidence)


@lru_cache(maxsize=MAX_EXPECTATIONS)
def _operands(expression: str) -> tuple[str, ...]:
    """Playbooks have few expectations, and each is held against many results."""
    return tuple(expressions.operands(expression))


def _values(expression: str, variables: Mapping[str, Json]) -> Iterable[str]:
    """Return the values of the paths in an expression, so that a reader need not look them up."""
    for path in _operands(expression):
        try:
            value = codec.encode_text(expressions.evaluate(path, variables))
        except ExpressionError as error:
            value = error.message
        yield shortened(f"{path} = {value}")
