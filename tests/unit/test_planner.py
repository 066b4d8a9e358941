"""What makes a list of steps a plan, and what the planner answers when it does not."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from triptych.contracts.compiled_contract import CompiledContract
from triptych.kernel.worker import JobAttempt
from triptych.models import ModelFailure, ModelReply, estimated_tokens
from triptych.planner.gaps import Gap
from triptych.planner.worker import Planner
from triptych.playbook.plans import PlanContext, check_steps, make_plan
from triptych.schemas import (
    HANDOFF,
    Caching,
    Compensation,
    Contract,
    Cost,
    Effect,
    ErrorCode,
    Fallback,
    FixedPlan,
    Grant,
    Limits,
    ManagerPlan,
    ModelPlan,
    PlanAnswer,
    PlanRequest,
    ReactPlan,
    Reason,
    Recall,
    Result,
    RetryPolicy,
    Spend,
    StepRecord,
    StepSpec,
    TaskLedger,
    handoff_contract,
)

SEARCH = Contract(
    operation="kb.search",
    description="Searches.",
    arguments={
        "type": "object",
        "required": ["query"],
        "additionalProperties": False,
        "properties": {
            "query": {"type": "string", "minLength": 3},
            "limit": {"type": "integer", "maximum": 10},
            "filters": {"anyOf": [{"type": "array", "items": {"enum": ["new", "old"]}}, {"type": "null"}]},
        },
    },
    result={"type": "object"},
    effect=Effect.READ,
    timeout_ms=2_000,
    cost=Cost(tokens=5, usd_micros=7),
)
REPLY = Contract(
    operation="helpdesk.reply",
    description="Replies.",
    arguments={"type": "object", "required": ["body"], "properties": {"body": {"type": "string"}}},
    result={"type": "object"},
    effect=Effect.IDEMPOTENT,
)
OFFERS = {contract.operation: CompiledContract.of(contract) for contract in (SEARCH, REPLY)}


def context(**changes: Any) -> PlanContext:
    return PlanContext(**{"offers": OFFERS, "max_steps": 5, "retry": RetryPolicy(max_attempts=7)} | changes)


def search(**changes: Any) -> StepSpec:
    fields = {"id": "search", "operation": "kb.search", "arguments": {"query": "${{ input.body }}"}}
    return StepSpec(**fields | changes)


def reply(**changes: Any) -> StepSpec:
    fields = {"id": "reply", "operation": "helpdesk.reply", "arguments": {"body": "See ${{ steps.search.data }}"}}
    return StepSpec(**fields | changes)


def problems(*specs: StepSpec, **changes: Any) -> str:
    return "\n".join(str(problem) for problem in check_steps(specs, context(**changes)))


def test_a_plan_has_complete_dependencies_pins_and_limits() -> None:
    specs = [search(), reply(when="steps.search.status == 'ok'", depends_on=("search",))]
    assert check_steps(specs, context()) == []
    first, second = make_plan(specs, context()).steps
    assert second.depends_on == ("search",)
    assert first.pin.contract_hash == SEARCH.hash
    assert (first.pin.effect, first.pin.timeout_ms, first.pin.cost) == (Effect.READ, 2_000, SEARCH.cost)
    assert first.retry.max_attempts == 7


def test_a_steps_own_limits_go_before_the_contracts() -> None:
    own = search(timeout_ms=9, tokens=1_000, usd=0.01, retry=RetryPolicy(max_attempts=1))
    (step,) = make_plan([own], context()).steps
    assert (step.pin.timeout_ms, step.pin.cost) == (9, Cost(tokens=1_000, usd_micros=10_000))
    assert step.retry.max_attempts == 1


def test_the_same_write_twice_is_refused_unless_the_playbook_says_that_it_is_meant() -> None:
    again = reply(id="again")
    assert "step again, arguments: helpdesk.reply is the same write as in step reply" in problems(
        search(), reply(), again
    )
    assert problems(search(), reply(), again, limits=Limits(same_call_of={"helpdesk.reply": 2})) == ""
    assert problems(search(), reply(), reply(id="again", arguments={"body": "other"})) == ""
    assert problems(search(), search(id="again")) == "", "a read does no harm"
    assert problems(search(), reply(when="input.a"), reply(id="again", when="!input.a")) == "", "one of two"


def test_equal_items_of_a_list_are_the_same_write_unless_their_places_tell_them_apart() -> None:
    told = {"arguments": {"body": "${{ item }}"}, "map": ["x", "y", "x"]}
    assert "the same write as in step reply" in problems(reply(**told))
    assert problems(reply(**told | {"arguments": {"body": "${{ index }} ${{ item }}"}})) == ""


@pytest.mark.parametrize(
    ("specs", "complaint"),
    [
        (
            [search(operation="kb.serch")],
            "step search, operation: `kb.serch` is not offered to this playbook; did you mean `kb.search`",
        ),
        ([search(), search()], "another step is called `search` already"),
        ([search(depends_on=("nobody",))], "step search, depends_on.0.: there is no step `nobody`"),
        ([reply()], "step reply, arguments.body: there is no step `search`; the steps are reply"),
        ([search(when="steps.search.status == 'ok'")], "refers to itself"),
        ([search(expect="steps.search.data.x == 1")], "use `result` in `expect`"),
        ([search(when="result.status == 'ok'")], "step search, when: .*there is no variable `result`"),
        ([search(expect="result.status ==")], "step search, expect: .*Syntax error"),
        ([search(arguments={"query": "${{ input."})], "step search, arguments.query: .*not closed"),
        ([search(arguments={"query": "abc", "limt": 3})], "step search, arguments.limt: .*did you mean `limit`"),
        ([search(arguments={})], '"query" is a required property'),
        ([search(arguments={"query": "ab"})], "step search, arguments.query: .*shorter than 3"),
        ([search(arguments={"query": "abc", "limit": 50})], "step search, arguments.limit: 50 is greater"),
        ([search(arguments={"query": "abc", "limit": "n ${{ input.n }}"})], "arguments.limit: .*not of type"),
        ([search(arguments={"query": "${{ item }}"})], "step search, arguments.query: .*there is no variable `item`"),
        ([search(map="every ${{ input.q }}")], "step search, map: a text is not a list"),
        ([search(map="${{ steps.nobody.data }}")], "step search, map: there is no step `nobody`"),
        ([], "the plan, steps: the plan has no steps"),
        ([search(id=f"s{n}") for n in range(6)], "6 steps are too many; at most 5 are left"),
    ],
)
def test_a_problem_names_the_step_the_place_and_the_cure(specs: list[StepSpec], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(problems(*specs))


def test_steps_that_wait_for_each_other_are_named_in_order() -> None:
    one = search(arguments={"query": "${{ steps.reply.data.x }}"})
    assert "these steps wait for each other: " in problems(one, reply())


def test_all_problems_are_found_at_once() -> None:
    found = problems(search(arguments={"limit": 99}, expect="nope"), reply(depends_on=("nobody",)))
    for complaint in ("required property", "greater", "no variable `nope`", "`nobody`"):
        assert complaint in found


def test_what_a_template_will_give_fits_everywhere() -> None:
    arguments = {"query": "${{ input.q }}", "limit": "${{ input.n }}", "filters": ["${{ input.f }}"]}
    assert problems(search(arguments=arguments)) == ""


def test_an_operation_that_leaves_its_arguments_open_takes_any_name() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    offer = CompiledContract.of(SEARCH.model_copy(update={"arguments": schema}))
    assert problems(search(arguments={"b": 1}), offers={"kb.search": offer}) == ""


def test_a_step_with_a_map_waits_for_what_it_maps_and_sees_its_item() -> None:
    each = reply(
        map="${{ steps.search.data.hits }}", arguments={"body": "${{ item.id }}"}, expect="result.data == item"
    )
    assert problems(search(), each) == ""
    step = make_plan([search(), each], context()).steps[1]
    assert (step.map, step.depends_on) == ("${{ steps.search.data.hits }}", ("search",))


def test_a_step_that_has_ended_keeps_its_operation_and_can_be_referred_to() -> None:
    ended = StepRecord(id="search", operation="kb.search", status="succeeded", result=Result.ok({}))
    assert problems(reply(), revision=2, known=(ended,)) == ""
    assert "has ended already, as kb.search" in problems(reply(id="search"), revision=2, known=(ended,))


def test_steps_that_have_ended_do_not_count_against_the_limit() -> None:
    ended = StepRecord(id="search", operation="kb.search", status="succeeded")
    assert problems(search(), reply(), max_steps=1, known=(ended,)) == ""


class Registry:
    """The contracts of some tools, already known."""

    def __init__(self, *contracts: Contract) -> None:
        self._offers = {contract.operation: CompiledContract.of(contract) for contract in contracts}

    async def ready(self) -> None:
        return

    async def wait_for_tools(self, tools: set[str], timeout_s: float) -> None:
        return

    def get(self, operation: str) -> CompiledContract | None:
        return self._offers.get(operation)

    def knows_tool(self, tool: str) -> bool:
        return any(operation.startswith(f"{tool}.") for operation in self._offers)

    def operations(self, patterns: tuple[str, ...]) -> dict[str, CompiledContract]:
        return {name: offer for name, offer in self._offers.items() if name in patterns}


class Models:
    """A model that says what it is told to say, and remembers what it was asked."""

    def __init__(self, *says: dict[str, Any] | ModelFailure) -> None:
        self._says, self.asked = list(says), []

    async def ask(self, kind: str, tier: str, payload: dict[str, Any], form: Any, **rest: Any) -> ModelReply:
        self.asked.append({"kind": kind, "tier": tier, "payload": payload, **rest})
        said = self._says.pop(0)
        if isinstance(said, ModelFailure):
            raise said
        return ModelReply(said, Spend(tokens=100, usd_micros=10))


def plan_request(spec: FixedPlan | ModelPlan, **changes: Any) -> PlanRequest:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "run_id": uuid4(),
        "tenant": "acme",
        "partition": 0,
        "deadline_at": datetime.now(UTC) + timedelta(minutes=1),
        "grant": Grant(tokens=1_000, usd_micros=1_000),
        "playbook": "p",
        "goal": "Answer.",
        "input": {"body": "help"},
        "spec": spec,
        "tools": ("kb.search", "helpdesk.reply"),
        "revision": 1,
        "max_steps": 5,
    }
    return PlanRequest(**fields | changes)


async def answer(request: PlanRequest, registry: Registry | None = None, models: Models | None = None) -> PlanAnswer:
    planner = Planner(registry or Registry(SEARCH, REPLY), models or Models(), model_timeout_ms=1_000)
    return await planner.execute(request, JobAttempt(lease=1))


GOOD = {
    "steps": [
        {"id": "search", "operation": "kb.search", "arguments": {"query": "help"}},
        {"id": "reply", "operation": "helpdesk.reply", "arguments": {"body": "${{ steps.search.data.text }}"}},
    ]
}
BAD = {"steps": [{"id": "search", "operation": "kb.search", "arguments": {"text": "help"}}]}


async def test_a_fixed_plan_is_pinned_without_asking_a_model() -> None:
    got = await answer(plan_request(FixedPlan(steps=(search(), reply()))))
    assert got.plan is not None
    assert [step.id for step in got.plan.steps] == ["search", "reply"]
    assert got.spend == Spend()


def test_a_fixed_plan_may_be_made_again_and_one_of_a_model_may_not() -> None:
    planner = Planner(Registry(), Models(), model_timeout_ms=1_000)
    assert planner.may_repeat(plan_request(FixedPlan(steps=(search(),))))
    assert not planner.may_repeat(plan_request(ModelPlan()))


async def test_a_tool_that_is_not_there_yet_is_unavailable_so_that_the_planner_is_asked_again() -> None:
    got = await answer(plan_request(FixedPlan(steps=(search(), reply()))), Registry(SEARCH))
    assert got.error is not None
    assert (got.error.code, got.code) == (ErrorCode.UNAVAILABLE, None)
    assert "helpdesk" in got.error.message
    assert got.error.retry_after_ms


async def test_the_tool_of_a_fallback_that_is_not_there_yet_is_waited_for_too() -> None:
    fallback = Fallback(operation="wiki.search", arguments={"query": "help"})
    got = await answer(plan_request(FixedPlan(steps=(search(fallback=(fallback,)),))))
    assert got.error is not None
    assert (got.error.code, got.code) == (ErrorCode.UNAVAILABLE, None)
    assert "wiki" in got.error.message


async def test_a_fixed_plan_that_does_not_fit_is_invalid() -> None:
    got = await answer(plan_request(FixedPlan(steps=(search(arguments={"limit": 1}),))))
    assert got.code == "plan_invalid"


async def test_a_fixed_plan_asked_for_again_is_the_same_plan_until_nothing_is_left_of_it() -> None:
    ended = StepRecord(id="search", operation="kb.search", status="succeeded", result=Result.ok({}))
    fixed = FixedPlan(steps=(search(), reply()))
    again = await answer(plan_request(fixed, revision=2, known=(ended,)))
    assert again.plan is not None
    assert again.plan.revision == 2
    done = ended.model_copy(update={"id": "reply", "operation": "helpdesk.reply"})
    failure = Reason(code="goal_unmet", message="the reply is wrong")
    over = await answer(plan_request(fixed, revision=2, known=(ended, done), failure=failure))
    assert over.code == "plan_invalid"
    assert over.error is not None
    assert "cannot be planned differently" in over.error.message
    assert "the reply is wrong" in over.error.message


async def test_a_models_plan_is_checked_and_pinned() -> None:
    models = Models(GOOD)
    got = await answer(plan_request(ModelPlan(instructions="Be brief.")), models=models)
    assert got.plan is not None
    assert got.plan.steps[1].depends_on == ("search",)
    assert got.spend.tokens == 100
    (asked,) = models.asked
    assert (asked["kind"], asked["tier"]) == ("plan", "strong")
    assert asked["instructions"].endswith("Be brief.")
    assert [offered["operation"] for offered in asked["payload"]["operations"]] == ["kb.search", "helpdesk.reply"]


async def test_a_models_plan_is_repaired_with_all_its_errors_within_what_is_left() -> None:
    models = Models(BAD, GOOD)
    got = await answer(plan_request(ModelPlan()), models=models)
    assert got.plan is not None
    assert got.spend.tokens == 200
    second = models.asked[1]
    assert any("no argument `text`" in error for error in second["payload"]["errors"])
    assert second["grant"] == Grant(tokens=900, usd_micros=990)
    assert "mend every one" in second["constraints"][-1]


async def test_a_plan_that_stays_wrong_is_invalid_and_says_what_was_spent() -> None:
    got = await answer(plan_request(ModelPlan(repairs=1)), models=Models(BAD, BAD))
    assert got.plan is None
    assert got.code == "plan_invalid"
    assert got.spend.tokens == 200
    assert got.error is not None
    assert "after 2 attempts" in got.error.message


async def test_output_that_is_no_plan_at_all_is_repaired_too() -> None:
    malformed = {"model": "malformed"}
    broken = ModelFailure(ErrorCode.CONTRACT_VIOLATION, "not JSON", spend=Spend(tokens=40), details=malformed)
    got = await answer(plan_request(ModelPlan()), models=Models(broken, GOOD))
    assert got.plan is not None
    assert got.spend.tokens == 140


async def test_a_model_that_is_away_is_an_error_to_be_tried_again_not_an_invalid_plan() -> None:
    away = ModelFailure(ErrorCode.RATE_LIMITED, "slow down", 1_500)
    got = await answer(plan_request(ModelPlan()), models=Models(away))
    assert got.code is None
    assert got.error is not None
    assert (got.error.code, got.error.retry_after_ms) == (ErrorCode.RATE_LIMITED, 1_500)


def test_where_arguments_have_to_come_from_is_read_from_the_contract_and_the_step() -> None:
    person = {"type": "object", "properties": {"id": {"x-must-come-from": "crm.search"}, "name": {}}}
    schema = {
        "type": "object",
        "properties": {"people": {"type": "array", "items": person}, "by": {"x-must-come-from": ["input", "crm.me"]}},
    }
    merge = Contract(operation="crm.merge", description="Merges.", arguments=schema, result={}, effect=Effect.ONCE)
    context = PlanContext({"crm.merge": CompiledContract.of(merge)} | OFFERS, 5, RetryPolicy())
    find = StepSpec(id="find", operation="kb.search", arguments={"query": "who"})
    spec = StepSpec.model_validate({"id": "merge", "operation": "crm.merge", "must_come_from": {"by": "steps.find"}})
    _, planned = make_plan([find, spec], context).steps
    assert planned.must_come_from == {"people.id": ("crm.search",), "by": ("steps.find",)}
    assert planned.depends_on == ("find",), "it can come from nowhere before"
    nowhere = spec.model_copy(update={"must_come_from": {"by": ("steps.lost",)}})
    assert "there is no step `lost`" in str(check_steps([find, nowhere], context)[0])


class Counted:
    """Remembers the gaps that it is told."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []

    async def note(self, _request: PlanRequest, gaps: Iterable[Gap]) -> None:
        self.gaps += gaps


