"""What the critic makes of a result: its checks, its judgement, and what it never does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from triptych.contracts.compiled_contract import CompiledContract
from triptych.critic.worker import Critic
from triptych.kernel.worker import JobAttempt
from triptych.models import ModelFailure, ModelReply
from triptych.schemas import (
    Contract,
    Decision,
    Effect,
    ErrorCode,
    Judge,
    Pin,
    Result,
    ReviewRequest,
    Spend,
    Step,
    StepRecord,
    Unmet,
    VerdictAnswer,
)

CONTRACT = Contract(
    operation="kb.search",
    description="Searches.",
    arguments={"type": "object"},
    result={"type": "object", "required": ["score"], "properties": {"score": {"type": "number"}}},
    effect=Effect.READ,
)
UNMET = Unmet(decision=Decision.ESCALATE, code="low_score", message="Nothing fits.")


class Registry:
    async def ready(self) -> None:
        return

    def get(self, operation: str) -> CompiledContract | None:
        return CompiledContract.of(CONTRACT) if operation == CONTRACT.operation else None


class Models:
    def __init__(self, says: dict[str, Any] | ModelFailure | None = None) -> None:
        self._says, self.asked = says, []

    async def ask(self, kind: str, tier: str, payload: dict[str, Any], form: Any, **rest: Any) -> ModelReply:
        self.asked.append((kind, tier, payload))
        if isinstance(self._says, ModelFailure):
            raise self._says
        assert self._says is not None
        return ModelReply(self._says, Spend(tokens=10, usd_micros=1))


def step(**changes: Any) -> Step:
    effect = changes.pop("effect", Effect.READ)
    pin = Pin(contract_hash=changes.pop("hash", CONTRACT.hash), effect=effect, timeout_ms=1_000)
    return Step(**{"id": "search", "operation": "kb.search", "pin": pin} | changes)


def review(**changes: Any) -> ReviewRequest:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "run_id": uuid4(),
        "tenant": "acme",
        "partition": 0,
        "deadline_at": datetime.now(UTC) + timedelta(minutes=1),
        "goal": "Answer.",
        "input": {"least": 0.5},
    }
    return ReviewRequest(**fields | changes)


async def verdict(models: Models | None = None, **changes: Any) -> VerdictAnswer:
    critic = Critic(Registry(), models or Models(), model_timeout_ms=1_000)
    return await critic.execute(review(**changes), JobAttempt(lease=1))


async def test_a_result_without_expectation_goes_on() -> None:
    got = await verdict(step=step(), result=Result.ok({"score": 0.1}))
    assert got.decision is Decision.CONTINUE


async def test_an_empty_result_is_not_a_failure() -> None:
    got = await verdict(step=step(), result=Result.empty())
    assert got.decision is Decision.CONTINUE
    assert got.reason is not None
    assert "not a failure" in got.reason.message


async def test_an_expectation_may_compare_the_result_with_the_input_and_other_steps() -> None:
    other = StepRecord(id="other", operation="kb.search", status="succeeded", result=Result.ok({"n": 1}))
    expect = "result.data.score >= input.least && steps.other.data.n == 1"
    got = await verdict(step=step(expect=expect), result=Result.ok({"score": 0.9}), steps=(other,))
    assert got.decision is Decision.CONTINUE


async def test_an_unmet_expectation_leads_where_its_author_said_with_the_values_as_evidence() -> None:
    unmet = step(expect="result.data.score >= input.least", unmet=UNMET)
    got = await verdict(step=unmet, result=Result.ok({"score": 0.1}))
    assert got.decision is Decision.ESCALATE
    assert got.reason is not None
    assert (got.reason.code, got.reason.message) == ("low_score", "Nothing fits.")
    assert got.evidence == (
        "expected: result.data.score >= input.least",
        "result.data.score = 0.1",
        "input.least = 0.5",
    )


async def test_an_expectation_that_cannot_be_evaluated_goes_to_a_person() -> None:
    got = await verdict(step=step(expect="result.data.nothing > 1"), result=Result.ok({"score": 1}))
    assert got.decision is Decision.ESCALATE
    assert got.reason is not None
    assert got.reason.code == "expectation_error"


async def test_expecting_data_where_nothing_was_found_is_unmet_not_an_error() -> None:
    got = await verdict(step=step(expect="result.data.score > 0.5", unmet=UNMET), result=Result.empty())
    assert got.reason is not None
    assert got.reason.code == "low_score"


@pytest.mark.parametrize(("effect", "decision"), [(Effect.READ, Decision.RETRY), (Effect.ONCE, Decision.ESCALATE)])
async def test_data_that_breaks_the_contract_is_never_data(effect: Effect, decision: Decision) -> None:
    got = await verdict(step=step(effect=effect, expect="true"), result=Result.ok({"score": "high"}))
    assert got.decision is decision
    assert got.reason is not None
    assert got.reason.code == "contract_violation"
    assert "result.data.score" in got.reason.message


async def test_a_contract_that_has_changed_since_the_plan_says_nothing() -> None:
    got = await verdict(step=step(hash="0" * 16), result=Result.ok({"score": "high"}))
    assert got.decision is Decision.CONTINUE


async def test_a_step_that_failed_is_not_reviewed() -> None:
    """`machine_story.read` shows that the executor never asks for it."""
    got = await verdict(step=step(), result=Result.failed(ErrorCode.UNAVAILABLE, "no"))
    assert got.decision is None
    assert got.error is not None
    assert got.error.code is ErrorCode.INVALID_ARGUMENTS


JUDGE = Judge(criteria="Borne out by the sources.", threshold=0.7)
SOURCES = (
    StepRecord(id="search", operation="kb.search", status="succeeded", result=Result.ok({"hits": ["x"]})),
    StepRecord(id="aside", operation="kb.search", status="succeeded", result=Result.ok({"secret": "y"})),
)


def judged(*, passed: bool, confidence: float) -> Models:
    return Models({"pass": passed, "confidence": confidence, "evidence": ["because"]})


async def draft(models: Models, **changes: Any) -> VerdictAnswer:
    drafted = step(id="draft", operation="model.draft", depends_on=("search",), judge=JUDGE, unmet=UNMET, **changes)
    return await verdict(models, step=drafted, result=Result.ok({"body": "Hello"}), steps=SOURCES, judge=JUDGE)


async def test_a_judgement_sees_the_answer_and_only_the_sources_it_was_made_from() -> None:
    models = judged(passed=True, confidence=0.9)
    got = await draft(models)
    assert (got.decision, got.confidence, got.spend.tokens) == (Decision.CONTINUE, 0.9, 10)
    ((kind, tier, payload),) = models.asked
    assert (kind, tier) == ("judge", "cheap")
    assert payload["answer"] == {"body": "Hello"}
    assert payload["sources"] == {"search": {"hits": ["x"]}}


@pytest.mark.parametrize("passed", [True, False])
async def test_a_judgement_below_the_threshold_goes_to_a_person_whatever_it_says(passed) -> None:
    got = await draft(judged(passed=passed, confidence=0.6))
    assert got.decision is Decision.ESCALATE
    assert got.reason is not None
    assert got.reason.code == "low_confidence"
    assert got.confidence == 0.6


async def test_a_judgement_that_fails_the_answer_leads_where_the_step_says() -> None:
    got = await draft(judged(passed=False, confidence=0.9))
    assert got.decision is UNMET.decision
    assert got.reason is not None
    assert got.reason.code == UNMET.code
    assert got.evidence == ("because",)


async def test_no_model_is_asked_when_a_check_has_failed_already() -> None:
    models = judged(passed=True, confidence=1.0)
    got = await draft(models, expect="result.data.body == 'Goodbye'")
    assert got.reason is not None
    assert got.reason.code == UNMET.code
    assert models.asked == []


async def test_a_judge_that_cannot_be_reached_is_an_error_so_that_the_review_is_tried_again() -> None:
    failure = ModelFailure(ErrorCode.UNAVAILABLE, "away", spend=Spend(tokens=9))
    got = await draft(Models(failure))
    assert got.decision is None
    assert got.error is not None
    assert (got.error.code, got.spend.tokens) == (ErrorCode.UNAVAILABLE, 9)


async def test_a_whole_run_is_judged_by_its_goal_and_output() -> None:
    models = judged(passed=False, confidence=0.9)
    got = await verdict(models, output={"reply": "r"}, steps=SOURCES, judge=JUDGE)
    assert got.decision is Decision.REPLAN
    assert got.reason is not None
    assert got.reason.code == "goal_unmet"
    assert models.asked[0][2]["answer"] == {"reply": "r"}


async def test_a_whole_run_without_a_judge_goes_on() -> None:
    assert (await verdict(output={"reply": "r"})).decision is Decision.CONTINUE


def test_a_review_may_be_repeated_unless_a_model_is_asked() -> None:
    critic = Critic(Registry(), Models(), model_timeout_ms=1_000)
    assert critic.may_repeat(review(step=step()))
    assert not critic.may_repeat(review(step=step(), judge=JUDGE))


async def test_a_branch_is_held_to_what_its_item_makes_one_expect() -> None:
    branch = {"index": 3, "item": {"least": 0.5}, "step": step(expect="result.data.score >= item.least && index == 3")}
    assert (await verdict(**branch, result=Result.ok({"score": 0.6}))).decision is Decision.CONTINUE
    answer = await verdict(**branch, result=Result.ok({"score": 0.4}))
    assert answer.decision is Decision.REPLAN
    assert "item.least = 0.5" in answer.evidence
