"""Which answers the executor believes: those that an honest worker can have given, to the request that is open."""

from __future__ import annotations

from typing import Any

import pytest
from machine_story import RUN_ID, Story, playbook

from triptych.contracts.compiled_contract import CompiledContract
from triptych.executor.state import RequestKind, RunStatus
from triptych.executor.trust import ForgedRecord, MisdirectedRecord, Trust
from triptych.playbook.plans import PlanContext, make_plan
from triptych.schemas import (
    CallAnswer,
    Compensation,
    Contract,
    Cost,
    Decision,
    Effect,
    ErrorCode,
    Grant,
    ModelCall,
    Plan,
    PlanAnswer,
    Reason,
    Result,
    ResultStatus,
    Spend,
    StepSpec,
    ToolError,
    VerdictAnswer,
)

SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
READ = Contract(operation="echo.echo", description="d", arguments=SHAPE, result=SHAPE, effect=Effect.READ)
PAY = Contract(
    operation="echo.pay",
    description="d",
    arguments=SHAPE,
    result=SHAPE,
    effect=Effect.ONCE,
    cost=Cost(tokens=50, usd_micros=40),
    compensate=Compensation(operation="echo.back"),
)
BACK = Contract(operation="echo.back", description="d", arguments=SHAPE, result=SHAPE, effect=Effect.IDEMPOTENT)
STRANGE = Contract(operation="bank.pay", description="d", arguments=SHAPE, result=SHAPE, effect=Effect.ONCE)
OFFERS = {one.operation: CompiledContract.of(one) for one in (READ, PAY, BACK, STRANGE)}


class Known:
    """The contracts of all these tools."""

    def get(self, operation: str) -> CompiledContract | None:
        return OFFERS.get(operation)

    def remembered(self, contract_hash: str) -> CompiledContract | None:
        return next((offer for offer in OFFERS.values() if offer.hash == contract_hash), None)


TRUST = Trust(Known())
STEPS = (
    StepSpec(id="a", operation="echo.echo", arguments={"n": 1}),
    StepSpec(id="b", operation="echo.pay", arguments={"n": "${{ steps.a.data.n }}"}),
)
FIXED = {"pattern": "fixed", "steps": [spec.model_dump(mode="json", exclude_none=True) for spec in STEPS]}
BY_MODEL = {"pattern": "model", "tokens": 100, "usd": 0.01, "max_steps": 3}
BY_TURNS = {"pattern": "react", "tokens": 100, "usd": 0.01}


def honest(story: Story, *specs: StepSpec) -> Plan:
    run = story.run
    terms = PlanContext(offers=OFFERS, max_steps=20, retry=run.playbook.retry, revision=run.revision + 1)
    return make_plan(specs or STEPS, terms)


def answer(story: Story, kind: type, ask: RequestKind, step: str | None = None, **fields: Any) -> Any:
    return kind(**{"request_id": story.request(ask, step), "run_id": RUN_ID, "tenant": "default", **fields})


def believed(story: Story, told: Any, source: str | None = None) -> Any:
    return TRUST.verified(story.run, told, source)


@pytest.mark.parametrize("plan", [FIXED, BY_MODEL])
def test_a_plan_that_an_honest_planner_makes_is_believed(plan: dict[str, Any]) -> None:
    story = Story(playbook(plan=plan))
    told = answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story))
    assert believed(story, told) is told
    assert believed(story, told) is told, "it is known by then"


PIN_LIES: dict[str, dict[str, Any]] = {
    "free": {"cost": Cost()},
    "cheaper": {"cost": Cost(tokens=49, usd_micros=40)},
    "dearer": {"cost": Cost(tokens=5_000, usd_micros=40)},
    "a read": {"effect": Effect.READ},
    "idempotent": {"effect": Effect.IDEMPOTENT},
    "endless": {"timeout_ms": 600_000},
    "the contract of another operation": {"contract_hash": READ.hash},
}
STEP_LIES: dict[str, dict[str, Any]] = {
    "more rounds": {"rounds": 10},
    "more failures": {"max_failed": 9},
    "no dependency": {"depends_on": ()},
    "another tier": {"tier": "strong"},
    "an invented origin": {"must_come_from": {"n": ("input",)}},
    "an expression that does not compile": {"when": "steps.("},
    "a step that is not there": {"when": "steps.zz.data"},
    "arguments outside the contract": {"arguments": {"m": 1}},
}