async def test_what_a_plan_wants_in_vain_is_counted_and_never_planned_around() -> None:
    counted = Counted()
    wanting = {
        "steps": [
            {"id": "a", "operation": "crm.refund", "arguments": {}},
            {"id": "b", "operation": "helpdesk.reply", "arguments": {"body": "x"}},
        ]
    }
    needy = {"steps": [], "missing": [{"capability": "refund a payment", "why": "the customer was charged twice"}]}
    models = Models(wanting, needy)
    planner = Planner(Registry(SEARCH, REPLY), models, model_timeout_ms=1_000, gaps=counted)
    answered = await planner.execute(plan_request(ModelPlan(), tools=("kb.search",)), JobAttempt(lease=1))
    assert answered.code == "tool_missing"
    assert answered.plan is None
    assert "refund a payment (the customer was charged twice)" in answered.error.message
    assert [(gap.capability, gap.kind.value) for gap in counted.gaps] == [
        ("crm.refund", "unknown"),
        ("helpdesk.reply", "not_allowed"),
        ("refund a payment", "missing"),
    ]


async def test_a_model_that_is_to_mend_arguments_is_shown_them_the_refusal_and_the_schema() -> None:
    error = Result.failed(ErrorCode.INVALID_ARGUMENTS, "arguments.limit: 50 is greater than the maximum of 10")
    record = StepRecord(id="find", operation="kb.search", status="failed", arguments={"limit": 50}, result=error)
    models = Models(GOOD)
    await answer(plan_request(ModelPlan(), known=(record,), repair="find"), models=models)
    asked = models.asked[0]
    assert asked["payload"]["repair"] == {
        "step": "find",
        "operation": "kb.search",
        "arguments": {"limit": 50},
        "refused": "arguments.limit: 50 is greater than the maximum of 10",
        "schema": SEARCH.arguments,
    }
    assert any("Only the arguments of step find" in limit for limit in asked["constraints"])


