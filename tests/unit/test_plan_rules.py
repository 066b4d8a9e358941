"""`triptych playbook check` and the planner find the same mistakes in the steps of a plan, by the same rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plan_mistakes import (
    GOOD,
    HANDOFFS,
    KNOWN_FROM_THE_FILE,
    MAX_STEPS,
    NEEDS_CONTRACT,
    OFFERS,
    Mistake,
    playbook_with,
    steps_with,
)
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.contracts.compiled_contract import compiled_handoff_contract
from triptych.playbook.diagnostic import STEPS, Diagnostic
from triptych.playbook.loader import LocatedDiagnostic, PlaybookErrors, parse_playbook
from triptych.playbook.plans import PlanContext, check_steps
from triptych.schemas import HANDOFF, RetryPolicy, StepSpec

FILE = Path("support.yaml")
CONTEXT = PlanContext(
    offers={**OFFERS, HANDOFF: compiled_handoff_contract(HANDOFFS, ())}, max_steps=MAX_STEPS, retry=RetryPolicy()
)


def found_in_file(changes: dict[str, dict[str, Any]]) -> tuple[LocatedDiagnostic, ...]:
    try:
        parse_playbook(playbook_with(changes), FILE)
    except PlaybookErrors as error:
        return error.problems
    return ()


def found_by_planner(changes: dict[str, dict[str, Any]]) -> list[Diagnostic]:
    return check_steps([StepSpec.model_validate(step, strict=False) for step in steps_with(changes)], CONTEXT)


def names(mistake: Mistake) -> str:
    return mistake.name.replace(" ", "-")


@pytest.mark.parametrize("mistake", KNOWN_FROM_THE_FILE, ids=names)
def test_what_the_file_shows_is_found_by_both_with_the_same_words(mistake: Mistake) -> None:
    in_file, by_planner = found_in_file(mistake.changes), found_by_planner(mistake.changes)
    assert {(each.message, each.cure) for each in in_file} == {(each.message, each.cure) for each in by_planner}
    assert any(mistake.words in each.message for each in in_file), in_file


@pytest.mark.parametrize("mistake", NEEDS_CONTRACT, ids=names)
def test_what_needs_a_contract_is_left_to_the_planner(mistake: Mistake) -> None:
    assert found_in_file(mistake.changes) == ()
    assert any(mistake.words in each.message for each in found_by_planner(mistake.changes))


@pytest.mark.parametrize("mistake", [*KNOWN_FROM_THE_FILE, *NEEDS_CONTRACT], ids=names)
def test_a_mistake_has_its_place_in_the_step(mistake: Mistake) -> None:
    found = [each for each in found_by_planner(mistake.changes) if mistake.words in each.message]
    (wrong_step,) = mistake.changes
    indexes = {index for index, step in enumerate(steps_with({})) if step["id"] == wrong_step}
    assert {each.place[len(STEPS)] for each in found} == indexes
    assert all(each.place[: len(STEPS)] == STEPS for each in found)
    step = mistake.changes[wrong_step].get("id", wrong_step)
    assert any(str(each).startswith(f"step {step}, {mistake.place.partition('.')[2]}: ") for each in found), found


@pytest.mark.parametrize("mistake", KNOWN_FROM_THE_FILE, ids=names)
def test_a_mistake_has_its_line_and_column_where_the_source_is_yaml(mistake: Mistake) -> None:
    lines = playbook_with(mistake.changes).splitlines()
    ((step, fields),) = mistake.changes.items()
    for problem in found_in_file(mistake.changes):
        if mistake.words not in problem.message:
            continue
        at = lines[problem.line - 1][problem.column - 1 :]
        (field,) = fields
        # What waits for itself in a circle has no field of its own: the circle stands at its step.
        assert at.startswith("id: " + step) if "each other" in mistake.words else field in lines[problem.line - 1]


@pytest.mark.parametrize("changes", GOOD.values(), ids="-".join)
def test_what_runs_is_good_for_both(changes: dict[str, dict[str, Any]]) -> None:
    assert found_in_file(changes) == ()
    assert found_by_planner(changes) == []


def test_check_says_what_it_has_not_checked_for_want_of_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "support.yaml").write_text(playbook_with({}))
    done = CliRunner().invoke(app, ["playbook", "check", "support.yaml", "--json"])
    assert done.exit_code == 0, done.output
    tools, contracts = [each["message"] for each in json.loads(done.stdout)["not_checked"]]
    assert tools == "whether there are the tools desk, kb, for want of a triptych.toml"
    assert contracts.startswith("whether the steps fit the contracts of desk.note, kb.search")
    (tmp_path / "triptych.toml").write_text('[tools.kb]\nadapter = "x:y"\n[tools.desk]\nadapter = "x:y"\n')
    done = CliRunner().invoke(app, ["playbook", "check", "support.yaml"])
    assert (done.exit_code, "whether there are the tools" in done.output) == (0, False)
    assert "not checked: whether the steps fit the contracts" in done.output