@pytest.mark.parametrize("plan", [FIXED, BY_MODEL], ids=["fixed", "model"])
@pytest.mark.parametrize("lie", [*PIN_LIES, *STEP_LIES])
def test_a_plan_is_held_to_playbook_and_contracts(plan: dict[str, Any], lie: str) -> None:
    story = Story(playbook(plan=plan))
    made = honest(story)
    first, last = made.steps
    if lie in PIN_LIES:
        last = last.model_copy(update={"pin": last.pin.model_copy(update=PIN_LIES[lie])})
    else:
        last = last.model_copy(update=STEP_LIES[lie])
    told = answer(story, PlanAnswer, RequestKind.PLAN, plan=Plan(revision=1, steps=(first, last)))
    before = story.run.copy()
    try:
        heard = believed(story, told)
    except ForgedRecord:
        heard = None
    # A contract that nobody here knows may be newer than what is known here: then another plan is asked for.
    assert heard is None or (heard.plan is None and heard.error.code is ErrorCode.UNAVAILABLE)
    assert story.run == before


def test_a_plan_that_takes_the_undo_out_of_a_write_is_not_carried_out() -> None:
    story = Story(playbook(plan=BY_MODEL))
    made = honest(story, STEPS[1].model_copy(update={"arguments": {"n": 1}}))
    (step,) = made.steps
    assert step.pin.undo is not None
    bare = step.model_copy(update={"pin": step.pin.model_copy(update={"undo": None})})
    heard = believed(story, answer(story, PlanAnswer, RequestKind.PLAN, plan=Plan(revision=1, steps=(bare,))))
    assert heard.plan is None


@pytest.mark.parametrize(
    "specs",
    [
        (StepSpec(id="a", operation="bank.pay", arguments={"n": 1}),),
        tuple(StepSpec(id=f"s{n}", operation="echo.echo", arguments={"n": n}) for n in range(4)),
        (STEPS[0], STEPS[0]),
        (STEPS[0].model_copy(update={"depends_on": ("b",)}), STEPS[1]),
        (STEPS[1].model_copy(update={"id": "p1", "arguments": {"n": 1}}),) * 1
        + (STEPS[1].model_copy(update={"id": "p2", "arguments": {"n": 1}}),),
    ],
    ids=["an operation that is not allowed", "too many steps", "an id twice", "a circle", "a write twice"],
)
def test_a_plan_by_a_model_is_held_to_what_its_planner_holds_it_to(specs: tuple[StepSpec, ...]) -> None:
    story = Story(playbook(plan=BY_MODEL))
    with pytest.raises(ForgedRecord):
        believed(story, answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story, *specs)))


@pytest.mark.parametrize(
    "specs",
    [
        STEPS[:1],
        STEPS[::-1],
        (*STEPS, StepSpec(id="c", operation="echo.echo")),
        (STEPS[0], STEPS[1].model_copy(update={"arguments": {"n": 1_000_000}})),
    ],
    ids=["less", "in another order", "more", "another amount"],
)
def test_a_fixed_plan_is_that_of_the_playbook_and_no_other(specs: tuple[StepSpec, ...]) -> None:
    story = Story(playbook(plan=FIXED))
    with pytest.raises(ForgedRecord):
        believed(story, answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story, *specs)))


def test_nobody_says_that_a_goal_is_reached_that_nobody_plans_for_by_turns() -> None:
    for plan in (FIXED, BY_MODEL):
        story = Story(playbook(plan=plan))
        with pytest.raises(ForgedRecord):
            believed(story, answer(story, PlanAnswer, RequestKind.PLAN, answer={"refund": "granted"}))
    story = Story(playbook(plan=BY_TURNS))
    assert believed(story, answer(story, PlanAnswer, RequestKind.PLAN, answer={"so": 1})) is not None


def test_a_planner_says_one_thing_and_of_the_revision_that_was_asked_for() -> None:
    story = Story(playbook(plan=FIXED))
    error = ToolError(code=ErrorCode.INTERNAL, message="no")
    plan = honest(story)
    for fields in ({}, {"plan": plan, "error": error}, {"plan": plan.model_copy(update={"revision": 2})}):
        with pytest.raises(ForgedRecord):
            believed(story, answer(story, PlanAnswer, RequestKind.PLAN, **fields))
    assert believed(story, answer(story, PlanAnswer, RequestKind.PLAN, error=error)) is not None


def calling() -> Story:
    story = Story(playbook(plan=FIXED, review="every_step"))
    return story.tell(answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story)))


RESULT = Result.ok({"n": 1})