async def test_a_repair_that_the_grant_does_not_cover_ends_as_an_invalid_plan() -> None:
    broke = ModelFailure(ErrorCode.BUDGET_EXCEEDED, "nothing left")
    got = await answer(plan_request(ModelPlan()), models=Models(BAD, broke))
    assert got.code == "plan_invalid"
    assert got.error is not None
    assert "nothing was left of the grant" in got.error.message


async def test_a_replan_tells_the_model_what_is_known_and_what_failed() -> None:
    ended = StepRecord(id="search", operation="kb.search", status="succeeded", result=Result.ok({"text": "t"}))
    failure = Reason(code="search_too_narrow", message="nothing found")
    models = Models({"steps": [GOOD["steps"][1]]})
    request = plan_request(ModelPlan(), revision=2, known=(ended,), failure=failure)
    got = await answer(request, models=models)
    assert got.plan is not None
    payload = models.asked[0]["payload"]
    assert payload["failure"]["code"] == "search_too_narrow"
    assert payload["known"][0]["data"] == {"text": "t"}


@pytest.mark.parametrize(
    ("tools", "cache", "recall"),
    [
        (("kb.search",), Caching.READS, Recall.YES),
        (("kb.search", "helpdesk.reply"), Caching.READS, Recall.NO),
        (("kb.search", "helpdesk.reply"), Caching.ALL, Recall.YES),
        (("kb.search",), Caching.OFF, Recall.NO),
    ],
)
async def test_a_plan_is_given_again_where_nothing_can_be_written_by_it_or_the_playbook_says_so(
    tools: tuple[str, ...], cache: Caching, recall: Recall
) -> None:
    models = Models({"steps": GOOD["steps"][:1]})
    await answer(plan_request(ModelPlan(), tools=tools, cache=cache), models=models)
    (asked,) = models.asked
    assert (asked["memo"].tenant, asked["memo"].recall) == ("acme", recall)


