"""What a planner and an author are told of the playbooks that a run may hand over to, and what is reserved for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from machine_story import NOW, playbook
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.contracts.compiled_contract import compiled_handoff_contract
from triptych.executor import events as ev
from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor
from triptych.executor.state import Run
from triptych.executor.trust import ForgedRecord, Trust
from triptych.kernel.decider import InboundRecord
from triptych.kernel.worker import JobAttempt
from triptych.operator.cost_estimate import estimate
from triptych.planner.proposal import question
from triptych.planner.worker import Planner
from triptych.playbook.plans import PlanContext, check_steps
from triptych.schemas import (
    HANDOFF,
    Cost,
    Json,
    OtherPlaybook,
    PlanAnswer,
    PlanRequest,
    Playbook,
    RetryPolicy,
    StepSpec,
    handoff_contract,
    topics,
)

INPUT: dict[str, Json] = {
    "type": "object",
    "required": ["ticket", "urgency"],
    "additionalProperties": False,
    "properties": {
        "ticket": {"$ref": "#/$defs/ticket"},
        "urgency": {"type": "integer", "default": 3},
        "default": {"$ref": "#/$defs/ticket"},
    },
    "$defs": {"ticket": {"type": "string", "pattern": "^T-"}},
}
REFUNDS = playbook(
    name="refunds",
    goal="Give money back.",
    input=INPUT,
    budgets={"tool_calls": 6, "tokens": 1_234, "usd": 0.25},
)
CALLS = playbook(name="calls", goal="Call back.", budgets={"tool_calls": 2, "tokens": 9_000, "usd": 0.01})
OTHERS = (CALLS.as_other, REFUNDS.as_other)
GIVEN = {"playbook": "refunds", "input": {"ticket": "T-1"}}


def parent(arguments: Json = None, **step: Json) -> Playbook:
    written = {"id": "hand", "operation": HANDOFF, "arguments": GIVEN if arguments is None else arguments, **step}
    return playbook(handoffs=("calls", "refunds"), plan={"pattern": "fixed", "steps": [written]})


def asked(book: Playbook) -> tuple[Run, PlanRequest]:
    """A run of a playbook, and what the planner is asked."""
    executor = Executor({one.name: Deployment.of(one) for one in (book, REFUNDS, CALLS)})
    body = b'{"task_id": "t-1", "playbook": "test", "input": {}}'
    record = ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, body, None, -1, len(body), ())
    transition = executor.apply(None, executor.read(InboundRecord(topics.TASKS, record, body, NOW)), 0, NOW)
    assert transition is not None
    (send,) = transition.sends
    return transition.state, PlanRequest.model_validate_json(send.body.to_bytes())


class NoTools:
    """A registry in which no tool has announced anything."""

    async def ready(self) -> None: ...

    async def wait_for_tools(self, tools: Any, within_s: float) -> None: ...

    def operations(self, allowed: Any) -> dict[str, Any]:
        return {}

    def knows_tool(self, tool: str) -> bool:
        return False


async def planned(request: PlanRequest) -> PlanAnswer:
    return await Planner(NoTools(), None, model_timeout_ms=1_000).execute(request, JobAttempt(lease=1))


async def cost_of_step(book: Playbook) -> Cost:
    run, request = asked(book)
    answer = await planned(request)
    assert answer.plan is not None, answer.error
    trust = Trust(NoTools())
    assert trust.verified(run, answer, None) is answer
    return answer.plan.steps[0].pin.cost


async def test_a_step_reserves_what_the_other_playbook_may_spend() -> None:
    assert await cost_of_step(parent()) == Cost(tokens=1_234, usd_micros=250_000, tool_calls=6)
    assert await cost_of_step(parent({"playbook": "calls"})) == Cost(tokens=9_000, usd_micros=10_000, tool_calls=2)


async def test_what_a_step_says_itself_goes_first_and_whoever_may_be_meant_is_provided_for() -> None:
    assert await cost_of_step(parent(tool_calls=3)) == Cost(tokens=1_234, usd_micros=250_000, tool_calls=3)
    either = parent({"playbook": "${{ input.who }}", "input": "${{ input }}"})
    assert await cost_of_step(either) == Cost(tokens=9_000, usd_micros=250_000, tool_calls=6)


async def test_a_plan_that_reserves_something_else_is_not_carried_out() -> None:
    run, request = asked(parent())
    answer = await planned(request)
    assert answer.plan is not None
    (step,) = answer.plan.steps
    pin = step.pin.model_copy(update={"cost": Cost(tool_calls=1)})
    plan = answer.plan.model_copy(update={"steps": (step.model_copy(update={"pin": pin}),)})
    with pytest.raises(ForgedRecord, match="another pin"):
        Trust(NoTools()).verified(run, answer.model_copy(update={"plan": plan}), None)


async def test_a_planner_that_knows_other_versions_of_them_is_asked_again() -> None:
    run, request = asked(parent())
    answer = await planned(request.model_copy(update={"others": ()}))
    believed = Trust(NoTools()).verified(run, answer, None)
    assert isinstance(believed, PlanAnswer)
    assert believed.error is not None
    assert "are not known here" in believed.error.message


def test_what_a_run_may_hand_over_to_stays_as_it_was_when_it_began() -> None:
    run, _ = asked(parent())
    assert run.others == (CALLS, REFUNDS)
    admitted = ev.RunAdmitted("acme", "t-1", "user:ana", run.playbook, {}, 0, NOW, others=run.others)
    kind, row = ev.encode(admitted)
    assert '"others":[{"name":"calls",' in row
    assert ev.decode(kind, row, ev.PlaybookLookup((run.playbook, REFUNDS, CALLS))) == admitted


def test_a_run_that_began_before_others_were_told_reserves_what_it_reserved_then() -> None:
    old = ev.RunAdmitted("acme", "t-1", "user:ana", parent(), {}, 0, NOW)
    kind, row = ev.encode(old)
    assert "others" not in row
    assert ev.decode(kind, row, ev.PlaybookLookup((parent(),))) == old
    assert compiled_handoff_contract(("calls", "refunds"), ()).contract == handoff_contract(("refunds", "calls"))
    assert handoff_contract(("refunds",)).cost == Cost(tokens=20_000, usd_micros=100_000, tool_calls=10)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (GIVEN, ""),
        (GIVEN | {"input": {"ticket": "T-1", "urgency": 1, "default": "T-2"}}, ""),
        (GIVEN | {"input": {"ticket": "${{ input.ticket }}"}}, ""),
        (GIVEN | {"input": "${{ input }}"}, ""),
        ({"playbook": "calls"}, ""),
        ({"playbook": "calls", "input": {"anything": 1}}, ""),
        ({"playbook": "${{ input.who }}", "input": {"anything": 1}}, ""),
        ({"playbook": "refunds"}, 'arguments: "input" is a required property'),
        (GIVEN | {"input": {}}, 'arguments.input: "ticket" is a required property'),
        (GIVEN | {"input": {"ticket": "1"}}, "arguments.input.ticket:"),
        (GIVEN | {"input": {"ticket": "T-1", "default": "1"}}, "arguments.input.default:"),
        (GIVEN | {"input": {"ticket": "T-1", "urgency": "high"}}, "arguments.input.urgency:"),
        (GIVEN | {"input": {"ticket": "T-1", "who": "Ana"}}, "'who' was unexpected"),
        ({"playbook": "unheard-of", "input": {}}, "arguments.playbook:"),
    ],
)
def test_a_plan_is_held_to_the_input_that_the_other_playbook_asks_for(arguments: Json, complaint: str) -> None:
    terms = PlanContext(
        {HANDOFF: compiled_handoff_contract(("calls", "refunds"), OTHERS)}, 5, RetryPolicy(), others=OTHERS
    )
    found = [str(each) for each in check_steps([StepSpec(id="a", operation=HANDOFF, arguments=arguments)], terms)]
    assert [complaint in each for each in found] == ([True] if complaint else [])


def test_a_model_is_told_what_the_other_playbooks_are_for_and_what_they_ask_for() -> None:
    _, request = asked(playbook(handoffs=("calls", "refunds"), plan={"pattern": "model"}))
    told = question(request, {HANDOFF: compiled_handoff_contract(request.handoffs, request.others)}, [])
    (operation,) = told["operations"]
    assert "refunds: Give money back." in operation["description"]
    assert operation["arguments"]["$defs"]["refunds"]["properties"]["ticket"] == {
        "$ref": "#/$defs/refunds/$defs/ticket"
    }


def test_a_schema_that_cannot_stand_inside_another_is_left_out() -> None:
    odd = OtherPlaybook(name="odd", goal="g", input={"$ref": "#there", "$anchor": "there"}, cost=Cost())
    offer = compiled_handoff_contract(("odd",), (odd,))
    assert offer.arguments.is_valid({"playbook": "odd", "input": {"a": 1}})


FILE = """\
name: {name}
goal: {goal}
input: {input}
{more}
plan: {{pattern: fixed, steps: [{step}]}}
budgets: {{{budgets}}}
"""


def folder(path: Path, step: str, budgets: str) -> Path:
    child = {"name": "refunds", "goal": "Give money back.", "more": "tools: [bank.pay]"}
    (path / "refunds.yaml").write_text(
        FILE.format(
            **child,
            input="{type: object, required: [ticket], properties: {ticket: {type: string}}}",
            step="{id: pay, operation: bank.pay}",
            budgets="tool_calls: 6, tokens: 1234, usd: 0.25",
        )
    )
    (path / "broken.yaml").write_text("name: [")
    file = path / "desk.yaml"
    about = {
        "name": "desk",
        "goal": "Sort.",
        "input": "{type: object}",
        "more": "tools: [bank.pay]\nhandoffs: [refunds]",
    }
    file.write_text(FILE.format(**about, step=step, budgets=budgets))
    return file


HAND = "{id: hand, operation: playbook.run, arguments: {playbook: refunds, input: {ticket: T-1}}%s}"


@pytest.mark.parametrize(
    ("step", "budgets", "complaint"),
    [
        (HAND % "", "tool_calls: 7, tokens: 1234, usd: 0.25", ""),
        (HAND % ", tool_calls: 2, tokens: 5, usd: 0", "tool_calls: 3, tokens: 5, usd: 0", ""),
        (HAND.replace("{ticket: T-1}", "{}") % "", "usd: 1", '"ticket" is a required property'),
        (HAND.replace("T-1", "1") % "", "usd: 1", "arguments.input.ticket: 1 is not of type"),
        (HAND.replace("refunds", "refund") % "", "usd: 1", '"refund" is not one of "refunds"'),
    ],
)
def test_playbook_check_sees_the_playbook_that_is_handed_over_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, budgets: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["playbook", "check", str(folder(tmp_path, step, budgets))])
    assert (done.exit_code == 1) is bool(complaint), done.output
    assert complaint in done.output
    assert not complaint or "desk.yaml:6:" in done.output


@pytest.mark.parametrize(
    ("plan", "budgets", "warning"),
    [
        ("fixed, steps: [" + HAND % "" + "]", "tool_calls: 6", "step `hand` wants 7 of tool_calls for the other run"),
        ("fixed, steps: [" + HAND % "" + "]", "tokens: 1000", "step `hand` wants 1234 of tokens"),
        ("fixed, steps: [" + HAND % "" + "]", "usd: 0.2", "Set `budgets.usd` to at least 0.25"),
        ("model", "tool_calls: 3", "to hand over to `refunds` wants 7 of tool_calls"),
    ],
)
def test_playbook_check_warns_of_budgets_that_do_not_hold_those_of_the_other_playbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, budgets: str, warning: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = folder(tmp_path, HAND % "", budgets)
    file.write_text(file.read_text().replace("fixed, steps: [" + HAND % "" + "]", plan))
    done = CliRunner().invoke(app, ["playbook", "check", str(file)])
    assert done.exit_code == 0, done.output
    assert warning in done.output


def test_the_cost_of_a_playbook_has_that_of_the_one_that_it_hands_over_to() -> None:
    found = estimate(parent(), {}, {"refunds": REFUNDS, "calls": CALLS})
    assert [(line.what, line.tokens, line.usd_micros) for line in found.lines] == [("hand", 1_234, 250_000)]
    assert found.unknown == ()
    assert estimate(parent(), {}).unknown == (HANDOFF,)