@pytest.mark.parametrize(
    ("fields", "source", "refusal"),
    [
        ({"result": RESULT, "tenant": "evil"}, None, MisdirectedRecord),
        ({"result": RESULT}, "/triptych/tool-other", MisdirectedRecord),
        ({"result": RESULT, "child": RUN_ID}, None, MisdirectedRecord),
        ({"result": RESULT, "extended": Grant(tokens=10**9)}, None, ForgedRecord),
        ({"result": RESULT, "spend": Spend(tokens=2**53 + 1)}, None, ForgedRecord),
        ({"result": RESULT, "spend": Spend(model_calls=(ModelCall(model="m", tokens_in=10**30),))}, None, ForgedRecord),
        ({"result": Result.ok({"n": "one"})}, None, ForgedRecord),
        ({"result": Result.ok({"m": 1})}, None, ForgedRecord),
        ({"result": Result.ok(None)}, None, ForgedRecord),
        ({"result": RESULT.model_copy(update={"status": ResultStatus.ERROR})}, None, ForgedRecord),
        (
            {"result": Result.failed(ErrorCode.INTERNAL, "no").model_copy(update={"status": ResultStatus.OK})},
            None,
            ForgedRecord,
        ),
    ],
)
def test_a_result_is_held_to_its_call_and_its_contract(
    fields: dict[str, Any], source: str | None, refusal: type[Exception]
) -> None:
    story = calling()
    before = story.run.copy()
    with pytest.raises(refusal):
        believed(story, answer(story, CallAnswer, RequestKind.CALL, "a", **fields), source)
    assert story.run == before
    assert (
        believed(story, answer(story, CallAnswer, RequestKind.CALL, "a", result=RESULT), "/triptych/tool-echo")
        is not None
    )


def test_each_kind_of_answer_answers_its_own_kind_of_request() -> None:
    planning, reviewing = Story(playbook(plan=FIXED)), calling().result("a", RESULT)
    stories = {PlanAnswer: (planning, RequestKind.PLAN, None), VerdictAnswer: (reviewing, RequestKind.REVIEW, "a")}
    stories[CallAnswer] = (calling(), RequestKind.CALL, "a")
    fields = {CallAnswer: {"result": RESULT}, VerdictAnswer: {"decision": Decision.CONTINUE}, PlanAnswer: {}}
    for asked, (story, ask, step) in stories.items():
        for kind in stories:
            if kind is not asked:
                with pytest.raises(MisdirectedRecord):
                    believed(story, answer(story, kind, ask, step, **fields[kind]))


def test_what_answers_no_open_request_is_no_forgery() -> None:
    story = calling()
    told = answer(story, CallAnswer, RequestKind.CALL, "a", result=RESULT)
    story.tell(told)
    assert believed(story, told) is None


def test_a_verdict_says_one_thing_and_goes_on_only_with_the_confidence_that_the_judge_asks_for() -> None:
    judged = [{**FIXED["steps"][0], "judge": {"criteria": "good", "threshold": 0.8}}]
    story = Story(playbook(plan={"pattern": "fixed", "steps": judged}))
    (spec,) = story.run.playbook.plan.steps
    story.tell(answer(story, PlanAnswer, RequestKind.PLAN, plan=honest(story, spec))).result("a", RESULT)
    about = {"reason": Reason(code="so", message="so")}
    for fields in (
        {},
        {"decision": Decision.CONTINUE},
        {"decision": Decision.CONTINUE, "confidence": 0.79},
        {"decision": Decision.REPLAN, "error": ToolError(code=ErrorCode.INTERNAL, message="no")},
    ):
        with pytest.raises(ForgedRecord):
            believed(story, answer(story, VerdictAnswer, RequestKind.REVIEW, "a", **about, **fields))
    told = answer(story, VerdictAnswer, RequestKind.REVIEW, "a", **about, decision=Decision.CONTINUE, confidence=0.8)
    assert believed(story, told) is told


@pytest.mark.parametrize(
    "spend", [Spend(tokens=51), Spend(usd_micros=41), Spend(tool_calls=1), Spend(tokens=10**9, usd_micros=10**12)]
)
def test_what_costs_more_than_its_grant_is_counted_and_stops_the_run(spend: Spend) -> None:
    story = calling().result("a", RESULT).verdict("a", Decision.CONTINUE)
    story.result("b", RESULT, spend)
    assert (story.run.status, story.run.reason.code, story.run.stopped_step) == (RunStatus.ESCALATED, "overspent", "b")
    assert (story.run.ledger.tokens, story.run.ledger.usd_micros) == (spend.tokens, spend.usd_micros)
    assert story.kinds()[:2] == ["Overspent", "RunEscalated"]
    assert story.run.steps["b"].result == RESULT, "what it answered is not lost"


def test_what_costs_no_more_than_its_grant_stops_nothing() -> None:
    story = calling().result("a", RESULT).verdict("a", Decision.CONTINUE)
    story.result("b", RESULT, Spend(tokens=50, usd_micros=40))
    assert story.run.status is RunStatus.RUNNING