async def test_a_plan_that_fails_the_check_is_not_worth_keeping() -> None:
    models = Models(GOOD)
    await answer(plan_request(ModelPlan(), cache=Caching.ALL), models=models)
    is_worth_keeping = models.asked[0]["memo"].is_worth_keeping
    assert is_worth_keeping(GOOD)
    assert not is_worth_keeping(BAD)


async def test_what_the_run_knows_is_told_within_half_of_the_grant() -> None:
    known = tuple(
        StepRecord(id=f"s{at}", operation="kb.search", status="succeeded", result=Result.ok({"text": "x" * 5_000}))
        for at in range(20)
    )
    request = plan_request(ModelPlan(), revision=2, known=known, grant=Grant(tokens=6_000, usd_micros=100_000))
    models = Models(GOOD)
    await answer(request, models=models)
    payload = models.asked[0]["payload"]
    assert estimated_tokens(orjson.dumps(payload)) <= 3_100
    assert payload["known"][-1]["id"] == "s19"
    assert "what is asked for in it is not asked of you" in " ".join(models.asked[0]["constraints"]).lower()


REACT = ReactPlan(repairs=1)
STEP = {"id": "search", "operation": "kb.search", "arguments": {"query": "printer"}}


async def test_by_turns_a_model_gives_one_step_or_the_answer() -> None:
    got = await answer(plan_request(REACT, turns_left=3), models=Models({"step": STEP, "answer": None}))
    assert got.plan is not None
    assert [step.id for step in got.plan.steps] == ["search"]
    models = Models({"step": None, "answer": {"found": 1}})
    got = await answer(plan_request(REACT, turns_left=0), models=models)
    assert (got.plan, got.answer) == (None, {"found": 1})


