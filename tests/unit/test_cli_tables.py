"""What a person sees at 80 and at 160 columns: every status, every reason's code and every figure, whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from triptych.client import RunRow
from triptych.commands import runs, topics
from triptych.commands.common import outcome_table, output
from triptych.commands.common.contracts_table import contracts_table
from triptych.commands.memory import ls as memory
from triptych.schemas import Contract, Effect, Outcome, OutcomeStatus, Reason, Usage

STARTED = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
LONG_ID = "ticket-of-a-client-who-likes-long-names-" * 5


@pytest.fixture(params=[80, 160])
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a terminal of this width shows of a table."""
    console = output.SafeConsole(width=request.param, force_terminal=False, highlight=False)
    monkeypatch.setattr(output, "out", console)

    def show(table: object) -> str:
        with console.capture() as captured:
            console.print(table)
        text = captured.get()
        assert max(len(line.rstrip()) for line in text.splitlines()) <= request.param
        return text

    return show


def outcome(task_id: str) -> Outcome:
    return Outcome(
        task_id=task_id,
        run_id=UUID(int=1),
        playbook="support-ticket",
        tenant="acme",
        status=OutcomeStatus.ESCALATED,
        final=False,
        reason=Reason(code="tool_unavailable", message="helpdesk.reply [in step reply] failed after 3 attempts " * 3),
        usage=Usage(steps=10, tool_calls=30, tokens=137_439, usd=0.3277, wall_ms=119_900),
    )


def run_row(task_id: str) -> RunRow:
    values = dict.fromkeys(RunRow.__dataclass_fields__)
    return RunRow(
        **values
        | {
            "run_id": UUID(int=1),
            "tenant": "acme",
            "task_id": task_id,
            "playbook": "support-ticket",
            "status": "escalated",
            "reason_code": "tool_unavailable",
            "steps_used": 10,
            "tool_calls": 30,
            "tokens": 137_439,
            "usd_micros": 327_700,
            "started_at": STARTED,
            "updated_at": STARTED + timedelta(seconds=10),
        }
    )


FIGURES = ("escalated", "tool_unavailable", "10", "30", "137,439", "$0.3277")


@pytest.mark.parametrize("task_id", ["ticket-1026", "review-quillfeather", "triptych.tasks:1:13"])
def test_a_table_of_outcomes_shows_every_status_and_figure(shown: Callable[..., str], task_id: str) -> None:
    text = shown(outcome_table.outcome_table([outcome(task_id)]))
    assert all(figure in text for figure in FIGURES)


@pytest.mark.parametrize("task_id", ["ticket-1026", "review-quillfeather", "triptych.tasks:1:13"])
def test_a_table_of_runs_shows_every_status_and_figure(shown: Callable[..., str], task_id: str) -> None:
    text = shown(runs.runs_table([run_row(task_id)]))
    assert all(figure in text for figure in FIGURES)


def test_one_very_long_task_id_folds_and_costs_no_other_column_its_place(shown: Callable[..., str]) -> None:
    for text in (
        shown(outcome_table.outcome_table([outcome(LONG_ID), outcome("b")])),
        shown(runs.runs_table([run_row(LONG_ID), run_row("b")])),
    ):
        assert text.count("escalated") == 2
        assert text.count("137,439") == 2


def test_a_table_of_topics_keeps_names_and_lag(shown: Callable[..., str]) -> None:
    row = topics.TopicRow(
        "triptych.calls.helpdesk",
        2,
        12_345,
        "Asks a tool for one attempt.",
        "executor",
        "one tool",
        {"triptych.tool-helpdesk": 17},
    )
    text = shown(topics._table([row]))
    assert all(each in text for each in ("triptych.calls.helpdesk", "12,345", "triptych.tool-helpdesk 17"))


CONTROLS = "a\x1b]0;title\x07b\x9b2Jc\u202ed\x7f"


def test_control_characters_of_a_name_never_reach_the_terminal(shown: Callable[..., str]) -> None:
    for text in (
        shown(outcome_table.outcome_table([outcome(CONTROLS)])),
        shown(runs.runs_table([run_row(CONTROLS)])),
        shown(f"printed as it is: {CONTROLS}"),
    ):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert r"\x1b" in text


def test_control_characters_in_json_are_escapes_that_say_the_same() -> None:
    written = output.compact({"task_id": CONTROLS}, None)
    assert written.isprintable()
    assert json.loads(written) == {"task_id": CONTROLS}


@pytest.mark.parametrize("words", ["[/red]", "[bold]", "a\x1b[2J\nb"])
def test_words_of_others_are_neither_markup_nor_lines_of_their_own(shown: Callable[..., str], words: str) -> None:
    contract = Contract(
        operation="crm.find",
        description=words,
        arguments={"type": "object"},
        result={"type": "object"},
        effect=Effect.READ,
        timeout_ms=1_000,
    )
    row = {"subject": words, "key": "k", "value": words, "at": STARTED}
    for text in (shown(contracts_table([contract])), shown(memory._table([row]))):
        assert words.partition("\x1b")[0].partition("\n")[0] in text
        assert "\x1b" not in text
