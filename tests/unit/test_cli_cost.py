"""What a run may cost, before it runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.operator.cost_estimate import estimate
from triptych.schemas import Contract, Cost, Effect, Playbook

ASK = Contract(
    operation="model.ask",
    description="",
    arguments={},
    result={},
    effect=Effect.READ,
    cost=Cost(tokens=1_000, usd_micros=10_000),
)
LOOK = ASK.model_copy(update={"operation": "kb.look", "cost": Cost()})
KNOWN = {contract.operation: contract for contract in (ASK, LOOK)}


def playbook(*steps: dict[str, Any], **changes: Any) -> Playbook:
    fields = {
        "name": "p",
        "goal": "g",
        "input": {},
        "tools": ["model.*", "kb.*"],
        "plan": {"pattern": "fixed", "steps": list(steps)},
    }
    return Playbook.model_validate(fields | changes, strict=False)


ONE = {"id": "ask", "operation": "model.ask"}


def test_a_step_costs_its_contract_once_and_with_every_attempt_at_most() -> None:
    found = estimate(playbook(ONE, {"id": "look", "operation": "kb.look"}), KNOWN)
    assert [line.what for line in found.lines] == ["ask"]
    assert (found.once_tokens, found.once_usd) == (1_000, 0.01)
    assert (found.most_tokens, found.most_usd) == (3_000, 0.03)


def test_a_step_may_bring_its_own_cost_and_attempts_and_a_judge() -> None:
    judge = {"criteria": "c", "tokens": 500, "usd": 0.002}
    found = estimate(playbook({**ONE, "usd": 0.5, "judge": judge, "retry": {"max_attempts": 2}}), KNOWN)
    assert (found.once_tokens, found.once_usd) == (1_500, pytest.approx(0.502))
    assert found.most_usd == 1.0, "never more than the budget"


def test_each_branch_costs_as_much() -> None:
    found = estimate(playbook({**ONE, "map": "${{ input.list }}", "max_items": 20}), KNOWN)
    assert found.once_tokens == 20_000


def test_what_a_model_plans_may_use_up_the_budgets() -> None:
    found = estimate(playbook(plan={"pattern": "model", "tokens": 5_000, "usd": 0.05}), KNOWN)
    assert [(line.what, line.times) for line in found.lines] == [("(plan)", 3)]
    assert (found.once_usd, found.most_usd, found.most_tokens) == (0.05, 1.0, 100_000)


def test_an_operation_that_is_not_known_is_named() -> None:
    found = estimate(playbook({"id": "x", "operation": "model.other"}), KNOWN)
    assert found.unknown == ("model.other",)
    assert found.most_usd == 1.0


def test_the_playbook_that_ships_has_a_cost() -> None:
    command = ["cost", "examples/demo/playbooks/support-ticket.yaml", "--data", "no-stack-here", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["unknown"] == []
    assert told["history"] is None
    assert 0 < told["once_usd"] <= told["most_usd"] <= 0.5