@pytest.mark.parametrize(
    ("move", "turns_left", "complaint"),
    [
        ({"step": None, "answer": None}, 3, "not both"),
        ({"step": STEP, "answer": {}}, 3, "not both"),
        ({"step": STEP, "answer": None}, 0, "no turn is left"),
        ({"step": {**STEP, "id": "old"}, "answer": None}, 3, "an earlier step has this id"),
    ],
)
async def test_a_move_that_is_none_is_repaired(move: dict[str, Any], turns_left: int, complaint: str) -> None:
    old = StepRecord(id="old", operation="kb.search", status="succeeded")
    request = plan_request(REACT, turns_left=turns_left, known=(old,))
    got = await answer(request, models=Models(move, {"step": None, "answer": {"mended": True}}))
    assert got.answer == {"mended": True}
    got = await answer(request, models=Models(move, move))
    assert got.error is not None
    assert complaint in got.error.message


async def test_a_manager_gives_several_steps_and_keeps_its_ledger() -> None:
    ledger = {"facts": ["it prints"], "questions": ["why?"], "progress": []}
    models = Models({"ledger": ledger, "steps": [STEP, {**STEP, "id": "again"}], "answer": None})
    told = TaskLedger(facts=("it is a printer",))
    got = await answer(plan_request(ManagerPlan(), turns_left=3, ledger=told), models=models)
    assert got.plan is not None
    assert got.ledger == TaskLedger(facts=("it prints",), questions=("why?",))
    assert models.asked[0]["payload"]["ledger"]["facts"] == ["it is a printer"]


def test_what_changes_something_has_no_rounds() -> None:
    assert problems(search(rounds=3)) == ""
    assert "cannot be made over again" in problems(search(), reply(rounds=2))


def test_only_a_read_stands_in_for_a_read() -> None:
    writing = search(fallback=(Fallback(operation="helpdesk.reply", arguments={"body": "look for it"}),))
    (problem,) = check_steps([writing], context())
    assert "step search, fallback[0]: helpdesk.reply writes" in str(problem)


def test_another_playbook_stands_in_for_nothing() -> None:
    offers = {**OFFERS, HANDOFF: CompiledContract.of(handoff_contract(("other",)))}
    handing = reply(fallback=(Fallback(operation=HANDOFF, arguments={"playbook": "other", "input": {}}),))
    assert "fallback[0].operation: `playbook.run` cannot be a fallback" in problems(search(), handing, offers=offers)


def test_an_undo_is_pinned_if_the_playbook_allows_it() -> None:
    undoes = Compensation(operation="kb.search", arguments={"query": "${{ data.id }}"})
    offer = CompiledContract.of(REPLY.model_copy(update={"compensate": undoes}))
    (step,) = make_plan([reply()], context(offers={**OFFERS, "helpdesk.reply": offer})).steps
    assert step.pin.undo is not None
    assert (step.pin.undo.operation, step.pin.undo.contract_hash) == ("kb.search", SEARCH.hash)
    (step,) = make_plan([reply()], context(offers={"helpdesk.reply": offer})).steps
    assert step.pin.undo is None


def test_a_contract_without_an_undo_has_the_hash_that_it_always_had() -> None:
    assert REPLY.hash == "e354b1816e7a090f"
